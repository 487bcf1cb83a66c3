"""Images that do not fit on the device: read from the node's mapped file by PyTorch's loader, ahead of the training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hpo.training.data.batches import Buffers, StoredImages
from hpo.training.data.draws import Draws
from hpo.training.data.epochs import Indices
from hpo.training.data.images import Images
from hpo.training.learning import Batch

_Sent = tuple[Tensor, Tensor, torch.cuda.Event | None]
"""Images and labels on the device, and what happens when they have arrived there."""
_AHEAD = 4
"""Batches that each loading process reads ahead."""


class StreamedImages(StoredImages):
    """One part of a data set that stays on the host.

    Processes of PyTorch's `DataLoader` gather batches as uint8, pinned where the device is a GPU; one batch is always
    on its way to the device while another is trained on. What is done with the pixels is done on the device.

    Args:
        images_NHWC: uint8, mapped.
        labels_N: int64.
        mean, std, device: See `StoredImages`.
        num_workers: Processes that read; 0: the training process itself reads.
    """

    def __init__(
        self,
        images_NHWC: NDArray[np.uint8],
        labels_N: NDArray[np.int64],
        *,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        device: torch.device,
        num_workers: int,
    ) -> None:
        height, width, channels = images_NHWC.shape[1:]
        super().__init__((height, width, channels), mean=mean, std=std, device=device)
        self._mapped = _Mapped(images_NHWC, labels_N)
        self._num_workers = num_workers
        self._loaders: dict[str, tuple[_Blocks, DataLoader[Any]]] = {}
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @classmethod
    def train_part(cls, images: Images, *, device: torch.device, num_workers: int) -> StreamedImages:
        """The train part, validation included."""
        part, labels = images.train_images, images.train_labels
        return cls(part, labels, mean=images.mean, std=images.std, device=device, num_workers=num_workers)

    @classmethod
    def test_part(cls, images: Images, *, device: torch.device, num_workers: int) -> StreamedImages:
        """The test part, normalised as the train part is."""
        part, labels = images.test_images, images.test_labels
        return cls(part, labels, mean=images.mean, std=images.std, device=device, num_workers=num_workers)

    def __len__(self) -> int:
        return len(self._mapped)

    def feed(self, order_N: Tensor, buffers: Buffers) -> Iterator[bool]:
        for images, labels in self._loaded("training", order_N.numpy(), batch_size=len(buffers.rows_B)):
            buffers.images_NHWC.copy_(images)
            buffers.labels_B.copy_(labels)
            yield True

    def in_order(self, indices: Indices, *, batch_size: int) -> Iterable[Batch]:
        return _InOrder(self, indices, batch_size)

    def pass_over(self, indices: Indices, *, batch_size: int) -> Iterator[Batch]:
        """The images and labels of some rows, batch by batch."""
        for images, labels in self._loaded("measuring", indices, batch_size=batch_size):
            yield self._normalised(images).permute(0, 3, 1, 2), labels

    def _loaded(self, purpose: str, order: Indices, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches on the device, one ahead of the one that is given out.

        What comes out is free again when the work that follows on the current stream has been done.
        """
        if purpose not in self._loaders:  # its processes are kept from epoch to epoch, and from trial to trial
            self._loaders[purpose] = self._new_loader()
        blocks, loader = self._loaders[purpose]
        blocks.give(order, batch_size)
        in_use: deque[torch.cuda.Event] = deque()
        ahead: _Sent | None = None
        for batch in loader:
            given, ahead = ahead, self._sent(batch)
            if given is not None:
                yield self._arrived(given)
                self._keep_up(in_use)
        if ahead is not None:
            yield self._arrived(ahead)

    def _keep_up(self, in_use: deque[torch.cuda.Event]) -> None:
        """Wait for the work on the last batch but two: else the device would fill with batches that wait for theirs."""
        if self._copying is None:
            return
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        in_use.append(done)
        if len(in_use) > 2:
            in_use.popleft().synchronize()

    def _new_loader(self) -> tuple[_Blocks, DataLoader[Any]]:
        blocks = _Blocks()
        options: dict[str, Any] = {}
        if self._num_workers:
            options = {"num_workers": self._num_workers, "persistent_workers": True, "prefetch_factor": _AHEAD}
        pinned = self.device.type == "cuda"
        # With a generator of its own: it draws once, and no trial's randomness is to depend on whether it has.
        options["generator"] = torch.Generator()
        return blocks, DataLoader(self._mapped, batch_size=None, sampler=blocks, pin_memory=pinned, **options)

    def _sent(self, batch: tuple[Tensor, Tensor]) -> _Sent:
        images, labels = batch
        if self._copying is None:
            return images, labels, None
        with torch.cuda.stream(self._copying):
            images, labels = (part.to(self.device, non_blocking=True) for part in batch)
            return images, labels, self._copying.record_event()

    def _arrived(self, sent: _Sent) -> tuple[Tensor, Tensor]:
        images, labels, copied = sent
        if copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            for tensor in (images, labels):
                tensor.record_stream(current)  # its memory is not given away before the current stream has read it
        return images, labels

    def _new_buffers(self, batch_size: int, draws: Draws) -> Buffers:
        rows = torch.arange(batch_size, device=self.device)
        images = torch.zeros((batch_size, *self.image_shape), dtype=torch.uint8, device=self.device)
        return Buffers(rows_B=rows, labels_B=self._int64(batch_size), draws=draws, images_NHWC=images)


class _InOrder:
    def __init__(self, data: StreamedImages, indices: Indices, batch_size: int) -> None:
        self._data, self._indices, self._batch_size = data, indices, batch_size

    def __iter__(self) -> Iterator[Batch]:
        return self._data.pass_over(self._indices, batch_size=self._batch_size)


class _Mapped(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches out of mapped arrays; sent to another process, it maps the files there again."""

    def __init__(self, images_NHWC: NDArray[np.uint8], labels_N: NDArray[np.int64]) -> None:
        self._images, self._labels = images_NHWC, labels_N

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, rows: Indices) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self._images[rows]), torch.from_numpy(self._labels[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {name: _file_of(array) for name, array in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, kept in state.items():
            setattr(self, name, np.load(kept, mmap_mode="r") if isinstance(kept, str) else kept)


def _file_of(array: NDArray[Any]) -> NDArray[Any] | str:
    """Path of the `.npy` file that an array maps as a whole; else the array."""
    is_whole = isinstance(array, np.memmap) and array.filename is not None and str(array.filename).endswith(".npy")
    return str(array.filename) if isinstance(array, np.memmap) and is_whole else array


class _Blocks(Sampler[Indices]):
    """Gives the loader whole batches of row numbers, others for each pass."""

    def __init__(self) -> None:
        self._blocks: list[Indices] = []

    def give(self, order: Indices, batch_size: int) -> None:
        """Have the next pass go over `order`."""
        self._blocks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def __iter__(self) -> Iterator[Indices]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)
