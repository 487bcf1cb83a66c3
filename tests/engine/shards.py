"""A task without torch whose data are shards in a folder: one epoch on each, one after the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.errors import CheckpointError, DataError
from hpo.files import write_atomically
from hpo.protocols import Dataset, Setting, Snapshot, Step, Task, Trainer
from hpo.trial import Config


def dataset_of(shards: Mapping[str, str]) -> Dataset:
    """The data set of these shards: what each holds, by its name."""
    names = tuple(sorted(shards))
    pieces = tuple(hashlib.sha256(shards[name].encode()).hexdigest()[:8] for name in names)
    return Dataset("shards", "-".join(pieces), located=dict(shards), pieces=pieces, piece_names=names)


@dataclass(frozen=True)
class Sharded(Task):
    """Scores `x` and a tenth for each shard; a trial ends when it has had all of them."""

    grows = True
    can_start_from = True

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("score",)

    def check_config(self, config: Config) -> None: ...

    def locate(self, data_dir: Path | None) -> Dataset:
        if data_dir is None:
            raise DataError("no folder is named", where="shards", remedy="name one")
        return dataset_of({path.name: path.read_text() for path in data_dir.glob("*.txt")})

    def as_of(self, dataset: Dataset, num_pieces: int) -> Dataset:
        return dataset_of({name: dataset.located[name] for name in dataset.piece_names[:num_pieces]})

    def num_chunks(self, dataset: Dataset) -> int:
        return len(dataset.pieces)

    def num_epochs(self, config: Config, dataset: Dataset) -> int:
        return len(dataset.pieces)

    def begin(self, setting: Setting) -> Trainer:
        return ShardedTrainer(setting.dataset)

    def checkpoint_mb(self, config: Config, dataset: Dataset) -> float:
        return 0.001


@dataclass(frozen=True)
class Had(Snapshot):
    state: Mapping[str, Any]

    def write(self, path: Path) -> int:
        return write_atomically(path, lambda file: file.write(json.dumps(self.state).encode()))


class ShardedTrainer(Trainer):
    """Its state is what it has been trained on, and the best score."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def begin(self, config: Config, *, seed: int) -> None:
        self.config, self.had, self.best = config, [], -1.0

    def step(self) -> Step:
        name = self._dataset.piece_names[len(self.had)]
        print("trained on", name)
        self.had.append(self._dataset.located[name])
        score = self.config["x"] + 0.1 * len(self.had)
        self.best = max(self.best, score)
        num = len(self.had)
        return Step({"score": score}, num, 10, chunk=num, finished=num == len(self._dataset.pieces))

    def snapshot(self) -> Snapshot:
        return Had({"had": list(self.had), "best": self.best, "x": self.config["x"]})

    def load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"it cannot be read ({error})", where=str(path), remedy="start over") from error
        self.had, self.best = state["had"], state["best"]

    def forget_best(self) -> None:
        self.best = -1.0

    def test(self, path: Path) -> Mapping[str, float]:
        return {"test_score": json.loads(path.read_text())["best"]}
