"""What the parts say to each other about trials: reports, decisions, ends.

A score is the goal metric turned so that larger is better; the turning happens once, in `experiment.Goal`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

Scalar = None | bool | int | float | str
Value = Scalar | tuple["Value", ...]
Config = Mapping[str, Value]


class TrialState(StrEnum):
    """Where a trial stands; `paused` and `running` trials may still go on."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether the trial will never train again."""
        return self in (TrialState.STOPPED, TrialState.COMPLETED, TrialState.FAILED)


@dataclass(frozen=True, slots=True)
class Report:
    """One step of one trial, as a policy or a search sees it.

    Attributes:
        trial: Number of the trial, from 0.
        step: Steps that the trial has trained, from 1; each step of a trial is reported once.
        score: The goal metric, larger is better; may be NaN or infinite.
        num_epochs: Passes over its training data that the trial has completed; one that the step ends in the middle of
            is not. None: each step is one.
        num_chunks: Pieces of growing data that its state has had all epochs of; 0 where the data do not grow.
    """

    trial: int
    step: int
    score: float
    num_epochs: int | None = None
    num_chunks: int = 0

    def had(self, resource: str) -> int:
        """How many of "step", "epoch" or "chunk" the trial has had."""
        return _had(self, resource)

    @property
    def finite(self) -> bool:
        """Whether the score can be compared."""
        return math.isfinite(self.score)


@dataclass(frozen=True, slots=True)
class GoOn:
    """The trial trains on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The trial trains no more.

    Attributes:
        reason: For people, with the numbers behind it.
        completed: It has had all the training that it could get, so its last score is a final one.
        by_itself: It stopped for what it was, not for what others were (early stopping); policies that compare
            trials count it on with its best score.
        diverged: Its score is no number.
        policy: Class name of the policy that said so, in lower case.
    """

    reason: str
    completed: bool = False
    by_itself: bool = False
    diverged: bool = False
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """The trial gives its place away, keeps its checkpoint, and may be promoted later."""

    reason: str
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Exploit:
    """The trial takes over the state that another one was last saved in, and goes on from there (as PBT has it).

    It keeps its own number, its reports and its count of steps. Where the other one has never been saved, it goes on
    as it is.

    Attributes:
        source: Number of the other trial.
        config: What it goes on with: its own architecture must be that of `source`.
        reason: For people, with the numbers behind it.
        policy: Class name of the policy that said so, in lower case.
    """

    source: int
    config: Config
    reason: str
    policy: str = ""


Decision = GoOn | Stop | Pause | Exploit
GO_ON = GoOn()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended, told to every policy.

    Attributes:
        trial: Number of the trial.
        step: Steps that it trained.
        best_score: Best finite score, or None where it has none.
        num_epochs: As its last report said.
        num_chunks: Likewise.
        by_itself: It ended for what it was (early stopping, its own last epoch), not because others were better.
        failed: It raised, ran out of memory or was lost, more often than it may.
    """

    trial: int
    step: int
    best_score: float | None
    by_itself: bool = False
    failed: bool = False
    num_epochs: int | None = None
    num_chunks: int = 0

    def had(self, resource: str) -> int:
        """How many of "step", "epoch" or "chunk" the trial has had."""
        return _had(self, resource)


def _had(told: Report | Ended, resource: str) -> int:
    num_epochs = told.step if told.num_epochs is None else told.num_epochs
    return {"step": told.step, "epoch": num_epochs, "chunk": told.num_chunks}[resource]
