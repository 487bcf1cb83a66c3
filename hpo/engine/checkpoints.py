"""When a checkpoint is written, and which ones stay."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpo.engine.study import Checkpoint, Study
from hpo.trial import Decision, GoOn, Pause

SHARE_OF_TIME = 0.01
"""Writing takes at most this share of a trial's time, as far as the interval decides."""


@dataclass
class _Written:
    at: float
    cost_s: float = 0.0


@dataclass
class CheckpointKeeper:
    """Says when to write, and deletes what nothing needs any more.

    A checkpoint is written before a trial pauses or is put off, when a trial ends among the best
    `keep_checkpoints`, and else every `checkpoint_every_s` seconds, or more rarely where writing takes more than
    1 % of the time. Kept are the newest checkpoint of each trial that may go on, and those of the best trials that
    have ended. A file is deleted only after the entry that makes it superfluous is on disk.
    """

    study: Study
    appended: Callable[[], int]
    synced: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    _written: dict[int, _Written] = field(default_factory=dict)
    _holders: set[int] = field(default_factory=set)
    _doomed: list[tuple[int, int, Checkpoint]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._holders.update(trial.number for trial in self.study.trials if trial.checkpoint is not None)

    def begin(self, trial: int) -> None:
        """The trial's clock starts: what it trains from now on could be lost."""
        cost = self._written[trial].cost_s if trial in self._written else 0.0
        self._written[trial] = _Written(self.clock(), cost)

    def due(self, number: int, decision: Decision) -> bool:
        """Whether the state after this report is to be written."""
        trial = self.study.trials[number]
        if isinstance(decision, Pause):
            return True
        if not isinstance(decision, GoOn):
            return trial in self.study.top
        if trial.checkpoint is not None and trial.checkpoint.step >= trial.step:
            return False
        written = self._written[number]
        interval = max(self.study.experiment.checkpoint_every_s, written.cost_s / SHARE_OF_TIME)
        return self.clock() - written.at >= interval

    def written(self, number: int, checkpoint: Checkpoint, *, cost_s: float) -> None:
        """A checkpoint was written: tell the study, and mark what it replaces."""
        older = self.study.trials[number].checkpoint
        self.study.checkpointed(number, checkpoint)
        self._written[number] = _Written(self.clock(), cost_s)
        self._holders.add(number)
        if older is not None and older.path != checkpoint.path:
            self._doomed.append((self.appended(), number, older))
        self.sweep()

    def sweep(self) -> None:
        """Mark the checkpoints of ended trials that are not among the best."""
        for number in list(self._holders):
            trial = self.study.trials[number]
            if trial.state.ended and trial not in self.study.top:
                self._holders.discard(number)
                if trial.checkpoint is not None:
                    self._doomed.append((self.appended(), number, trial.checkpoint))

    def delete_strays(self, folder: Path) -> None:
        """Delete files that a killed driver or trial left behind: those that no trial points to."""
        wanted = {Path(trial.checkpoint.path).resolve() for trial in self.study.trials if trial.checkpoint is not None}
        for path in folder.rglob("*"):
            if path.is_file() and path.resolve() not in wanted:
                path.unlink(missing_ok=True)

    def delete_doomed(self) -> None:
        """Delete the marked files whose reason is on disk."""
        if not self._doomed:
            return
        synced = self.synced()
        ready = [doomed for doomed in self._doomed if doomed[0] <= synced]
        self._doomed = [doomed for doomed in self._doomed if doomed[0] > synced]
        for _, number, checkpoint in ready:
            self.study.drop_checkpoint(number, checkpoint)
            with contextlib.suppress(OSError):
                Path(checkpoint.path).unlink()
