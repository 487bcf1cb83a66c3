"""Batches of images: drawn on the host, computed on the device from tensors that stay where they are."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.errors import ExperimentError
from hpo.training.data.augment import Strengths
from hpo.training.data.changes import ChangedPixels, mixed
from hpo.training.data.draws import Draws, draw, partners
from hpo.training.data.epochs import Drawn, EpochBatches, EpochPlan, Indices, split, to_device
from hpo.training.data.moves import MovedPixels
from hpo.training.learning import Batch
from hpo.training.share import WHOLE, Share


@dataclass(frozen=True, eq=False)
class Buffers:
    """The batch within reach, in tensors that a captured step reads again and again; kept for all trials.

    Attributes:
        rows_B: int64, which images of `images_NHWC`.
        labels_B: int64.
        draws: (B, ...) each, what was drawn for each image, by name; empty where nothing is augmented.
        images_NHWC: The images: those of the data set, or those of this batch.
    """

    rows_B: Tensor
    labels_B: Tensor
    draws: Draws
    images_NHWC: Tensor


class StoredImages(ABC):
    """One part of a data set, opened once in a process and shared by all of its trials.

    Args:
        image_shape: Height, width, channels.
        mean: (C,) of pixels scaled to [0, 1].
        std: (C,) likewise.
        device: Where batches are computed.

    Law, which an inheritable test class holds against each: the same batches as from any other.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        device: torch.device,
    ) -> None:
        self.image_shape, self.device = image_shape, device
        self._changed = ChangedPixels(mean, std, device=device)
        self._scale_C = torch.from_numpy(1 / (255 * std)).to(device)
        self._offset_C = torch.from_numpy(-mean / std).to(device)
        self._buffers: dict[object, Buffers] = {}

    @abstractmethod
    def __len__(self) -> int:
        """Images."""

    def buffers(self, batch_size: int, *, like: Draws) -> Buffers:
        """The one set of buffers for draws of the same names, shapes and types, of any number of images."""
        form = {name: (*part.shape[1:], part.dtype) for name, part in like.items()}
        key = (batch_size, frozenset(form.items()))
        if key not in self._buffers:
            draws = {
                name: torch.zeros((batch_size, *part.shape[1:]), dtype=part.dtype, device=self.device)
                for name, part in like.items()
            }
            self._buffers[key] = self._new_buffers(batch_size, draws)
        return self._buffers[key]

    def batch(self, buffers: Buffers) -> Batch:
        """(B, C, H, W) float32, channels last in memory, normalised and changed; (B,) int64 labels."""
        return self._developed(buffers.images_NHWC, buffers.rows_B, buffers.draws), buffers.labels_B

    @abstractmethod
    def feed(self, order_N: Tensor, buffers: Buffers) -> Iterator[bool]:
        """Each True brings the next whole batch of `order_N` (int64, on the host) within reach."""

    @abstractmethod
    def in_order(self, indices: Indices, *, batch_size: int) -> Iterable[Batch]:
        """The images `indices` in their order, the last batch as small as it comes; may be iterated over again."""

    @abstractmethod
    def _new_buffers(self, batch_size: int, draws: Draws) -> Buffers: ...

    def _developed(self, images_NHWC: Tensor, rows_B: Tensor, draws: Draws) -> Tensor:
        if "moves" not in draws:
            images = images_NHWC.index_select(0, rows_B)
        else:  # one pass: each pixel straight from where it lies in the data set
            first = (rows_B * int(np.prod(self.image_shape))).view(-1, 1, 1, 1)
            places = self._moved.offsets(draws["moves"]) + first
            images = images_NHWC.reshape(-1).index_select(0, places.view(-1)).view(places.shape)
        return self._changed.of(self._normalised(images), draws).permute(0, 3, 1, 2)

    def _normalised(self, images_BHWC: Tensor) -> Tensor:
        return images_BHWC.to(torch.float32).mul_(self._scale_C).add_(self._offset_C)

    def _int64(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64, device=self.device)

    @functools.cached_property
    def _moved(self) -> MovedPixels:
        return MovedPixels(*self.image_shape, device=self.device)


