"""What a study keeps of its trials: their checkpoints, the leases on them, and how each has gone so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.engine.diagnosis import Course
from hpo.trial import TrialState


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that the journal says exists.

    Attributes:
        path: Of the file.
        attempt: That wrote it.
        step: Of the trial that goes on from it, which counts on from there.
        size: Bytes.
        source: The trial whose state it holds, where that is another one.
    """

    path: str
    attempt: int
    step: int
    size: int
    source: int | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to train one trial for a while: one attempt, from the start or from a checkpoint."""

    trial: int
    attempt: int
    config: Mapping[str, Any]
    seed: int
    why: str
    checkpoint: Checkpoint | None


@dataclass
class Trial:
    """All that the study knows of a trial."""

    number: int
    config: Mapping[str, Any]
    seed: int
    state: TrialState = TrialState.RUNNING
    attempt: int = 0
    num_failures: int = 0
    num_lost: int = 0
    scores: list[float] = field(default_factory=list)
    best_score: float | None = None
    best_step: int = 0
    checkpoint: Checkpoint | None = None
    took_over_at: int = 0
    reason: str = ""
    cause: str = ""
    course: Course = field(default_factory=Course)

    @property
    def step(self) -> int:
        """Steps reported so far."""
        return len(self.scores)
