"""Batches from images that lie on the device: nothing is read, decoded or copied to it while a trial trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.errors import ExperimentError
from hpo.seeds import derive
from hpo.training.data.augment import apply_moves, check_names, draw_moves
from hpo.training.data.images import Images
from hpo.training.learning import Batch, Stream

NORMALISED_MB = 64
"""Up to this size images are kept on the device as normalised float32; above it as uint8, normalised per batch."""

_BLOCK_MB = {"cpu": 2, "cuda": 64}
"""float32 images that are prepared at once, for some batches: within a core's cache; or enough to fill a GPU."""


class DeviceImages:
    """One part of a data set on a device, made once in a process and shared by all of its trials.

    On a CPU, images above `NORMALISED_MB` stay the mapped file that all processes of the node share.

    Attributes:
        labels_N: int64.
        image_shape: Height, width, channels.
    """

    def __init__(
        self,
        images_NHWC: NDArray[np.uint8],  # noqa: N803
        labels_N: NDArray[np.int64],  # noqa: N803
        *,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        device: torch.device,
    ) -> None:
        self.device = device
        self.labels_N = _shared(labels_N).to(device)
        height, width, channels = images_NHWC.shape[1:]
        self.image_shape: tuple[int, int, int] = (height, width, channels)
        self._scale_C = torch.from_numpy(1 / (255 * std)).to(device)
        self._offset_C = torch.from_numpy(-mean / std).to(device)
        images = _shared(images_NHWC).to(device)
        self.is_normalised = images.numel() * 4 <= NORMALISED_MB * 2**20
        self._images_NHWC = images.float().mul_(self._scale_C).add_(self._offset_C) if self.is_normalised else images

    @classmethod
    def train_part(cls, images: Images, *, device: torch.device) -> DeviceImages:
        """The train part, validation included."""
        return cls(images.train_images, images.train_labels, mean=images.mean, std=images.std, device=device)

    @classmethod
    def test_part(cls, images: Images, *, device: torch.device) -> DeviceImages:
        """The test part, normalised as the train part is."""
        return cls(images.test_images, images.test_labels, mean=images.mean, std=images.std, device=device)

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, indices_B: Tensor, *, moves_B3: Tensor | None = None) -> Tensor:  # noqa: N803
        """(B, C, H, W) float32, contiguous, normalised; moved by `augment.draw_moves`, where given."""
        images = self._images_NHWC.index_select(0, indices_B)
        images = images.permute(0, 3, 1, 2) if moves_B3 is None else apply_moves(images, moves_B3)
        images = images.to(torch.float32, memory_format=torch.contiguous_format)
        if self.is_normalised:
            return images.contiguous()
        return images.mul_(self._scale_C.view(-1, 1, 1)).add_(self._offset_C.view(-1, 1, 1))

    def block_size(self, batch_size: int) -> int:
        """Samples to prepare at once: whole batches, at least one."""
        sample_bytes = 4 * int(np.prod(self.image_shape))
        fitting = _BLOCK_MB[self.device.type] * 2**20 // (sample_bytes * batch_size)
        return batch_size * max(1, fitting)


class Batches(Stream):
    """Training batches, epoch after epoch, in an order and with augmentations that follow from seed and epoch alone.

    So its whole state is the number of epochs begun, and the order is the same on a CPU and on a GPU. Where there is
    at least one full batch, the samples that do not fill the last one sit out the epoch, others each time.
    """

    def __init__(
        self,
        data: DeviceImages,
        *,
        indices: NDArray[np.int64],
        batch_size: int,
        augment: Sequence[str] = (),
        seed: int,
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

    def __iter__(self) -> Iterator[Batch]:
        """The next epoch: (B, C, H, W) float32 images and (B,) int64 labels, batch by batch."""
        generator = torch.Generator().manual_seed(derive(self._seed, "epoch", self._epoch))
        self._epoch += 1
        num_samples, block_size = self.num_samples, self._data.block_size(self._batch_size)
        order = self._indices[torch.randperm(len(self._indices), generator=generator)[:num_samples]]
        order = order.to(self._data.device)
        moves = self._moves(generator)
        for start in range(0, num_samples, block_size):
            block = order[start : start + block_size]
            images = self._data.take(block, moves_B3=None if moves is None else moves[start : start + block_size])
            labels = self._data.labels_N.index_select(0, block)
            yield from zip(_split(images, self._batch_size), _split(labels, self._batch_size), strict=True)

    @property
    def num_samples(self) -> int:
        return len(self._indices) // self._batch_size * self._batch_size

    def state(self) -> dict[str, int]:
        """JSON from which `restore` goes on with the next epoch; an epoch under way counts as had."""
        return {"epoch": self._epoch}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on after the epoch at which `state()` was taken."""
        self._epoch = state["epoch"]

    def _moves(self, generator: torch.Generator) -> Tensor | None:
        if not self._names:
            return None
        height, width, _ = self._data.image_shape
        moves = draw_moves(self._names, num=self.num_samples, height=height, width=width, generator=generator)
        return moves.to(self._data.device)


class InOrder:
    """Every sample once, always in the same order and without augmentation; to be iterated over again and again."""

    def __init__(self, data: DeviceImages, *, indices: NDArray[np.int64] | None = None, batch_size: int = 2048) -> None:
        """The samples `indices` in their order, or all; the last batch may be smaller than `batch_size`."""
        chosen = torch.arange(len(data)) if indices is None else torch.from_numpy(np.ascontiguousarray(indices))
        self._data = data
        self._blocks = _split(chosen.to(data.device), batch_size) if len(chosen) else ()

    def __iter__(self) -> Iterator[Batch]:
        """(B, C, H, W) float32 normalised images and (B,) int64 labels."""
        for block in self._blocks:
            yield self._data.take(block), self._data.labels_N.index_select(0, block)


def _split(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = tensor.split(size)  # type: ignore[no-untyped-call]
    return parts


def _shared(array: NDArray[np.generic]) -> Tensor:
    """The array's own memory as a tensor; never to be written, for it may be a mapped file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
