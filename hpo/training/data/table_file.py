"""A table in a file: comma-separated, Parquet, or NumPy's .npz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError, ExperimentError
from hpo.training.data.samples import Samples
from hpo.training.data.tables import TableData, checked, numbers

_SUFFIXES = (".csv", ".parquet", ".npz")


@dataclass(frozen=True)
class TableFile(TableData):
    """A table in a file.

    Attributes:
        path: A .csv file with a header, or a .parquet file; or an .npz file with the arrays `features` (N, F) and
            `targets` (N,) or (N, K), and perhaps `test_features` and `test_targets`. A relative path is relative to
            the current folder.
        targets: Names of the columns to be predicted; only for .csv and .parquet.
        features: Names of the columns to predict from; none: all others.
        test_path: A file of the same columns or arrays that is the test part; a relative path is relative to the
            folder of `path`. None: `test_ratio` of the rows are the test part.
        test_ratio: See `TableData`.
    """

    path: str | Path
    targets: str | tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    test_path: str | Path | None = None
    test_ratio: float = 0.2

    @property
    def name(self) -> str:
        return f"table:{Path(self.path).name}"

    def check(self) -> None:
        super().check()
        for field in ("path", "test_path"):
            path = getattr(self, field)
            if path is not None and (not isinstance(path, (str, Path)) or Path(path).suffix not in _SUFFIXES):
                raise ExperimentError(
                    f"{path!r} is not the path of a {', '.join(_SUFFIXES)} file", where=field, remedy="convert it"
                )
        if (Path(self.path).suffix == ".npz") == bool(self.targets):
            raise ExperimentError(
                f"{self.targets!r} does not go with {Path(self.path).name}: columns have names in .csv and .parquet, "
                "arrays in .npz are called features and targets",
                where="targets",
                remedy='name the columns to be predicted of a .csv or .parquet file, e.g. targets="price"',
            )

    def find(self, data_dir: Path | None) -> Path:
        return self._there(Path(self.path).expanduser().absolute())

    def read(self, path: Path | None) -> Samples:
        path = self._there(self.find(None) if path is None else path)
        samples = self._from(path)
        if self.test_path is None:
            return samples
        test_path = self._there(path.parent / Path(self.test_path).expanduser())
        return Samples(samples.inputs, samples.targets, self._from(test_path))

    def _from(self, path: Path) -> Samples:
        return _from_npz(path) if path.suffix == ".npz" else self._from_columns(path)

    def _there(self, path: Path) -> Path:
        if not path.exists():
            raise DataError(
                "there is no such file", where=str(path), remedy="put it on a file system that all nodes share"
            )
        return path

    def _from_columns(self, path: Path) -> Samples:
        columns = _columns(path)
        wanted = (self.targets,) if isinstance(self.targets, str) else self.targets
        features = self.features or tuple(name for name in columns if name not in wanted)
        for name in (*wanted, *features):
            if name not in columns:
                raise DataError(f"it has no column {name!r}", where=str(path), remedy=f"it has {', '.join(columns)}")
        if not features:
            raise DataError("no column is left to predict from", where=str(path), remedy="name fewer as targets")
        inputs = np.stack([numbers(columns[name], name, where=str(path)) for name in features], axis=1)
        targets = [np.asarray(columns[name]) for name in wanted]
        return checked(Samples(inputs, targets[0] if len(targets) == 1 else np.stack(targets, axis=1)), where=str(path))


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    """Columns by name; a missing number is NaN."""
    import pyarrow as pa

    try:
        if path.suffix == ".csv":
            from pyarrow import csv

            table = csv.read_csv(path)
        else:
            from pyarrow import parquet

            table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"it cannot be read ({' '.join(str(error).split())[:200]})", where=str(path), remedy="look at the file"
        ) from error
    return {name: _array(table.column(name)) for name in table.column_names}


def _array(column: Any) -> NDArray[Any]:
    array: NDArray[Any] = column.to_numpy()
    if array.dtype == object and all(isinstance(value, str) for value in array):
        return array.astype(np.str_)
    return array


def _from_npz(path: Path) -> Samples:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"it cannot be read ({' '.join(str(error).split())[:200]})", where=str(path), remedy="look at the file"
        ) from error
    parts = [_pair(arrays, names, path) for names in (("features", "targets"), ("test_features", "test_targets"))]
    if parts[0] is None:
        raise DataError(
            f"it holds {', '.join(arrays) or 'nothing'}",
            where=str(path),
            remedy="save it with np.savez(path, features=…, targets=…)",
        )
    return checked(Samples(parts[0].inputs, parts[0].targets, parts[1]), where=str(path))


def _pair(arrays: dict[str, NDArray[Any]], names: Sequence[str], path: Path) -> Samples | None:
    found = [name for name in names if name in arrays]
    if not found:
        return None
    if len(found) < len(names):
        missing = next(name for name in names if name not in arrays)
        raise DataError(f"it holds no array {missing!r}", where=str(path), remedy=f"it holds {', '.join(arrays)}")
    return Samples(arrays[names[0]], arrays[names[1]])
