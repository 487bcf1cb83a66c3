"""Images as the training loop wants them: on the device, split, shuffled and augmented."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from hpo.errors import DataError
from hpo.training.data import Images
from hpo.training.data.augment import AUGMENTATIONS, Strengths
from hpo.training.data.batches import Batches, InOrder, StoredImages
from hpo.training.data.chunks import ChunkedSplit, Chunks
from hpo.training.data.epochs import Always, EpochPlan, Indices
from hpo.training.data.resident import DeviceImages
from hpo.training.data.split import Split, split_of
from hpo.training.learning import Batch, Source, Stream
from hpo.training.rules import Rule, one_of, several
from hpo.training.settings import ChunkSettings, DataSettings
from hpo.training.share import WHOLE, Share

MEASURED_AT_ONCE = {"cpu": 128, "cuda": 2048}
"""Images in a batch that is not trained on: what fills a GPU; on a CPU, what its caches hold."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings(DataSettings):
    """Which of the images a trial sees, and how.

    Attributes:
        augment: Names of what happens to an image at random each time it is trained on, as strong as usual
            (`hpo.training.data.augment.USUAL`).
        crop, flip, rotate, brightness, contrast, noise, cutout, erase, mixup, cutmix: How strong each is, whether it
            is named or not, as `Strengths` has it; 0 is off. None: as `augment` says.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        **DataSettings.rules,
        "augment": several(one_of(*AUGMENTATIONS), example=("crop", "flip")),
        **{name: rule.or_none() for name, rule in Strengths.rules.items()},
    }

    augment: tuple[str, ...] = ()
    crop: float | None = None
    flip: float | None = None
    rotate: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    noise: float | None = None
    cutout: float | None = None
    erase: float | None = None
    mixup: float | None = None
    cutmix: float | None = None

    @property
    def strengths(self) -> Strengths:
        """How strong each augmentation is, all of this taken together."""
        return Strengths.of(self.augment, {name: getattr(self, name) for name in AUGMENTATIONS})


@dataclass(frozen=True, kw_only=True)
class ChunkedImageSettings(ImageSettings, ChunkSettings):
    """Which of growing images a trial sees, and how."""

    rules: ClassVar[Mapping[str, Rule]] = {**ImageSettings.rules, **ChunkSettings.rules}


def given_by_images(image_shape: tuple[int, int, int], *, num_classes: int) -> dict[str, Any]:
    """What a model may ask for, of images of (height, width, channels); a side stands for two that are equal."""
    height, width, channels = image_shape
    return {
        "in_channels": channels,
        "in_features": height * width * channels,
        "image_size": height if height == width else (height, width),
        "num_classes": num_classes,
    }


def preprocessing_of_images(
    mean_C: NDArray[np.float32], std_C: NDArray[np.float32], *, classes: Sequence[str]
) -> dict[str, Any]:
    """What `Source.preprocessing` says of images whose channels have these, pixels scaled to [0, 1]."""
    mean, std = ((255.0 * part).tolist() for part in (mean_C, std_C))
    return {"inputs": {"mean": mean, "std": std}, "classes": [*classes]}


class ImageSource(Source[ImageSettings]):
    """The images of a data set; the last split is kept, for most trials of a study share it.

    Args:
        images: The data set.
        device: Where trials train.
        room_bytes: What images may take on the device; if they need more, they are streamed. None: no limit.
        num_workers: Processes that read streamed images.
        share: Of each batch, and of what is measured.
        chunks: That the train part comes in; its settings are then `ChunkedImageSettings`. None: it does not grow.
    """

    is_shared = True

    def __init__(
        self,
        images: Images,
        *,
        device: torch.device,
        room_bytes: float | None = None,
        num_workers: int = 1,
        share: Share = WHOLE,
        chunks: Chunks | None = None,
    ) -> None:
        self._chunks = chunks
        self._images, self._device, self._num_workers, self._share = images, device, num_workers, share
        needed = images.train_images.nbytes
        self._is_streamed = room_bytes is not None and needed > room_bytes
        self._how = _where(device, needed_mb=needed / 2**20, room_mb=None if room_bytes is None else room_bytes / 2**20)
        self._train_part = self._part("train")
        self._measured_at_once = MEASURED_AT_ONCE[device.type]
        self._last: tuple[tuple[object, ...], Split, ChunkedSplit | None] | None = None

    @property
    def how(self) -> str:
        return self._how

    @property
    def given(self) -> Mapping[str, Any]:
        return given_by_images(self._train_part.image_shape, num_classes=len(self._images.classes))

    def training(self, settings: ImageSettings, *, batch_size: int, seed: int) -> Stream:
        return Batches(
            self._train_part,
            plan=self._plan(settings, seed),
            batch_size=batch_size,
            augment=settings.strengths,
            num_classes=len(self._images.classes),
            seed=seed,
            share=self._share,
        )

    def validation(self, settings: ImageSettings) -> Iterable[Batch]:
        split, _ = self._parts(settings)
        return self._measured(split.val_indices)

    def parts(self, settings: ImageSettings, *, chunk: int) -> Mapping[str, Iterable[Batch]]:
        _, chunked = self._parts(settings)
        if chunked is None:
            return {}
        return {name: self._measured(indices) for name, indices in chunked.measured(chunk).items()}

    def testing(self, settings: ImageSettings) -> Iterable[Batch]:
        if not len(self._images.test_labels):
            raise DataError(
                "the data set has no test part", where="test", remedy="add test/<class>/ beside train/<class>/"
            )
        return InOrder(self._part("test"), batch_size=self._measured_at_once)

    def preprocessing(self, settings: ImageSettings) -> Mapping[str, Any]:
        return preprocessing_of_images(self._images.mean, self._images.std, classes=self._images.classes)

    def _part(self, name: str) -> StoredImages:
        if not self._is_streamed:
            resident = DeviceImages.train_part if name == "train" else DeviceImages.test_part
            return resident(self._images, device=self._device)
        from hpo.training.data.streamed import StreamedImages  # with PyTorch's loader, which few processes need

        streamed = StreamedImages.train_part if name == "train" else StreamedImages.test_part
        return streamed(self._images, device=self._device, num_workers=self._num_workers)

    def _measured(self, indices: Indices) -> InOrder:
        own = indices[self._share.of(len(indices))]
        return InOrder(self._train_part, indices=own, batch_size=self._measured_at_once)

    def _plan(self, settings: ImageSettings, seed: int) -> EpochPlan:
        split, chunked = self._parts(settings)
        if self._chunks is None or chunked is None or not isinstance(settings, ChunkSettings):
            return Always(split.train_indices)
        return self._chunks.plan(chunked.train, settings, seed=seed)

    def _parts(self, settings: ImageSettings) -> tuple[Split, ChunkedSplit | None]:
        key = (settings.train_ratio, settings.train_samples, settings.val_samples, settings.split_seed)
        if self._last is None or self._last[0] != key:
            labels, num_classes = self._images.train_labels, len(self._images.classes)
            split, chunked = split_of(labels, settings), None
            if self._chunks is not None:
                chunked = self._chunks.divided(split, labels, num_classes=num_classes, seed=settings.split_seed)
            self._last = key, split, chunked
        return self._last[1:]


def _where(device: torch.device, *, needed_mb: float, room_mb: float | None) -> str:
    if device.type == "cpu":
        return "in memory that the node's processes share"
    if room_mb is None or needed_mb <= room_mb:
        return f"on the device: {needed_mb:,.0f} MiB"
    return f"streamed: {needed_mb:,.0f} MiB are more than the {room_mb:,.0f} MiB that data may take on the device"
