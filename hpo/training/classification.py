"""Images or rows of a table into classes: cross-entropy, and the measures of a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpo.errors import ExperimentError
from hpo.training.data import ChunkFolder, ImageData, TableData
from hpo.training.feed import FedTask, Feed
from hpo.training.image_feed import ImageFeed
from hpo.training.learning import Tally
from hpo.training.rules import Rule, number
from hpo.training.shard_feed import shard_feed
from hpo.training.tabular import Classes, TableFeed


@dataclass(frozen=True)
class Classification(FedTask):
    """A model that tells the classes of images, or of rows of a table, apart, trained with cross-entropy.

    It reports `train_loss, train_accuracy, val_loss, val_accuracy, val_precision, val_recall, val_f1`. Precision,
    recall and F1 are means over all classes of the data; a class that is never predicted has precision 0, one without
    any sample or prediction F1 0. Label smoothing (hyper-parameter `label_smoothing`) is in the training loss only, so
    that `val_loss` compares trials.

    Args:
        model: Gives logits (B, num_classes) of images (B, C, H, W). It may ask for `in_channels` (C),
            `num_classes`, `image_size` (H, or (H, W) where they differ), `in_features` (C x H x W). Of rows: of their
            normalised features (B, in_features); it may ask for `in_features`, `num_classes`.
        data: The images, or a table whose targets are classes (N,); or shards of either.
    """

    data: ImageData | TableData | ChunkFolder

    @property
    def feed(self) -> Feed:
        if isinstance(self.data, ChunkFolder):
            return shard_feed(self.data, Classes())
        if isinstance(self.data, ImageData):
            return ImageFeed(self.data)
        if isinstance(self.data, TableData):
            return TableFeed(self.data, Classes())
        raise ExperimentError(
            f"{self.data!r} is neither images nor a table", where="data", remedy="give one, e.g. data=Cifar10()"
        )

    @property
    def loss_rules(self) -> Mapping[str, Rule]:
        return {"label_smoothing": number(0.1, least=0, below=1)}

    @property
    def train_measures(self) -> tuple[str, ...]:
        return ("loss", "accuracy")

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "accuracy", "precision", "recall", "f1")

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
            sharp = functional.cross_entropy(outputs, targets)
            even = -functional.log_softmax(outputs, dim=1).mean()
            return sharp.lerp(even.to(sharp.dtype), label_smoothing)  # of probabilities it is float32, whatever outputs
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def tally(self, given: Mapping[str, Any], *, device: torch.device) -> Tally:
        return ConfusionTally(given["num_classes"], device=device)


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
        labels = targets if targets.dim() == 1 else targets.argmax(1)  # of a mixed image, that of its larger part
        cells = labels * self._num_classes + outputs.argmax(1)
        self._counts.scatter_add_(0, cells, torch.ones_like(cells))
        self._loss.add_(loss, alpha=len(targets))

    def sums(self) -> list[Tensor]:
        return [self._counts, self._loss]

    def result(self) -> dict[str, Tensor]:
        """`loss`, `accuracy`; and `precision`, `recall`, `f1` as means over the classes, where one without any is 0."""
        counts = self._counts.view(self._num_classes, self._num_classes).double()
        right, num_samples = counts.diagonal(), counts.sum()
        said, true = counts.sum(0), counts.sum(1)
        return {
            "loss": self._loss / num_samples,
            "accuracy": right.sum() / num_samples,
            "precision": (right / said.clamp(min=1)).mean(),
            "recall": (right / true.clamp(min=1)).mean(),
            "f1": (2 * right / (said + true).clamp(min=1)).mean(),
        }