class Batches(EpochBatches):
    """Training batches of images, with augmentations that follow from seed and epoch alone, as their order does.

    What is drawn for each sample is the same for one process and for several, except that a process mixes the samples
    of its own share of a batch with each other, and that noise comes from PyTorch's generator of the device, as dropout
    does.
    """

    def __init__(
        self,
        data: StoredImages,
        *,
        plan: EpochPlan | Indices,
        batch_size: int,
        augment: Strengths | Sequence[str] = (),
        num_classes: int | None = None,
        seed: int,
        share: Share = WHOLE,
    ) -> None:
        """Batches of the samples of `plan`, or the `share` of each.

        `augment` has strengths, or names of those that are as strong as usual; `num_classes` is needed to mix images.

        Raises:
            ExperimentError: As `EpochBatches`; or an augmentation is unknown, or images cannot be mixed.
        """
        super().__init__(plan, batch_size=batch_size, seed=seed, share=share)
        self._data = data
        self._strengths = augment if isinstance(augment, Strengths) else Strengths.of(augment)
        self._num_classes = num_classes
        self._check_mixing()
        self._buffers = data.buffers(self.own_size, like=self.draw(0, torch.Generator(), seed=0))

    @property
    def place(self) -> object:
        return id(self._buffers)  # kept by the data, so no other will have it

    def batch(self) -> Batch:
        """(B, C, H, W) float32 images; (B,) int64 labels, or (B, K) float32 probabilities where images are mixed."""
        images, labels = self._data.batch(self._buffers)
        draws = self._buffers.draws
        if "partner" not in draws or self._num_classes is None:
            return images, labels
        images, targets = mixed(images.permute(0, 2, 3, 1), labels, draws, num_classes=self._num_classes)
        return images.permute(0, 3, 1, 2), targets

    def feed(self, drawn: Drawn) -> Iterator[bool]:
        parts = {
            name: iter(split(to_device(part, self._data.device), self.own_size)) for name, part in drawn.draws.items()
        }
        for _ in self._data.feed(drawn.order_N, self._buffers):
            for name, own in self._buffers.draws.items():
                own.copy_(next(parts[name]))
            yield True

    def draw(self, num: int, generator: torch.Generator, *, seed: int) -> Draws:
        height, width, _ = self._data.image_shape
        drawn = draw(self._strengths, num=num, height=height, width=width, generator=generator, seed=seed)
        own = {name: self.own(part) for name, part in drawn.items()}
        if "partner" in own:  # whoever has another share may not have its pixels
            own["partner"] = partners(own["partner"], batch_size=self.own_size)
        return own

    def _check_mixing(self) -> None:
        mixing = " and ".join(sorted(self._strengths.on & {"mixup", "cutmix"}))
        if mixing and self.batch_size < 2 * self.share.size:
            raise ExperimentError(
                f"a batch of {self.batch_size} gives a process no two images that {mixing} could mix",
                where="batch_size",
                remedy=f"give at least {2 * self.share.size}, or leave {mixing} out",
            )
        if mixing and self._num_classes is None:
            raise ExperimentError(
                "nothing says how many classes the images have", where=mixing, remedy="give num_classes as well"
            )


class InOrder:
    """Every sample once, always in the same order and without augmentation; to be iterated over again and again."""

    def __init__(self, data: StoredImages, *, indices: Indices | None = None, batch_size: int = 2048) -> None:
        """The samples `indices` in their order, or all; the last batch may be smaller than `batch_size`."""
        chosen = np.arange(len(data)) if indices is None else np.ascontiguousarray(indices)
        self._batches = data.in_order(chosen, batch_size=batch_size) if len(chosen) else ()

    def __iter__(self) -> Iterator[Batch]:
        """(B, C, H, W) float32 normalised images and (B,) int64 labels."""
        return iter(self._batches)
