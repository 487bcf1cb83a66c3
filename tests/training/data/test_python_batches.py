from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hpo.errors import DataError
from hpo.training.data.python_batches import PythonBatches
from tests.training.data import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.python_batches(tmp_path)[0]


def test_cut_off_batch(folder: Path) -> None:
    path = folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cifar-10-batches-py: data_batch_3 is cut off or damaged"):
        PythonBatches(folder).survey()


def test_missing_batch(folder: Path) -> None:
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"data_batch_4: cannot be read: No such file"):
        PythonBatches(folder).fingerprint()


def test_missing_batch_in_the_archive(folder: Path) -> None:
    (folder / "test_batch").unlink()
    path = tiny.archive(folder.parent, folder.parent.parent / "cifar-10-python.tar.gz")
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: test_batch is not in the archive"):
        PythonBatches(path).survey()


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        ({"labels": [0]}, "'data'"),
        ({"data": np.zeros((1, 5), np.uint8), "labels": [0]}, r"pixels are uint8 \(1, 5\), labels 1"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, r"pixels are uint8 \(2, 3072\), labels 1"),
        ([1, 2], "it holds a list, not a dictionary"),
    ],
)
def test_batch_of_something_else(folder: Path, batch: object, why: str) -> None:
    tiny.dump(folder / "data_batch_2", batch)
    with pytest.raises(DataError, match=f"data_batch_2 is cut off or damaged: {why}"):
        PythonBatches(folder).survey()


@pytest.mark.parametrize(
    ("labels", "why"),
    [(range(1, 11), "a label of the test part is not in 0 to 9"), ([0] * 10, "class 'automobile' has no images in")],
)
def test_labels(folder: Path, labels: range, why: str) -> None:
    tiny.dump(folder / "test_batch", {"data": np.zeros((10, 3072), np.uint8), "labels": list(labels)})
    with pytest.raises(DataError, match=why):
        PythonBatches(folder).survey()


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return os.getcwd, ()


def test_a_pickle_runs_nothing(folder: Path) -> None:
    tiny.dump(folder / "batches.meta", {"label_names": _Runs()})
    with pytest.raises(DataError, match=r"batches.meta is cut off or damaged: it asks for posix.getcwd"):
        PythonBatches(folder).survey()
