"""A task without torch whose scores follow from its configuration, and a policy that promotes."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.errors import CheckpointError, DataError, ExperimentError
from hpo.files import write_atomically
from hpo.protocols import Dataset, Judge, Policy, Setting, Snapshot, Step, Task, Trainer
from hpo.trial import GO_ON, Config, Decision, Ended, Pause, Report, Stop

NAMES = ("x", "epochs", "sleep_s", "fail_at", "kill_at", "nan_at", "memory_at", "eat_at", "text_at", "say", "write_s")
NAMES += ("write_fails", "bears", "fits", "memory_mb")


TOY = Dataset("toy", "toy")
"""What `Toy` trains on where no folder is named."""


@dataclass(frozen=True)
class Toy(Task):
    """Scores `x * step / (step + 1)`; fails as it is told to."""

    size: int = 0

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("score", "loss")

    def check_config(self, config: Config) -> None:
        for name in config:
            if name not in NAMES:
                raise ExperimentError("nobody takes it", where=name, remedy=f"valid: {', '.join(NAMES)}")
        if not -1e6 < float(config.get("x", 0)) < 1e6:  # type: ignore[arg-type]
            raise ExperimentError(f"{config['x']!r} is too large", where="x", remedy="use less")

    def locate(self, data_dir: Path | None) -> Dataset:
        fingerprint = "toy"
        if data_dir is not None:
            mark = data_dir / "toy.txt"
            if not mark.exists():
                raise DataError("there is no toy.txt", where=str(data_dir), remedy="write one")
            fingerprint = mark.read_text()
        return Dataset("toy", fingerprint)

    def begin(self, setting: Setting) -> Trainer:
        return ToyTrainer(setting, self.size)

    def checkpoint_mb(self, config: Config, dataset: Dataset) -> float:
        return 0.001


@dataclass(frozen=True)
class ToySnapshot(Snapshot):
    text: str
    takes_s: float = 0.0
    fails: bool = False

    def write(self, path: Path) -> int:
        if self.takes_s:
            time.sleep(self.takes_s)
            print("writing", path.parent.name)
        if self.fails:
            raise OSError(28, "No space left on device")
        return write_atomically(path, lambda file: file.write(self.text.encode()))


class ToyTrainer(Trainer):
    def __init__(self, setting: Setting, size: int) -> None:
        self._on_gpu = round(1 / setting.gpus) if setting.gpus else 1  # trials that share the make-believe GPU
        self._ballast = "x" * size
        self.config: Mapping[str, Any] = {}
        self.epoch = 0

    def begin(self, config: Config, *, seed: int) -> None:
        self.config, self.epoch, self.seed = config, 0, seed

    def step(self) -> Step:
        config = self.config
        # A make-believe GPU trains `bears` trials at a time as fast as one, and has memory for `fits`.
        time.sleep(config.get("sleep_s", 0.0) * max(1.0, self._on_gpu / config.get("bears", 1e9)))
        if self._on_gpu > config.get("fits", 1e9):
            raise MemoryError("told to fill the GPU")
        self.epoch += 1
        if "say" in config:
            print(config["say"], self.epoch)
        self._break(config)
        score = config["x"] * self.epoch / (self.epoch + 1)
        if config.get("nan_at") == self.epoch:
            score = float("nan")
        if config.get("text_at") == self.epoch:
            return Step({"score": "text", "loss": 0.0}, self.epoch)  # type: ignore[dict-item]
        memory = {"device_memory_mb": config.get("memory_mb"), "device_memory_total_mb": 10_000.0}
        finished = self.epoch == config.get("epochs")
        return Step({"score": score, "loss": -score}, self.epoch, 10, finished=finished, **memory)

    def _break(self, config: Mapping[str, Any]) -> None:
        if config.get("fail_at") == self.epoch:
            raise RuntimeError("told to fail")
        if config.get("memory_at") == self.epoch:
            raise MemoryError("told to need too much")
        if config.get("eat_at") == self.epoch:
            self._eaten = []
            while True:  # until somebody ends the process
                self._eaten.append(bytearray(b"x" * 2**26))
                time.sleep(0.02)
        if config.get("kill_at") == self.epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    def snapshot(self) -> Snapshot:
        state = {"epoch": self.epoch, "config": dict(self.config), "ballast": self._ballast}
        return ToySnapshot(json.dumps(state), self.config.get("write_s", 0.0), self.config.get("write_fails"))

    def load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"it cannot be read ({error})", where=str(path), remedy="start over") from error
        self.epoch = state["epoch"]

    def test(self, path: Path) -> Mapping[str, float]:
        return {"test_score": json.loads(path.read_text())["epoch"]}


@dataclass(frozen=True)
class Promoting(Policy):
    """Pauses every trial at each rung and promotes the best third: successive halving by promotion."""

    max_epochs: int = 9
    may_pause = True

    @property
    def max_steps(self) -> int:
        return self.max_epochs

    @property
    def rungs(self) -> tuple[int, ...]:
        return (1, 3, self.max_epochs)

    def begin(self) -> PromotingJudge:
        return PromotingJudge(self)


class PromotingJudge(Judge):
    def __init__(self, policy: Promoting) -> None:
        self._policy = policy
        self._rungs: dict[int, dict[int, float]] = {rung: {} for rung in policy.rungs[:-1]}
        self._promoted: dict[int, set[int]] = {rung: set() for rung in policy.rungs[:-1]}
        self._ended: set[int] = set()

    def on_report(self, report: Report) -> Decision:
        if report.step >= self._policy.max_epochs:
            return Stop("trained to the end", completed=True, policy="promoting")
        if report.step in self._rungs:
            self._rungs[report.step][report.trial] = report.score
            return Pause(f"rung {report.step}", policy="promoting")
        return GO_ON

    def on_end(self, ended: Ended) -> None:
        self._ended.add(ended.trial)

    def promote(self) -> int | None:
        for rung in sorted(self._rungs, reverse=True):
            scores = self._rungs[rung]  # no number is no better than any, whatever the order it came in
            ranked = sorted(scores, key=lambda t: (-scores[t] if math.isfinite(scores[t]) else math.inf, t))
            for trial in ranked[: len(ranked) // 3]:
                if trial not in self._promoted[rung] and trial not in self._ended:
                    self._promoted[rung].add(trial)
                    return trial
        return None

    def state(self) -> dict[str, Any]:
        return {
            "rungs": {str(r): {str(t): s for t, s in v.items()} for r, v in self._rungs.items()},
            "promoted": {str(r): sorted(v) for r, v in self._promoted.items()},
            "ended": sorted(self._ended),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._rungs = {int(r): {int(t): s for t, s in v.items()} for r, v in state["rungs"].items()}
        self._promoted = {int(r): set(v) for r, v in state["promoted"].items()}
        self._ended = set(state["ended"])
