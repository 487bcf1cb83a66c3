"""Data in tables: one row a sample, numbers in its columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo.declared import Declared, described
from hpo.errors import DataError, ExperimentError
from hpo.training.data.chunks import Chunks, Sizes
from hpo.training.data.samples import Samples


class TableData(Declared):
    """Declares a table that fits into memory, in two acts: the driver finds it, each process reads it.

    Subclasses have a field `test_ratio`: the share of the rows that is held out as the test part, always the same ones,
    where the data bring none; classes in proportion. 0: none.

    Laws, which an inheritable test class holds against every table:
      * `read(find(…))` twice gives equal samples: (N, F) finite float64 inputs, and one target or row of them each;
      * a declaration, what it found and a second, equal declaration in another process are all it takes.
    """

    test_ratio: float

    @property
    @abstractmethod
    def name(self) -> str:
        """What rows in the store call it."""

    def check(self) -> None:
        ratio = self.test_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
            raise ExperimentError(
                f"{ratio!r} is not a number of at least 0 and below 1", where="test_ratio", remedy="e.g. 0.2"
            )

    def find(self, data_dir: Path | None) -> Path | None:
        """Where the table lies, absolute; None where it has no place of its own.

        Raises:
            DataError: It is nowhere.
        """
        return None

    @abstractmethod
    def read(self, path: Path | None) -> Samples:
        """The whole table, from where it was found.

        Raises:
            DataError: It is missing on this node, damaged, or holds what is no number.
        """

    def in_chunks(
        self, num_chunks: int, by: str | Sizes = "random", *, mode: str = "cumulative", replay: float | None = None
    ) -> ChunkedTable:
        """The same table as growing data: a trial gets chunk after chunk of the train part; see `Chunks`."""
        return ChunkedTable(self, Chunks.of(num_chunks, by, mode, replay))


@dataclass(frozen=True)
class SklearnTable(TableData):
    """A table that comes with scikit-learn.

    Attributes:
        title: "diabetes" (442 rows, 10 features, one number: regression), "linnerud" (20, 3, three numbers), or for
            classification "iris" (150, 4, 3 classes), "wine" (178, 13, 3), "breast_cancer" (569, 30, 2), "digits"
            (1,797, 64, 10). Features and targets are in their own units.
        test_ratio: See `TableData`.
    """

    TITLES: ClassVar[tuple[str, ...]] = ("diabetes", "linnerud", "iris", "wine", "breast_cancer", "digits")

    title: str
    test_ratio: float = 0.2

    @property
    def name(self) -> str:
        return self.title

    def check(self) -> None:
        super().check()
        if self.title not in self.TITLES:
            raise ExperimentError(
                f"{self.title!r} is not one of {', '.join(map(repr, self.TITLES))}",
                where="title",
                remedy='e.g. SklearnTable("diabetes")',
            )

    def read(self, path: Path | None) -> Samples:
        from sklearn import datasets  # takes a second and a half, and few runs need it

        settings = {"scaled": False} if self.title == "diabetes" else {}
        inputs, targets = getattr(datasets, f"load_{self.title}")(return_X_y=True, **settings)
        return checked(Samples(inputs, targets), where=self.title)


Pair = tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True, eq=False)
class Arrays(TableData):
    """A table out of Python.

    Attributes:
        arrays: Features (N, F) and targets (N,) or (N, K); or a function that returns them, the same each time. A
            function is called once in the driver and once in each process.
        title: What rows in the store call it.
        test_ratio: See `TableData`.
    """

    arrays: Callable[[], Pair] | Pair
    title: str = "arrays"
    test_ratio: float = 0.2

    @property
    def name(self) -> str:
        return self.title

    def describe(self) -> dict[str, Any]:
        content = described(self.arrays) if callable(self.arrays) else self.read(None).fingerprint
        return {"class": "arrays", "arrays": content, "title": self.title, "test_ratio": self.test_ratio}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arrays) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash((self.title, self.test_ratio))

    def read(self, path: Path | None) -> Samples:
        inputs, targets = self.arrays() if callable(self.arrays) else self.arrays
        return checked(Samples(np.asarray(inputs), np.asarray(targets)), where=self.title)


@dataclass(frozen=True)
class ChunkedTable(TableData):
    """A table whose train part a trial gets in chunks; `TableData.in_chunks` makes it.

    Attributes:
        data: The table.
        chunks: How its rows are divided. Features and numbers to be predicted are normalised by the rows of the first
            chunk alone.
    """

    data: TableData
    chunks: Chunks

    @property
    def test_ratio(self) -> float:  # type: ignore[override]
        """That of the table."""
        return self.data.test_ratio

    @property
    def name(self) -> str:
        return self.data.name

    def check(self) -> None:
        self.data.check()
        self.chunks.check()

    def find(self, data_dir: Path | None) -> Path | None:
        return self.data.find(data_dir)

    def read(self, path: Path | None) -> Samples:
        return self.data.read(path)

    def in_chunks(
        self, num_chunks: int, by: str | Sizes = "random", *, mode: str = "cumulative", replay: float | None = None
    ) -> ChunkedTable:
        return self.data.in_chunks(num_chunks, by, mode=mode, replay=replay)


def checked(samples: Samples, *, where: str) -> Samples:
    """The samples with float64 inputs, once it is sure that all of their numbers are finite.

    Raises:
        DataError: They are not, or no table.
    """
    if samples.inputs.ndim != 2 or not samples.inputs.shape[1]:
        raise DataError(
            f"features have shape {samples.inputs.shape}, not (rows, features)",
            where=where,
            remedy="give one row a sample",
        )
    if samples.targets.dtype.kind not in "biufU":
        raise DataError(
            f"targets of type {samples.targets.dtype} are neither numbers nor names",
            where=where,
            remedy="give numbers, or text for classes, and leave none out",
        )
    inputs = numbers(samples.inputs, "features", where=where)
    for name, array in (("features", inputs), ("targets", samples.targets)):
        bad = ~np.isfinite(array) if np.issubdtype(array.dtype, np.floating) else np.zeros(len(array), np.bool_)
        if bad.any():
            raise DataError(
                f"{np.count_nonzero(bad)} of the {name} are missing or infinite, the first in row "
                f"{int(np.argwhere(bad)[0][0])}",
                where=where,
                remedy="fill them in, or leave those rows out",
            )
    test = None if samples.test is None else checked(samples.test, where=f"{where}: test part")
    return Samples(inputs, samples.targets, test)


def numbers(values: NDArray[Any], name: str, *, where: str) -> NDArray[np.float64]:
    """The values as float64.

    Raises:
        DataError: One is no number; it and `name` are told.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        example = next((value for value in np.ravel(values) if not _is_number(value)), None)
        raise DataError(
            f"{name!r} holds {str(example)!r}, which is no number",
            where=where,
            remedy="encode it as numbers, or name the columns to predict from: features=(…)",
        ) from None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
