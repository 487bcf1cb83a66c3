from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpo.errors import DataError, ExperimentError
from hpo.training.data import Arrays, SklearnTable, TableData
from tests.training.data.table_contract import TableDataContract


def made() -> tuple[NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(30, 4)), generator.integers(0, 2, (30, 3))


class TestSklearnTable(TableDataContract):
    @pytest.fixture
    def data(self, tmp_path: Path) -> TableData:
        return SklearnTable("diabetes")


class TestArraysOfAFunction(TableDataContract):
    @pytest.fixture
    def data(self, tmp_path: Path) -> TableData:
        return Arrays(made, title="made")


class TestArrays(TableDataContract):
    @pytest.fixture
    def data(self, tmp_path: Path) -> TableData:
        return Arrays(made())


@pytest.mark.parametrize(
    ("title", "shape", "targets"),
    [
        ("diabetes", (442, 10), (442,)),
        ("linnerud", (20, 3), (20, 3)),
        ("iris", (150, 4), (150,)),
        ("wine", (178, 13), (178,)),
        ("breast_cancer", (569, 30), (569,)),
        ("digits", (1797, 64), (1797,)),
    ],
)
def test_tables_of_scikit_learn(title: str, shape: tuple[int, ...], targets: tuple[int, ...]) -> None:
    samples = SklearnTable(title).read(None)
    assert samples.inputs.shape == shape
    assert samples.targets.shape == targets
    assert samples.test is None


def test_diabetes_is_in_its_own_units() -> None:
    ages = SklearnTable("diabetes").read(None).inputs[:, 0]
    assert (ages.min(), ages.max()) == (19, 79)


def test_an_unknown_table() -> None:
    with pytest.raises(ExperimentError, match="title: 'boston' is not one of 'diabetes', 'linnerud', 'iris'"):
        SklearnTable("boston").check()


def test_arrays_are_told_apart_by_their_content() -> None:
    inputs, targets = made()
    tables = [Arrays(made()), Arrays((inputs + 1, targets)), Arrays(made), Arrays(made(), title="x")]
    assert len({json.dumps(table.describe()) for table in tables}) == 4
    assert Arrays(made()) == Arrays(made())
    assert Arrays(made()) != Arrays((inputs, 1 - targets))


def test_lists_will_do() -> None:
    samples = Arrays(([[1, 2], [3, 4]], ["a", "b"])).read(None)
    assert samples.inputs.tolist() == [[1, 2], [3, 4]]
    assert samples.targets.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.zeros(3), np.zeros(3)), r"x: features have shape \(3,\), not \(rows, features\)"),
        ((np.zeros((3, 0)), np.zeros(3)), r"x: features have shape \(3, 0\)"),
        (([[1.0], [np.nan], [np.inf]], [1, 2, 3]), "x: 2 of the features are missing or infinite, the first in row 1"),
        (([[1.0], [2.0]], [1.0, np.nan]), "x: 1 of the targets are missing or infinite, the first in row 1"),
        (([["1", "red"]], [1]), "x: 'features' holds 'red', which is no number\n  encode it"),
        (([[1.0]], np.array([None])), "x: targets of type object are neither numbers nor names"),
        (([[1.0], [2.0]], [1]), "samples: 2 inputs and 1 targets are not as many"),
    ],
)
def test_what_is_no_table_is_named(arrays: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Arrays(arrays, title="x").read(None)
