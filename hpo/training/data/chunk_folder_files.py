"""Shards in files, read block by block: arrays of `.npz` files, columns of Parquet files, images in class folders."""

from __future__ import annotations

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hpo.errors import DataError
from hpo.training.data.class_images import ClassFolders
from hpo.training.data.decode import Fit
from hpo.training.data.listing import File, Layout
from hpo.training.data.sources import digest_of_files
from hpo.training.data.tables import numbers

_BLOCK_BYTES = 2**20


class Block(NamedTuple):
    """Values of some rows and columns of a table: float64, finite."""

    rows: slice
    columns: slice
    values: NDArray[np.float64]


class TableShard(ABC):
    """A shard that holds rows of a table.

    Args:
        path: Of its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the file's content.

        Raises:
            DataError: It cannot be read.
        """
        return digest_of_files({"shard": self.path})

    @property
    @abstractmethod
    def features(self) -> tuple[str, ...]:
        """What to predict from: names of columns, or of an array.

        Raises:
            DataError: It is not there; or the file cannot be read, as of all that follows.
        """

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Numbers of one row."""

    @abstractmethod
    def targets(self) -> NDArray[Any]:
        """(N,) or (N, K): what is to be predicted, none of it missing."""

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """All values, each once."""


class NpzTable(TableShard):
    """A table in an `.npz` file.

    Args:
        path: Of the file.
        inputs: Name of the array (N, F) to predict from.
        targets: Name of the array (N,) or (N, K) to be predicted.
    """

    def __init__(self, path: Path, *, inputs: str, targets: str) -> None:
        super().__init__(path)
        self._inputs, self._targets = inputs, targets

    @property
    def features(self) -> tuple[str, ...]:
        return (self._inputs,)

    @property
    def num_features(self) -> int:
        shape = self._array.shape
        if len(shape) != 2 or not shape[1]:
            raise DataError(
                f"the array {self._inputs!r} has shape {shape}, not (rows, features)",
                where=str(self.path),
                remedy="save one row a sample; images are called images and labels, and need no targets",
            )
        return shape[1]

    def targets(self) -> NDArray[Any]:
        targets = NpzArray(self.path, self._targets).whole()
        if len(targets) != self._array.shape[0]:
            raise DataError(
                f"{self._array.shape[0]} rows of {self._inputs!r} and {len(targets)} of {self._targets!r} "
                "are not as many",
                where=str(self.path),
                remedy="save one target for each row",
            )
        return _complete(targets, self._targets, self.path)

    def blocks(self) -> Iterator[Block]:
        for start, values in self._array.blocks():
            part = slice(start, start + len(values))
            finite = _finite(numbers(values, self._inputs, where=str(self.path)), self._inputs, self.path)
            yield Block(part, slice(None), finite)

    @cached_property
    def _array(self) -> NpzArray:
        return NpzArray(self.path, self._inputs)


class ParquetTable(TableShard):
    """A table in a Parquet file.

    Args:
        path: Of the file.
        targets: Names of the columns to be predicted; of one, as text, targets are (N,).
        features: Names of the columns to predict from; none: all others.
    """

    def __init__(self, path: Path, *, targets: str | tuple[str, ...], features: tuple[str, ...] = ()) -> None:
        super().__init__(path)
        self._targets, self._named = targets, features

    @cached_property
    def features(self) -> tuple[str, ...]:
        found = self._named or tuple(name for name in self._columns if name not in self._target_names)
        if not found:
            raise DataError("no column is left to predict from", where=str(self.path), remedy="name fewer as targets")
        return tuple(map(self._there, found))

    @property
    def num_features(self) -> int:
        return len(self.features)

    def targets(self) -> NDArray[Any]:
        columns = [self._column(self._there(name)) for name in self._target_names]
        for name, column in zip(self._target_names, columns, strict=True):
            _complete(column, name, self.path)
        return columns[0] if isinstance(self._targets, str) else np.stack(columns, axis=1)

    def blocks(self) -> Iterator[Block]:
        for index, name in enumerate(self.features):
            values = numbers(self._column(name), name, where=str(self.path))
            yield Block(slice(None), slice(index, index + 1), _finite(values, name, self.path)[:, None])

    @property
    def _target_names(self) -> tuple[str, ...]:
        return (self._targets,) if isinstance(self._targets, str) else self._targets

    @cached_property
    def _columns(self) -> list[str]:
        with _damage(self.path):
            from pyarrow import parquet

            names: list[str] = parquet.ParquetFile(self.path).schema_arrow.names
        return names

    def _there(self, name: str) -> str:
        """The name, of which it is sure that it is a column's."""
        if name not in self._columns:
            raise DataError(
                f"it has no column {name!r}", where=str(self.path), remedy=f"it has {', '.join(self._columns)}"
            )
        return name

    def _column(self, name: str) -> NDArray[Any]:
        with _damage(self.path):
            from pyarrow import parquet

            column = parquet.ParquetFile(self.path).read(columns=[name]).column(name)
            values: NDArray[Any] = column.to_numpy()
        is_text = values.dtype == object and all(isinstance(value, str) for value in values)
        return values.astype(np.str_) if is_text else values


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]


