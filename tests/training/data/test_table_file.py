from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import csv, parquet

from hpo.errors import DataError, ExperimentError
from hpo.training.data import TableData, TableFile
from tests.training.data.table_contract import TableDataContract


def columns(num: int = 12) -> pa.Table:
    numbers = np.arange(num)
    return pa.table({"a": numbers * 1.5, "b": numbers % 3, "kind": [f"k{n % 2}" for n in numbers], "y": numbers**2})


def csv_file(path: Path, table: pa.Table | None = None) -> Path:
    csv.write_csv(columns() if table is None else table, path)
    return path


class TestCsv(TableDataContract):
    @pytest.fixture
    def data(self, tmp_path: Path) -> TableData:
        return TableFile(csv_file(tmp_path / "x.csv"), targets="y", features=("a", "b"))


class TestParquet(TableDataContract):
    @pytest.fixture
    def data(self, tmp_path: Path) -> TableData:
        parquet.write_table(columns().drop_columns(["kind"]), tmp_path / "x.parquet")
        csv_file(tmp_path / "test.csv", columns(4))
        return TableFile(tmp_path / "x.parquet", targets=("y", "b"), test_path="test.csv", features=("a",))


class TestNpz(TableDataContract):
    @pytest.fixture
    def data(self, tmp_path: Path) -> TableData:
        parts = {"features": np.zeros((5, 2)), "test_features": np.ones((3, 2), np.float32)}
        np.savez(tmp_path / "x.npz", targets=np.arange(5), test_targets=np.arange(3), **parts)
        return TableFile(tmp_path / "x.npz")


def read(path: Path, **how: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    table = TableFile(path, **how)
    table.check()
    samples = table.read(table.find(None))
    return samples.inputs, samples.targets


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".csv":
        csv_file(path)
    else:
        parquet.write_table(columns(), path)
    numbers = np.arange(12)
    inputs, targets = read(path, targets="kind")
    assert inputs.tolist() == [[n * 1.5, n % 3, n**2] for n in numbers]
    assert targets.tolist() == [f"k{n % 2}" for n in numbers]
    inputs, targets = read(path, targets=("y", "a"), features=("b",))
    assert inputs.tolist() == [[n % 3] for n in numbers]
    assert targets.tolist() == [[n**2, n * 1.5] for n in numbers]


def test_a_relative_path_is_found_from_the_current_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    csv_file(tmp_path / "data" / "x.csv")
    csv_file(tmp_path / "data" / "test.csv", columns(3))
    monkeypatch.chdir(tmp_path)
    table = TableFile("data/x.csv", targets="y", features=("a",), test_path="test.csv")
    found = table.find(None)
    monkeypatch.chdir("/")
    samples = table.read(found)
    assert samples.test is not None
    assert (len(samples), len(samples.test)) == (12, 3)


def test_the_test_part_has_the_same_columns(tmp_path: Path) -> None:
    csv_file(tmp_path / "x.csv", columns().drop_columns(["kind"]))
    csv_file(tmp_path / "test.csv", columns().drop_columns(["kind", "b"]))
    with pytest.raises(DataError, match=r"a sample of the test part .* \(\(1,\), \(\)\), .* \(\(2,\), \(\)\)\n  give"):
        read(tmp_path / "x.csv", targets="y", test_path="test.csv")


def test_text_and_gaps_are_named(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"x\.csv: 'kind' holds 'k0', which is no number\n  encode it as numbers"):
        read(path, targets="y")
    with pytest.raises(DataError, match=r"it has no column 'price'\n  it has a, b, kind, y"):
        read(path, targets="price")
    with pytest.raises(DataError, match="no column is left to predict from\n  name fewer as targets"):
        read(path, targets=("a", "b", "kind", "y"))
    path.write_text("a,y\n1,2\n,3\n")
    with pytest.raises(DataError, match="1 of the features are missing or infinite, the first in row 1"):
        read(path, targets="y")


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.npz"])
def test_what_is_missing_or_damaged_is_named(tmp_path: Path, name: str) -> None:
    how = {} if name == "x.npz" else {"targets": "y"}
    with pytest.raises(DataError, match=f"{name}: there is no such file\n  put it on a file system that all nodes"):
        read(tmp_path / name, **how)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}: it cannot be read \(.*\)\n  look at the file"):
        read(tmp_path / name, **how)


def test_arrays_of_other_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    with pytest.raises(DataError, match=r"x\.npz: it holds x\n  save it with np\.savez\(path, features=…, targets=…\)"):
        read(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", features=np.zeros((3, 1)))
    with pytest.raises(DataError, match=r"it holds no array 'targets'\n  it holds features"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"path": "x.txt"}, r"path: 'x\.txt' is not the path of a \.csv, \.parquet, \.npz file"),
        ({"path": 3}, r"path: 3 is not the path"),
        ({"path": "x.csv", "targets": "y", "test_path": "y"}, r"test_path: 'y' is not the path"),
        ({"path": "x.csv"}, r"targets: \(\) does not go with x\.csv: .*\n  name the columns"),
        ({"path": "x.npz", "targets": "y"}, r"targets: 'y' does not go with x\.npz"),
    ],
)
def test_a_wrong_declaration_is_named(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        TableFile(**how).check()
