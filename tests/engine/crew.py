"""A task for groups of workers that tells its calls and fails as told, and a policy that follows a script."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from hpo.protocols import Judge, Policy, Setting, Step, Trainer
from hpo.training.trainer import ModelTrainer
from hpo.trial import GO_ON, Config, Decision, Exploit, Pause, Report, Stop
from tests.training.line import Line, LineFit


class Crewed(Line):
    """A line whose configuration says which rank breaks, how, and in which step; once, if there is a mark to leave."""

    def __init__(
        self, in_features: int, *, breaks: str = "", rank: int = -1, at: int = 0, mark: str = "", wait_s: float = 0.0
    ) -> None:
        super().__init__(in_features)


@dataclass(frozen=True)
class Crew(LineFit):
    model: Any = Crewed

    def begin(self, setting: Setting) -> Trainer:
        return CrewTrainer(self, setting)


class CrewTrainer(ModelTrainer):
    """Prints every call with its rank and process."""

    def __init__(self, crew: Crew, setting: Setting) -> None:
        self.rank = -1 if setting.group is None else setting.group.rank
        super().__init__(crew, setting)

    def begin(self, config: Config, *, seed: int) -> None:
        print("begin", f"lr={config['lr']}", f"pid={os.getpid()}")
        self.config: Mapping[str, Any] = config
        super().begin(config, seed=seed)

    def step(self) -> Step:
        config, epoch = self.config, self._trial.epoch + 1
        time.sleep(config.get("wait_s", 0.0))
        print("step", epoch)
        if config.get("breaks") and (config.get("rank"), config.get("at")) == (self.rank, epoch):
            self._break(config["breaks"], config.get("mark", ""))
        return super().step()

    def _break(self, how: str, mark: str) -> None:
        if mark:
            if Path(mark).exists():
                return
            Path(mark).write_text(str(os.getpid()))
        if how == "raise":
            raise RuntimeError("told to fail")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)

    def load(self, path: Path) -> None:
        print("load", path.name)
        super().load(path)

    def take_over(self, path: Path) -> None:
        print("take over", path.name)
        super().take_over(path)


@dataclass(frozen=True)
class Scripted(Policy):
    """Says what `script` has for a trial's step, as ("pause",), ("stop",) or ("exploit", source, lr); else: go on."""

    script: tuple[tuple[int, int, tuple[Any, ...]], ...] = ()
    max_epochs: int = 4
    may_pause = True

    @property
    def max_steps(self) -> int:
        return self.max_epochs

    def begin(self) -> Judge:
        return ScriptedJudge(self)


@dataclass
class ScriptedJudge(Judge):
    policy: Scripted
    paused: list[int] = field(default_factory=list)

    def on_report(self, report: Report) -> Decision:
        if report.step >= self.policy.max_epochs:
            return Stop("trained to the end", completed=True, policy="scripted")
        for trial, step, (word, *rest) in self.policy.script:
            if (trial, step) == (report.trial, report.step):
                return self._said(report.trial, word, *rest)
        return GO_ON

    def _said(self, trial: int, word: str, *rest: Any) -> Decision:
        if word == "pause":
            self.paused.append(trial)
            return Pause("told to", policy="scripted")
        if word == "exploit":
            return Exploit(rest[0], {"lr": rest[1], "batch_size": 10}, "told to", policy="scripted")
        return Stop("told to", policy="scripted")

    def promote(self) -> int | None:
        return self.paused.pop(0) if self.paused else None

    def state(self) -> dict[str, Any]:
        return {"paused": list(self.paused)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.paused = list(state["paused"])


__all__ = ["Crew", "Scripted", "nn"]
