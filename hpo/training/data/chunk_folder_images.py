"""Shards of images: decoded into the node's cache one by one, and mapped from there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.errors import DataError
from hpo.training.data import cache
from hpo.training.data.batches import Batches, Buffers, StoredImages
from hpo.training.data.chunk_folder_files import NpzArray, ShardFolder, class_codes
from hpo.training.data.chunk_folder_held import HeldShards
from hpo.training.data.draws import Draws
from hpo.training.data.epochs import Drawn, Indices, to_device
from hpo.training.data.sources import digest, digest_of_files
from hpo.training.learning import Batch


class DecodedShard(NamedTuple):
    """A shard's images, mapped from the node's cache.

    Attributes:
        images_NHWC: uint8.
        labels_N: int64.
        mean: (C,) float32, pixels scaled to [0, 1].
        std: (C,) float32 likewise.
    """

    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]


class ImageShard(ABC):
    """A shard that holds images.

    Args:
        path: Of its folder or file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits of its content.

        Raises:
            DataError: It cannot be read, as of all that follows.
        """

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Images in it, each of a class that there is."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of its images."""

    @abstractmethod
    def decode(self, writer: cache.Writer) -> None:
        """Write its arrays, of which the test part is empty."""

    def open(self, cache_dir: Path, *, fingerprint: str, classes: tuple[str, ...], size: int | None) -> DecodedShard:
        """Its images; decoded first where no process of this node has done so.

        Raises:
            DataError: It is missing on this node, damaged, or has another fingerprint; or the cache cannot be written.
        """
        key = digest(fingerprint, str(size), *classes)
        entry = cache.Entry(cache_dir, dataset=f"chunk:{self.path.name}", fingerprint=key)

        def decode(writer: cache.Writer) -> None:
            check_shard(self.path, self.fingerprint, fingerprint)
            self.decode(writer)

        arrays, meta = entry.open_or_make(classes, decode)
        mean, std = (np.asarray(meta[name], np.float32) for name in ("mean", "std"))
        return DecodedShard(arrays["train_images"], arrays["train_labels"], mean, std)


class FolderShard(ImageShard):
    """Class folders with images.

    Args:
        path: The folder.
        classes: All that there are; None: those in it.
        shape: What its images must measure, as (height, width); None: what the first one does.
        size: To which they are brought; None: they are of one size.
    """

    def __init__(
        self, path: Path, *, classes: tuple[str, ...] | None, shape: tuple[int, int] | None, size: int | None
    ) -> None:
        super().__init__(path)
        self.source = ShardFolder(path, classes=classes, fit=shape, size=size)

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint()

    @property
    def classes(self) -> tuple[str, ...]:
        """All that there are."""
        return self.source.listing.classes

    @property
    def num_samples(self) -> int:
        return len(self.source.listing.files["train"])

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        return self.source.survey().image_shape

    def decode(self, writer: cache.Writer) -> None:
        self.source.decode(writer)


class NpzShard(ImageShard):
    """The arrays `images`, uint8 (N, H, W, C) or (N, H, W), and `labels` (N,) of an `.npz` file.

    Args:
        path: The file.
        classes: All that there are.
    """

    def __init__(self, path: Path, *, classes: tuple[str, ...]) -> None:
        super().__init__(path)
        self._images, self._classes = NpzArray(path, "images"), classes

    @property
    def fingerprint(self) -> str:
        return digest_of_files({"shard": self.path})

    @property
    def num_samples(self) -> int:
        return len(self._labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        shape, kind = self._images.shape, self._images.dtype
        if len(shape) not in (3, 4) or kind != np.uint8:
            raise DataError(
                f"its images are {kind} of shape {shape}, not uint8 (images, height, width, channels)",
                where=str(self.path),
                remedy="save them so; what are no images needs targets: ChunkFolder(…, targets=…)",
            )
        height, width, channels = (*shape[1:], 1)[:3]
        return height, width, channels

    def decode(self, writer: cache.Writer) -> None:
        out = writer.array("train_images", (self.num_samples, *self.image_shape))
        for start, images in self._images.blocks():
            out[start : start + len(images)] = images.reshape(len(images), *self.image_shape)
        writer.array("train_labels", (self.num_samples,), dtype=np.int64)[:] = self._labels
        writer.array("test_images", (0, *self.image_shape))
        writer.array("test_labels", (0,), dtype=np.int64)

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        labels = class_codes(NpzArray(self.path, "labels").whole(), self._classes, where=str(self.path))
        if len(labels) != self._images.shape[0]:
            raise DataError(
                f"{self._images.shape[0]} images and {len(labels)} labels are not as many",
                where=str(self.path),
                remedy="save one label for each image",
            )
        return labels


def check_shard(path: Path, fingerprint: str, expected: str) -> None:
    """Raise DataError, with both fingerprints, where a shard on this node is not the one that was located."""
    if fingerprint != expected:
        raise DataError(
            f"its fingerprint is {fingerprint} here, but {expected} where the run was started",
            where=str(path),
            remedy="give every node the same shards, never change one, or start again with what is there now",
        )


class ShardBatches(Batches):
    """Training batches of images that come in shards.

    Args:
        data: The images.
        kept: What is kept with each shard (from 0) of those before.
        how: As `Batches` has it.
    """

    def __init__(self, data: ShardImages, *, kept: Callable[[int], Indices], **how: Any) -> None:
        super().__init__(data, **how)
        self._shards, self._kept = data.held, kept

    def feed(self, drawn: Drawn) -> Iterator[bool]:
        index = (self.chunk or 1) - 1
        self._shards.bring(index, self._kept(index))
        yield from super().feed(drawn)


class ShardImages(StoredImages):
    """The images of one shard, and what is kept of those before.

    Args:
        held: Images (N, H, W, C) uint8 and labels (N,), on the device or the host.
        image_shape, mean, std, device: See `StoredImages`.
    """

    def __init__(
        self,
        held: HeldShards,
        image_shape: tuple[int, int, int],
        *,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        device: torch.device,
    ) -> None:
        super().__init__(image_shape, mean=mean, std=std, device=device)
        self.held = held

    def __len__(self) -> int:
        return self.held.num_samples

    def feed(self, order_N: Tensor, buffers: Buffers) -> Iterator[bool]:
        for images, labels in self._taken(order_N.numpy(), len(buffers.rows_B)):
            buffers.images_NHWC.copy_(images)
            buffers.labels_B.copy_(labels)
            yield True

    def in_order(self, indices: Indices, *, batch_size: int) -> Iterable[Batch]:
        for images, labels in self._taken(indices, batch_size):
            yield self._normalised(images).permute(0, 3, 1, 2), labels

    def _taken(self, rows: Indices, batch_size: int) -> Iterator[Batch]:
        for images, labels in self.held.batches(rows, batch_size):
            if images.device.type == self.device.type:
                yield images, labels
            else:
                yield to_device(images, self.device), to_device(labels, self.device)

    def _new_buffers(self, batch_size: int, draws: Draws) -> Buffers:
        rows = torch.arange(batch_size, device=self.device)
        images = torch.zeros((batch_size, *self.image_shape), dtype=torch.uint8, device=self.device)
        return Buffers(rows_B=rows, labels_B=self._int64(batch_size), draws=draws, images_NHWC=images)
