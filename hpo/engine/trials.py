"""What a study keeps of its trials: their checkpoints, the leases on them, and how each has gone so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.engine.diagnosis import Course
from hpo.protocols import Step
from hpo.trial import Report, TrialState


@dataclass(frozen=True, slots=True)
class Parent:
    """A trial of an earlier run, which one of this run goes on from."""

    run: str
    trial: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that the journal says exists.

    Attributes:
        path: Of the file.
        attempt: That wrote it.
        step: Of the trial that goes on from it, which counts on from there.
        size: Bytes.
        source: The trial whose state it holds, where that is another one.
        parent: The trial of an earlier run that wrote it, where it is from one: its file is that run's, and stays.
    """

    path: str
    attempt: int
    step: int
    size: int
    source: int | None = None
    parent: Parent | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to train one trial for a while: one attempt, from the start or from a checkpoint."""

    trial: int
    attempt: int
    config: Mapping[str, Any]
    seed: int
    why: str
    checkpoint: Checkpoint | None

    @property
    def continues(self) -> Parent | None:
        """The trial of an earlier run whose state it goes on from; None where it has one of this run's, or none."""
        return self.checkpoint.parent if self.checkpoint is not None and self.checkpoint.source is None else None


@dataclass
class Progress:
    """How far a trial has come in its run, not counting what the state of another that it goes on from had had.

    Attributes:
        num_epochs: See `Report`.
        num_chunks: See `Report`.
        chunk: That the last step trained on.
        changed_chunk: Whether the step before that one trained on another.
    """

    num_epochs: int | None = None
    num_chunks: int = 0
    chunk: int | None = None
    changed_chunk: bool = False
    _not_its_own: tuple[int, int] | None = None

    def after(self, measured: Step) -> Progress:
        """The same, after a step of the trial."""
        self.changed_chunk, self.chunk = self.chunk not in (None, measured.chunk), measured.chunk
        if measured.num_epochs is None:
            return self
        if self._not_its_own is None:
            self._not_its_own = measured.epoch - 1 - (self.num_epochs or 0), (measured.chunk or 1) - 1 - self.num_chunks
        epochs, chunks = self._not_its_own
        self.num_epochs = measured.num_epochs - epochs
        self.num_chunks = 0 if measured.num_chunks is None else measured.num_chunks - chunks
        return self

    def begin_anew(self) -> None:
        """The trial goes on from another state from the next step on."""
        self._not_its_own = None


@dataclass
class Trial:
    """All that the study knows of a trial; `inherited` is what it began with, where it goes on from an earlier run."""

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
    best_chunk: int | None = None
    checkpoint: Checkpoint | None = None
    inherited: Checkpoint | None = None
    took_over_at: int = 0
    reason: str = ""
    cause: str = ""
    course: Course = field(default_factory=Course)
    progress: Progress = field(default_factory=Progress)

    @property
    def step(self) -> int:
        """Steps reported so far."""
        return len(self.scores)

    def see(self, report: Report) -> bool:
        """Whether the step, whose score is finite, is the best so far: of growing data, of the newest chunk."""
        chunk = self.progress.chunk
        if self.best_score is not None and chunk == self.best_chunk and report.score <= self.best_score:
            return False
        self.best_score, self.best_step, self.best_chunk = report.score, report.step, chunk
        return True

    def lineage(self) -> dict[str, Any]:
        """Which trial of an earlier run it goes on from, as the journal keeps it; nothing where it begins anew."""
        parent = self.inherited.parent if self.inherited is not None else None
        return {} if parent is None else {"parent_run": parent.run, "parent_trial": parent.trial}
