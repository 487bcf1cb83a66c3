"""Batches of images: drawn on the host, computed on the device from tensors that stay where they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.errors import ExperimentError
from hpo.seeds import derive
from hpo.training.data.augment import MovedPixels, check_names, draw_moves
from hpo.training.learning import Batch, Stream

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Buffers:
    """The batch within reach, in tensors that a captured step reads again and again; kept for all trials.

    Attributes:
        rows_B: int64, which images of `images_NHWC`.
        labels_B: int64.
        moves_B3: int64, as `augment.draw_moves` draws them; None where nothing is augmented.
        images_NHWC: The images: those of the data set, or those of this batch.
    """

    rows_B: Tensor
    labels_B: Tensor
    moves_B3: Tensor | None
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
        self._moved = MovedPixels(*image_shape, device=device)
        self._scale_C = torch.from_numpy(1 / (255 * std)).to(device)
        self._offset_C = torch.from_numpy(-mean / std).to(device)
        self._buffers: dict[tuple[int, bool], Buffers] = {}

    @abstractmethod
    def __len__(self) -> int:
        """Images."""

    def buffers(self, batch_size: int, *, moved: bool) -> Buffers:
        """The one set of buffers of this form."""
        key = (batch_size, moved)
        if key not in self._buffers:
            self._buffers[key] = self._new_buffers(batch_size, self._int64(batch_size, 3) if moved else None)
        return self._buffers[key]

    def batch(self, buffers: Buffers) -> Batch:
        """(B, C, H, W) float32, channels last in memory, normalised and moved; (B,) int64 labels."""
        return self._developed(buffers.images_NHWC, buffers.rows_B, buffers.moves_B3), buffers.labels_B

    @abstractmethod
    def feed(self, order_N: Tensor, buffers: Buffers) -> Iterator[bool]:
        """Each True brings the next whole batch of `order_N` (int64, on the host) within reach."""

    @abstractmethod
    def in_order(self, indices: Indices, *, batch_size: int) -> Iterable[Batch]:
        """The images `indices` in their order, the last batch as small as it comes; may be iterated over again."""

    @abstractmethod
    def _new_buffers(self, batch_size: int, moves_B3: Tensor | None) -> Buffers: ...

    def _developed(self, images_NHWC: Tensor, rows_B: Tensor, moves_B3: Tensor | None) -> Tensor:
        if moves_B3 is None:
            images = images_NHWC.index_select(0, rows_B)
        else:  # one pass: each pixel straight from where it lies in the data set
            first = (rows_B * int(np.prod(self.image_shape))).view(-1, 1, 1, 1)
            places = self._moved.offsets(moves_B3) + first
            images = images_NHWC.reshape(-1).index_select(0, places.view(-1)).view(places.shape)
        return self._normalised(images).permute(0, 3, 1, 2)

    def _normalised(self, images_BHWC: Tensor) -> Tensor:
        return images_BHWC.to(torch.float32).mul_(self._scale_C).add_(self._offset_C)

    def _int64(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self.device)


class Batches(Stream):
    """Training batches, epoch after epoch, in an order and with augmentations that follow from seed and epoch alone.

    So its whole state is the number of epochs begun, and the order is the same on a CPU and on a GPU. Where there is
    at least one full batch, the samples that do not fill the last one sit out the epoch, others each time.
    """

    def __init__(
        self, data: StoredImages, *, indices: Indices, batch_size: int, augment: Sequence[str] = (), seed: int
    ) -> None:
        """Batches of the samples `indices`.

        Raises:
            ExperimentError: `batch_size` is below 1, or an augmentation is unknown.
        """
        if batch_size < 1:
            raise ExperimentError(f"{batch_size} is not at least 1", where="batch_size", remedy="e.g. 128")
        check_names(augment)
        self._data = data
        self._indices = torch.from_numpy(np.ascontiguousarray(indices))
        self._batch_size = min(batch_size, max(len(indices), 1))
        self._names = tuple(augment)
        self._seed = seed
        self._epoch = 0
        self._buffers = data.buffers(self._batch_size, moved=bool(self._names))
        self._feed: Iterator[bool] = iter(())
        self._moves: Iterator[Tensor] = iter(())
        self._ahead: tuple[int, Tensor, Tensor | None] | None = None

    @property
    def place(self) -> object:
        return id(self._buffers)  # kept by the data, so no other will have it

    @property
    def num_samples(self) -> int:
        return len(self._indices) // self._batch_size * self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        """The next epoch: (B, C, H, W) float32 images and (B,) int64 labels, batch by batch."""
        self.begin_epoch()
        while self.advance():
            yield self.batch()

    def begin_epoch(self) -> None:
        ahead, self._ahead = self._ahead, None
        _, order, moves = ahead if ahead is not None and ahead[0] == self._epoch else self._drawn()
        self._epoch += 1
        self._feed = self._data.feed(order, self._buffers)
        self._moves = iter(()) if moves is None else iter(_split(to_device(moves, self._data.device), self._batch_size))

    def advance(self) -> bool:
        if not next(self._feed, False):
            return False
        if self._buffers.moves_B3 is not None:
            self._buffers.moves_B3.copy_(next(self._moves))
        return True

    def batch(self) -> Batch:
        return self._data.batch(self._buffers)

    def look_ahead(self) -> None:
        self._ahead = self._drawn()

    def state(self) -> dict[str, int]:
        """JSON from which `restore` goes on with the next epoch; an epoch under way counts as had."""
        return {"epoch": self._epoch}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on after the epoch at which `state()` was taken."""
        self._epoch = state["epoch"]

    def _drawn(self) -> tuple[int, Tensor, Tensor | None]:
        """The next epoch's number, its order and its moves, on the host."""
        generator = torch.Generator().manual_seed(derive(self._seed, "epoch", self._epoch))
        order = self._indices[torch.randperm(len(self._indices), generator=generator)[: self.num_samples]]
        if not self._names:
            return self._epoch, order, None
        height, width, _ = self._data.image_shape
        moves = draw_moves(self._names, num=self.num_samples, height=height, width=width, generator=generator)
        return self._epoch, order, moves


class InOrder:
    """Every sample once, always in the same order and without augmentation; to be iterated over again and again."""

    def __init__(self, data: StoredImages, *, indices: Indices | None = None, batch_size: int = 2048) -> None:
        """The samples `indices` in their order, or all; the last batch may be smaller than `batch_size`."""
        chosen = np.arange(len(data)) if indices is None else np.ascontiguousarray(indices)
        self._batches = data.in_order(chosen, batch_size=batch_size) if len(chosen) else ()

    def __iter__(self) -> Iterator[Batch]:
        """(B, C, H, W) float32 normalised images and (B,) int64 labels."""
        return iter(self._batches)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values there, without the host waiting for it."""
    return values.to(device) if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def _split(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = tensor.split(size)  # type: ignore[no-untyped-call]
    return parts
