"""Images that lie on the device: nothing is read, decoded or copied to it while a trial trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.training.data.batches import Buffers, StoredImages
from hpo.training.data.draws import Draws
from hpo.training.data.epochs import Indices, to_device
from hpo.training.data.images import Images
from hpo.training.learning import Batch

NORMALISED_MB = 64
"""Up to this size a CPU keeps images as normalised float32; else they stay uint8, normalised batch by batch."""


class DeviceImages(StoredImages):
    """One part of a data set on a device, as uint8.

    On a CPU it is the mapped file that all processes of the node share, unless it is small: then each process has
    its own, normalised once.

    Attributes:
        labels_N: int64.
    """

    def __init__(
        self,
        images_NHWC: NDArray[np.uint8],
        labels_N: NDArray[np.int64],
        *,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        device: torch.device,
    ) -> None:
        height, width, channels = images_NHWC.shape[1:]
        super().__init__((height, width, channels), mean=mean, std=std, device=device)
        self.labels_N = shared(labels_N).to(device)
        self.is_normalised = device.type == "cpu" and images_NHWC.size * 4 <= NORMALISED_MB * 2**20
        images = shared(images_NHWC).to(device)
        self._images_NHWC = super()._normalised(images) if self.is_normalised else images

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

    def batch(self, buffers: Buffers) -> Batch:
        images, _ = super().batch(buffers)
        return images, self.labels_N.index_select(0, buffers.rows_B)

    def feed(self, order_N: Tensor, buffers: Buffers) -> Iterator[bool]:
        for rows in to_device(order_N, self.device).split(len(buffers.rows_B)):  # type: ignore[no-untyped-call]
            buffers.rows_B.copy_(rows)
            yield True

    def in_order(self, indices: Indices, *, batch_size: int) -> Iterable[Batch]:
        return _InOrder(self, torch.from_numpy(indices).to(self.device).split(batch_size))  # type: ignore[no-untyped-call]

    def take(self, rows_B: Tensor) -> Batch:
        """The images and labels of some rows."""
        return self._developed(self._images_NHWC, rows_B, {}), self.labels_N.index_select(0, rows_B)

    def _new_buffers(self, batch_size: int, draws: Draws) -> Buffers:
        rows = self._int64(batch_size)
        return Buffers(rows_B=rows, labels_B=rows, draws=draws, images_NHWC=self._images_NHWC)

    def _normalised(self, images_BHWC: Tensor) -> Tensor:
        return images_BHWC if self.is_normalised else super()._normalised(images_BHWC)


class _InOrder:
    def __init__(self, data: DeviceImages, blocks: tuple[Tensor, ...]) -> None:
        self._data, self._blocks = data, blocks

    def __iter__(self) -> Iterator[Batch]:
        return map(self._data.take, self._blocks)


def shared(array: NDArray[np.generic]) -> Tensor:
    """The array's own memory as a tensor; never to be written, for it may be a mapped file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
