"""Samples in memory: what goes into a model, what should come out of it, and perhaps a test part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError
from hpo.training.data.sources import digest
from hpo.training.data.split import stratified_split


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and targets of the same samples.

    Attributes:
        inputs: (N, …) numbers.
        targets: (N, …) numbers, or names.
        test: The samples of the test part; None where there is none.

    Raises:
        DataError: There are not as many targets as inputs, or none; or those of the test part have other shapes.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    test: Samples | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets) or not len(self.inputs):
            raise DataError(
                f"{len(self.inputs)} inputs and {len(self.targets)} targets are not as many, or none",
                where="samples",
                remedy="give one target (a number, or a row of them) for each input",
            )
        if self.test is not None and self._shapes != self.test._shapes:
            raise DataError(
                f"a sample of the test part has an input and a target of shapes {self.test._shapes}, "
                f"one of the train part {self._shapes}",
                where="samples",
                remedy="give both parts the same columns",
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.inputs.shape[1:], self.targets.shape[1:]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; other values, types or shapes give others."""
        parts: list[bytes | str] = [self.test.fingerprint if self.test else ""]
        for array in (self.inputs, self.targets):
            parts += [array.dtype.str, str(array.shape), np.ascontiguousarray(array).tobytes()]
        return digest(*parts)

    def held_out(self, ratio: float, *, strata: NDArray[np.int64] | None = None) -> Samples:
        """The samples with a random share `ratio` of them, always the same, as the test part.

        Where there is a test part already, or `ratio` is 0, these samples as they are.

        Args:
            ratio: In [0, 1).
            strata: (N,) class of each, which are held out in proportion; None: plainly at random.
        """
        if self.test is not None or not ratio:
            return self
        classes = np.zeros(len(self), np.int64) if strata is None else strata
        split = stratified_split(classes, train_ratio=1 - ratio, seed=0)
        return replace(self.rows(split.train_indices), test=self.rows(split.val_indices))

    def rows(self, indices: NDArray[np.int64]) -> Samples:
        """These of the samples, without a test part."""
        return Samples(self.inputs[indices], self.targets[indices])

    def check_same(self, fingerprint: str, *, where: str) -> None:
        """Raise DataError, with both fingerprints, where these are not the samples that the run was started with."""
        if fingerprint != self.fingerprint:
            raise DataError(
                f"its fingerprint is {self.fingerprint} here, but {fingerprint} where the run was started",
                where=where,
                remedy="give every node the same data, or start again with the data as it is now",
            )