class NpzArray:
    """One array of an `.npz` file, of which no more is read than is asked for.

    Args:
        path: Of the file.
        name: Of the array.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape.

        Raises:
            DataError: The file cannot be read, or has no such array, as of all that follows.
        """
        return self._header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        return self._header.dtype

    def whole(self) -> NDArray[Any]:
        """All of it."""
        with self._opened() as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        if not array.ndim:
            raise DataError(
                f"the array {self._name!r} is a single value", where=str(self._path), remedy="save one for each sample"
            )
        return array

    def blocks(self, *, block_bytes: int = _BLOCK_BYTES) -> Iterator[tuple[int, NDArray[Any]]]:
        """Rows that take about so many bytes, one block after the other, and the row where each begins."""
        header = self._header
        if header.is_fortran or not header.shape:
            yield 0, self.whole()
            return
        row_bytes = max(int(np.prod(header.shape[1:])) * header.dtype.itemsize, 1)
        num = max(block_bytes // row_bytes, 1)
        with self._opened() as file:
            _header_of(file)
            for start in range(0, header.shape[0], num):
                rows = min(num, header.shape[0] - start)
                data = file.read(rows * row_bytes)
                if len(data) < rows * row_bytes:
                    raise EOFError(f"{self._name} is cut off")
                yield start, np.frombuffer(data, header.dtype).reshape(rows, *header.shape[1:])

    @cached_property
    def _header(self) -> _Header:
        with self._opened() as file:
            header = _header_of(file)
        if header.dtype.hasobject:
            raise DataError(
                f"the array {self._name!r} holds Python objects", where=str(self._path), remedy="save plain numbers"
            )
        return header

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with _damage(self._path), zipfile.ZipFile(self._path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if self._name not in names:
                raise DataError(
                    f"it holds no array {self._name!r}",
                    where=str(self._path),
                    remedy=f"it holds {', '.join(names) or 'nothing'}",
                )
            with archive.open(f"{self._name}.npy") as file:
                yield file


class ShardFolder(ClassFolders):
    """A shard that is a folder of class folders; it may lack some of the classes.

    Args:
        path: The folder.
        classes: All that there are; None: those that it holds.
        fit: What its images must measure; None: what the first one does.
        size: To which images are brought; None: all must be of one size.
    """

    def __init__(
        self, path: Path, *, classes: tuple[str, ...] | None, fit: tuple[int, int] | None, size: int | None
    ) -> None:
        super().__init__(path, layout=Layout(classes=classes, size=size, crop=size is not None, is_shard=True))
        self._own_fit = fit

    @cached_property
    def _parts(self) -> dict[str, Path]:
        return {"train": self.path}

    def _fit(self, read: Callable[[File], bytes]) -> Fit:
        if self._own_fit is None or self._layout.size is not None:
            return super()._fit(read)
        height, width = self._own_fit
        return Fit(height, width, crop=False, because=f"those of the first shard are {height} x {width}")


def class_codes(values: NDArray[Any], classes: Sequence[str], *, where: str) -> NDArray[np.int64]:
    """(N,) labels: places in `classes` of the values' names.

    Raises:
        DataError: One of them is not there.
    """
    if values.ndim != 1:
        raise DataError(
            f"classes have shape {values.shape}, not (samples,)", where=where, remedy="give one class a sample"
        )
    found, places = np.unique(values, return_inverse=True)
    names = [str(name) if values.dtype.kind == "U" else f"{name:g}" for name in found]
    labels = {name: label for label, name in enumerate(classes)}
    for name in names:
        if name not in labels:
            raise DataError(
                f"{name!r} is not one of the {len(classes)} classes that the data set has",
                where=where,
                remedy=f"name all classes from the start; the classes are {', '.join(classes[:12])}",
            )
    coded: NDArray[np.int64] = np.array([labels[name] for name in names], np.int64)[places]
    return coded


def _header_of(file: IO[bytes]) -> _Header:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return _Header(*read(file))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns what a damaged file brings about into a DataError that names it."""
    import pyarrow as pa

    try:
        yield
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        pa.ArrowException,
    ) as error:
        raise DataError(
            f"the shard cannot be read ({' '.join(str(error).split())[:200]})",
            where=str(path),
            remedy="look at the file; while it is being written, let its name end in .tmp",
        ) from error


def _complete(values: NDArray[Any], name: str, path: Path) -> NDArray[Any]:
    """The targets, of which it is sure that they are numbers or names, and all there."""
    if values.dtype.kind not in "biufU":
        raise DataError(
            f"{name!r} of type {values.dtype} holds neither numbers nor names, or some are missing",
            where=str(path),
            remedy="give numbers, or text for classes, and leave none out",
        )
    return _finite(values, name, path) if values.dtype.kind == "f" else values


def _finite(values: NDArray[Any], name: str, path: Path) -> NDArray[Any]:
    bad = np.count_nonzero(~np.isfinite(values))
    if bad:
        raise DataError(
            f"{bad} of {name!r} are missing or infinite",
            where=str(path),
            remedy="fill them in, or leave those rows out",
        )
    return values
