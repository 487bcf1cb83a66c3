"""CIFAR-10 as its authors publish it: six pickled batches, in a folder or in the archive that is downloaded."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError
from hpo.training.data import cache, tar
from hpo.training.data.decode import read_file
from hpo.training.data.sources import Source, Survey, digest_of_files

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
META = "batches.meta"

_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_NAMES = (*_BATCHES["train"], *_BATCHES["test"], META)
_SHAPE: tuple[Literal[32], Literal[32], Literal[3]] = (32, 32, 3)
_NUM_BYTES = 32 * 32 * 3
_HARMLESS = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError, ImportError, IndexError)


class PythonBatches(Source):
    """The folder `cifar-10-batches-py`, or the archive `cifar-10-python.tar.gz` with that folder."""

    kind = "python"

    def fingerprint(self) -> str:
        if self.path.is_dir():
            return digest_of_files({name: self.path / name for name in _NAMES})
        return digest_of_files({"archive": self.path})

    def survey(self) -> Survey:
        counts = {part: sum(len(labels) for _, labels in self._part(part)) for part in _BATCHES}
        return Survey(self._classes, counts["train"], counts["test"], _SHAPE)

    def decode(self, writer: cache.Writer) -> None:
        for part in _BATCHES:
            batches = self._part(part)
            num = sum(len(labels) for _, labels in batches)
            planes_NCHW = np.concatenate([pixels for pixels, _ in batches]).reshape(num, 3, 32, 32)
            writer.array(f"{part}_images", (num, *_SHAPE))[:] = planes_NCHW.transpose(0, 2, 3, 1)
            labels = writer.array(f"{part}_labels", (num,), dtype=np.int64)
            labels[:] = np.concatenate([labels for _, labels in batches])

    @cached_property
    def _contents(self) -> Mapping[str, bytes]:
        if self.path.is_dir():
            return {name: read_file(self.path / name) for name in _NAMES}
        found = {
            path.name: content
            for path, content, _ in tar.members(self.path)
            if content is not None and path.name in _NAMES
        }
        for name in _NAMES:
            if name not in found:
                raise DataError(
                    f"{name} is not in the archive", where=str(self.path), remedy="remove it, and download it again"
                )
        return found

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        names = tuple(map(str, self._unpickled(META)["label_names"]))
        for part, batches in _BATCHES.items():
            labels = np.concatenate([self._batch(name)[1] for name in batches])
            if labels.size and not 0 <= labels.min() <= labels.max() < len(names):
                raise self._damaged(batches[0], f"a label of the {part} part is not in 0 to {len(names) - 1}")
            counts = np.bincount(labels, minlength=len(names))
            if not counts.all():
                raise self._damaged(batches[0], f"class {names[counts.argmin()]!r} has no images in the {part} part")
        return names

    def _part(self, part: str) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        return [self._batch(name) for name in _BATCHES[part]]

    def _batch(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        batch = self._unpickled(name)
        try:
            pixels, labels = np.asarray(batch["data"]), np.asarray(batch["labels"], np.int64)
        except _DAMAGE as error:
            raise self._damaged(name, str(error)) from error
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _NUM_BYTES):
            raise self._damaged(name, f"pixels are {pixels.dtype} {pixels.shape}, labels {len(labels)}")
        return pixels, labels

    def _unpickled(self, name: str) -> dict[str, Any]:
        try:
            batch = _Arrays(io.BytesIO(self._contents[name]), encoding="latin1").load()
        except _DAMAGE as error:
            raise self._damaged(name, str(error)) from error
        if not isinstance(batch, dict):
            raise self._damaged(name, f"it holds a {type(batch).__name__}, not a dictionary")
        return batch

    def _damaged(self, name: str, why: str) -> DataError:
        return DataError(
            f"{name} is cut off or damaged: {why}", where=str(self.path), remedy="remove it, and download it again"
        )


class _Arrays(pickle.Unpickler):
    """Builds NumPy arrays and plain containers; a pickle that names anything else could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image data has no use for")
        return super().find_class(module, name)
