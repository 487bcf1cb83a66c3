"""Shards of every kind, and a process that says how much memory it took to train on some."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from hpo.protocols import Group, Setting
from hpo.training import Regression
from hpo.training.data import ChunkFolder
from hpo.training.feed import FedTask
from hpo.training.models import Mlp
from hpo.training.trainer import ModelTrainer


def table(seed: int, num: int = 60) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Three features of very different scales, and a sum of two of them."""
    inputs = np.random.default_rng(seed).normal(size=(num, 3)) * [1, 1e3, 1e-2] + [0, 1e6, 5]
    return inputs, 40 + 3 * inputs[:, 0] + (inputs[:, 1] - 1e6) / 500


def write_npz(folder: Path, *, num: int = 4, **changed: Any) -> Path:
    folder.mkdir()
    for index in range(num):
        inputs, targets = table(index)
        np.savez(folder / f"{index:03}.npz", **{"inputs": inputs, "targets": targets, **changed})
    return folder


def write_parquet(folder: Path, *, num: int = 4) -> Path:
    folder.mkdir()
    for index in range(num):
        inputs, targets = table(index)
        columns = dict(zip("abc", inputs.T, strict=True))
        parquet.write_table(pa.table({**columns, "y": targets}), folder / f"{index:03}.parquet")
    return folder


def write_classes(folder: Path, labels: list[list[Any]]) -> Path:
    """Shards of rows with these classes."""
    folder.mkdir()
    for index, own in enumerate(labels):
        inputs = np.random.default_rng(index).normal(size=(len(own), 2))
        np.savez(folder / f"{index}.npz", inputs=inputs, targets=np.array(own))
    return folder


def begun(task: FedTask, cache_dir: Path, *, group: Group | None = None, metric: str = "val_loss") -> ModelTrainer:
    """A trainer of the task as it is located now."""
    setting = Setting("cpu", 1, task.locate(None), cache_dir, metric, sign=-1 if "loss" in metric else 1, group=group)
    trainer = task.begin(setting)
    assert isinstance(trainer, ModelTrainer)
    return trainer


def peak_mb(folder: Path, *, replay: float) -> float:
    """MiB that a process of its own took at most for the shards in `large`, beyond what it had after those in `small`.

    Linux tells it.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.shards", json.dumps([str(folder), replay])],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def main() -> None:
    folder, replay = json.loads(sys.argv[1])
    config = {"hidden": (8,), "batch_size": 1000, "lr": 1e-3}

    def train(path: Path) -> None:
        trainer = begun(Regression(model=Mlp, data=ChunkFolder(path, targets="targets", replay=replay)), Path("none"))
        trainer.begin(config, seed=0)
        while not trainer.step().finished:
            pass

    train(Path(folder) / "small")  # what PyTorch itself takes belongs to no shard
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = _peak_kb()
    train(Path(folder) / "large")
    print((_peak_kb() - before) / 1024)


def _peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
