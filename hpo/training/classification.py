"""Images into classes: cross-entropy, and the measures of a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpo.errors import ExperimentError
from hpo.protocols import Dataset, Setting
from hpo.training.data import ImageData, Located
from hpo.training.images import ImageSettings, ImageSource, given_by_images
from hpo.training.learning import Tally
from hpo.training.rules import Rule, number
from hpo.training.supervised import SupervisedTask


@dataclass(frozen=True)
class Classification(SupervisedTask):
    """A model that tells the classes of images apart, trained with cross-entropy.

    It reports `train_loss, train_accuracy, val_loss, val_accuracy, val_precision, val_recall`. Precision and recall
    are means over all classes of the data; a class that is never predicted has precision 0. Label smoothing
    (hyper-parameter `label_smoothing`) is in the training loss only, so that `val_loss` compares trials.

    Args:
        model: Gives logits (B, num_classes) of images (B, C, H, W). It may ask for `in_channels` (C),
            `num_classes`, `image_size` (H, or (H, W) where they differ), `in_features` (C x H x W).
        data: The images.
    """

    data: ImageData

    @property
    def gives(self) -> tuple[str, ...]:
        return ("in_channels", "in_features", "image_size", "num_classes")

    @property
    def loss_rules(self) -> Mapping[str, Rule]:
        return {"label_smoothing": number(0.1, least=0, below=1)}

    @property
    def train_measures(self) -> tuple[str, ...]:
        return ("loss", "accuracy")

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "accuracy", "precision", "recall")

    @property
    def data_settings(self) -> type[ImageSettings]:
        return ImageSettings

    @property
    def loss_numbers(self) -> tuple[str, ...]:
        return ("label_smoothing",)

    def loss(
        self, outputs: Tensor, targets: Tensor, *, num_classes: int, label_smoothing: float | Tensor = 0.0
    ) -> Tensor:
        # Checked here because a GPU that meets a target out of range is lost to its process.
        if outputs.shape != (len(targets), num_classes):
            raise ExperimentError(
                f"its outputs have shape {tuple(outputs.shape)}, not (batch, classes) = {(len(targets), num_classes)}",
                where="model",
                remedy="let its last layer have num_classes outputs",
            )
        if isinstance(label_smoothing, Tensor):
            hard = functional.cross_entropy(outputs, targets)
            return hard.lerp(-functional.log_softmax(outputs, dim=1).mean(), label_smoothing)
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def tally(self, given: Mapping[str, Any], *, device: torch.device) -> Tally:
        return ConfusionTally(given["num_classes"], device=device)

    def check(self) -> None:
        super().check()
        if not isinstance(self.data, ImageData):
            raise ExperimentError(
                f"{self.data!r} is no image data set", where="data", remedy="give one, e.g. data=Cifar10()"
            )
        try:
            self.data.check()
        except ExperimentError as error:
            raise ExperimentError(error.problem, where=f"data.{error.where}", remedy=error.remedy) from None

    def locate(self, data_dir: Path | None) -> Dataset:
        located = self.data.locate(data_dir)
        return Dataset(
            name=located.dataset,
            fingerprint=located.fingerprint,
            fell_back=located.fell_back,
            located=located.as_json(),
        )

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        located = Located.from_json(dataset.located)
        return given_by_images(located.image_shape, num_classes=len(located.classes))

    def open(self, setting: Setting) -> ImageSource:
        located = Located.from_json(setting.dataset.located)
        images = self.data.load(located, cache_dir=setting.cache_dir)
        device = torch.device(setting.device)
        room = None
        if device.type == "cuda":
            share = min(setting.gpus or 1, 1) * setting.data_memory_fraction
            room = share * torch.cuda.get_device_properties(device).total_memory
        return ImageSource(images, device=device, room_bytes=room, num_workers=max(1, setting.num_threads - 1))


class ConfusionTally(Tally):
    """Counts each true class against each predicted one.

    Args:
        num_classes: Classes, K; the counts are K x K integers.
        device: Where they are kept.
    """

    def __init__(self, num_classes: int, *, device: torch.device) -> None:
        self._num_classes = num_classes
        self._counts = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)

    def clear(self) -> None:
        self._counts.zero_()
        self._loss.zero_()

    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        cells = targets * self._num_classes + outputs.argmax(1)
        self._counts.scatter_add_(0, cells, torch.ones_like(cells))
        self._loss.add_(loss, alpha=len(targets))

    def result(self) -> dict[str, Tensor]:
        """`loss`, `accuracy`, and `precision` and `recall` as means over the classes; a class without any is 0."""
        counts = self._counts.view(self._num_classes, self._num_classes).double()
        right, num_samples = counts.diagonal(), counts.sum()
        return {
            "loss": self._loss / num_samples,
            "accuracy": right.sum() / num_samples,
            "precision": (right / counts.sum(0).clamp(min=1)).mean(),
            "recall": (right / counts.sum(1).clamp(min=1)).mean(),
        }
