"""Decoded images of this node: a folder of `.npy` files per data set, written once, mapped by every process."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import DTypeLike, NDArray

from hpo.errors import DataError

FORMAT = 1
"""Raised whenever the same source decodes to other arrays: older entries are then made anew."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_BLOCK = 4096


class Writer:
    """Gives out the arrays of a new entry, to be filled in place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], *, dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """An array of zeros of its own file; its space on the disk is already taken."""
        path = self._folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
        if hasattr(os, "posix_fallocate"):
            # A mapped file with holes on a full disk is a SIGBUS in the midst of decoding; this is an OSError now.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        self._arrays[name] = array
        return array

    def finish(self, *, dataset: str, fingerprint: str, classes: Sequence[str]) -> None:
        """Put all on the disk, the description last."""
        mean, std = channel_statistics(self._arrays["train_images"])
        meta = {
            "format": FORMAT,
            "dataset": dataset,
            "fingerprint": fingerprint,
            "classes": list(classes),
            "mean": mean.tolist(),
            "std": std.tolist(),
        }
        for array in self._arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        with (self._folder / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


class Entry:
    """The decoded form of one source in the cache folder; the only one to know its file names."""

    def __init__(self, cache_dir: Path, *, dataset: str, fingerprint: str) -> None:
        self._dataset, self._fingerprint = dataset, fingerprint
        name = re.sub(r"[^\w.-]+", "-", f"{dataset}-{fingerprint}")
        self._folder = cache_dir / name
        self._unfinished = cache_dir / f".{name}.new"
        self._lock = cache_dir / f".{name}.lock"

    def open(self) -> tuple[dict[str, NDArray[Any]], Mapping[str, Any]] | None:
        """Arrays by name and description; None where the entry is not there, or not as it was written."""
        try:
            meta = json.loads((self._folder / "meta.json").read_text(encoding="utf-8"))
            if meta["format"] != FORMAT or meta["fingerprint"] != self._fingerprint:
                return None
            return {name: np.load(self._folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}, meta
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            return None

    def open_or_make(
        self, classes: Sequence[str], decode: Callable[[Writer], None]
    ) -> tuple[dict[str, NDArray[Any]], Mapping[str, Any]]:
        """As `open`; where there is nothing to open, one process of the node decodes and the others wait for it.

        Raises:
            DataError: `decode` raised it, or the cache folder cannot be written.
        """
        if (found := self.open()) is not None:
            return found
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._lock):
                return self.open() or self._make(classes, decode)
        except OSError as error:
            raise DataError(
                f"decoded images cannot be written here: {error.strerror or error}",
                where=str(self._folder.parent),
                remedy="make room, or name another folder in the environment variable HPO_CACHE",
            ) from error

    def _make(
        self, classes: Sequence[str], decode: Callable[[Writer], None]
    ) -> tuple[dict[str, NDArray[Any]], Mapping[str, Any]]:
        for leftover in (self._unfinished, self._folder):
            shutil.rmtree(leftover, ignore_errors=True)
        self._unfinished.mkdir()
        try:
            writer = Writer(self._unfinished)
            decode(writer)
            writer.finish(dataset=self._dataset, fingerprint=self._fingerprint, classes=classes)
            self._unfinished.rename(self._folder)
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)
        if (made := self.open()) is None:
            raise OSError(f"{self._folder} cannot be read back")
        return made


def channel_statistics(images_NHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation per channel as (C,) float32, pixels scaled to [0, 1]; the sums are exact."""
    num_channels = images_NHWC.shape[-1]
    total, squares = np.zeros(num_channels, np.uint64), np.zeros(num_channels, np.uint64)
    for start in range(0, len(images_NHWC), _BLOCK):
        block = images_NHWC[start : start + _BLOCK]
        # Over the images first, whose values lie far apart: five times the speed of a sum over pixels.
        total += block.sum(axis=0, dtype=np.uint32).sum(axis=(0, 1), dtype=np.uint64)
        squares += np.square(block, dtype=np.uint16).sum(axis=0, dtype=np.uint32).sum(axis=(0, 1), dtype=np.uint64)
    count = images_NHWC.size / num_channels
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return (mean / 255).astype(np.float32), np.where(std > 0, std / 255, 1.0).astype(np.float32)
