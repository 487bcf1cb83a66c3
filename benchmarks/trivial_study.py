"""Trials that cost nothing, so that what is measured is what surrounds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpo import Experiment, Maximize, NoStopping, PerTrial, uniform
from hpo.errors import ExperimentError
from hpo.files import write_atomically
from hpo.protocols import Dataset, Setting, Snapshot, Step, Task, Trainer
from hpo.trial import Config


@dataclass(frozen=True)
class Trivial(Task):
    """Reports `x`, whatever the step."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("score",)

    def check_config(self, config: Config) -> None:
        for name in config:
            if name != "x":
                raise ExperimentError("nobody takes it", where=name, remedy="valid: x")

    def locate(self, data_dir: Path | None) -> Dataset:
        return Dataset("none", "none")

    def begin(self, setting: Setting) -> Trainer:
        return TrivialTrainer()

    def checkpoint_mb(self, config: Config, dataset: Dataset) -> float:
        return 0.0


@dataclass(frozen=True)
class TrivialSnapshot(Snapshot):
    epoch: int

    def write(self, path: Path) -> int:
        return write_atomically(path, lambda file: file.write(str(self.epoch).encode()))


class TrivialTrainer(Trainer):
    def begin(self, config: Config, *, seed: int) -> None:
        self._x, self._epoch = float(config["x"]), 0  # type: ignore[arg-type]

    def step(self) -> Step:
        self._epoch += 1
        return Step({"score": self._x}, self._epoch)

    def snapshot(self) -> Snapshot:
        return TrivialSnapshot(self._epoch)

    def load(self, path: Path) -> None:
        self._epoch = int(path.read_text())

    def test(self, path: Path) -> Mapping[str, float]:
        return {"test_score": self._x}


experiment = Experiment(
    task=Trivial(),
    space={"x": uniform(0.0, 1.0)},
    goal=Maximize("score"),
    trials=400,
    policy=NoStopping(1),
    per_trial=PerTrial(gpus=0),
)
