"""When a checkpoint is written, and which ones stay."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpo.engine.checkpoint_writer import Written
from hpo.engine.study import Checkpoint, Study, Trial
from hpo.trial import Decision, GoOn, Pause, TrialState

SHARE_OF_TIME = 0.01
"""Checkpoints take at most this share of a trial's time, as far as the interval decides."""
PATIENCE_S = 120.0
"""So long is waited for a file where nothing but it is waited for; a process that lives tells of its failure."""


@dataclass(frozen=True)
class Pending:
    """A checkpoint that is being written: it exists for the study once its file is there.

    Attributes:
        trial: Whose state it is.
        checkpoint: What it will be; of unknown size.
        process: Name of the process that writes it.
        since: When it was begun, by the keeper's clock.
        blocked_s: Seconds that training stood still for it.
    """

    trial: int
    checkpoint: Checkpoint
    process: str
    since: float
    blocked_s: float


@dataclass
class Spent:
    """What a driver's checkpoints have come to.

    Attributes:
        num: Checkpoints begun.
        num_told: Of those, the ones whose processes told how their writing ended.
        bytes: Of those whose files are there.
        blocked_s: Seconds that trials stood still.
        cpu_s: Seconds of a core beside training, as far as processes told.
        write_s: Seconds beside training, as far as processes told.
    """

    num: int = 0
    num_told: int = 0
    bytes: int = 0
    blocked_s: float = 0.0
    cpu_s: float = 0.0
    write_s: float = 0.0


@dataclass
class _Interval:
    since: float
    cost_s: float


@dataclass
class CheckpointKeeper:
    """Says when to write, and deletes what nothing needs any more.

    A checkpoint is written before a trial pauses or is put off, when a trial ends among the best `keep_checkpoints`
    with weights that no file holds, and else every `checkpoint_every_s` seconds, or more rarely where that would take
    more than 1 % of the time. Kept are the newest checkpoint of each trial that may go on, and those of the best trials
    that have ended. A file is deleted only after the entry that makes it superfluous is on disk.

    Files are written while training goes on. One exists once it is known to be whole, since its process says so or it
    is there under its name; until then it is pending, and no later attempt begins from it.
    """

    study: Study
    appended: Callable[[], int]
    synced: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    spent: Spent = field(default_factory=Spent)
    _intervals: dict[int, _Interval] = field(default_factory=dict)
    _pending: dict[str, Pending] = field(default_factory=dict)
    _cost_s: float = 0.0
    _holders: set[int] = field(default_factory=set)
    _doomed: list[tuple[int, int, Checkpoint]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._holders.update(trial.number for trial in self.study.trials if trial.checkpoint is not None)

    def begin(self, trial: int) -> None:
        """The trial's clock starts: what it trains from now on could be lost."""
        known = self._intervals.get(trial)
        self._intervals[trial] = _Interval(self.clock(), known.cost_s if known else self._cost_s)

    def due(self, number: int, decision: Decision) -> bool:
        """Whether the state after this report is to be written."""
        trial = self.study.trials[number]
        if isinstance(decision, Pause):
            return True
        held = trial.checkpoint.step if trial.checkpoint is not None else 0
        if not isinstance(decision, GoOn):
            return trial in self.study.top and held < trial.best_step
        if held >= trial.step or any(pending.trial == number for pending in self._pending.values()):
            return False
        passed, cost_s = self.clock() - self._intervals[number].since, self._intervals[number].cost_s
        return passed >= max(self.study.experiment.checkpoint_every_s, cost_s / SHARE_OF_TIME)

    # --- from a snapshot to a file ---

    def begun(self, number: int, checkpoint: Checkpoint, *, blocked_s: float, process: str) -> None:
        """A process is writing a checkpoint; the trial's interval starts anew."""
        now = self.clock()
        self._pending[checkpoint.path] = Pending(number, checkpoint, process, now, blocked_s)
        self.spent.num += 1
        self.spent.blocked_s += blocked_s
        self._intervals[number] = _Interval(now, blocked_s)
        self._cost_s = blocked_s

    def told(self, written: Written) -> bool:
        """Take in how a write ended; whether it was waited for."""
        self.spent.num_told += 1
        self.spent.cpu_s += written.cpu_s
        self.spent.write_s += written.write_s
        if interval := self._intervals.get(written.trial):
            # A trial may have one core, and then the writer's seconds on it are training's.
            interval.cost_s += written.cpu_s
            self._cost_s = interval.cost_s
        pending = self._pending.pop(written.path, None)
        if pending is not None and not written.error:
            self._arrived(pending, size=written.size, write_s=written.write_s)
        return pending is not None

    def look(self, *, paused: bool = False, after_s: float = 0.0) -> None:
        """Find the pending files that have appeared; only those of paused trials, or begun so long ago, if asked."""
        before = self.clock() - after_s
        for pending in list(self._pending.values()):
            if pending.since > before or (paused and self._trial(pending).state is not TrialState.PAUSED):
                continue
            if (size := _size_of(pending.checkpoint.path)) is not None:
                del self._pending[pending.checkpoint.path]
                self._arrived(pending, size=size, write_s=None)

    def gone(self, process: str | None = None) -> list[Pending]:
        """The checkpoints that a process leaves unwritten, or all: nothing more is expected of them."""
        self.look()
        return self._forget(p for p in self._pending.values() if process is None or p.process == process)

    def overdue(self) -> list[Pending]:
        """The checkpoints that nothing but is waited for, and has been for too long: nothing more is expected."""
        before = self.clock() - PATIENCE_S
        return self._forget(p for p in self._pending.values() if p.since <= before and self._is_waited_for(p))

    def waits(self, *, for_paused: bool = False) -> bool:
        """Whether files are still to appear; only those of paused trials, if asked."""
        return any(not for_paused or self._trial(p).state is TrialState.PAUSED for p in self._pending.values())

    def _is_waited_for(self, pending: Pending) -> bool:
        return not self.study.num_leased or self._trial(pending).state is TrialState.PAUSED

    def _trial(self, pending: Pending) -> Trial:
        return self.study.trials[pending.trial]

    def _forget(self, chosen: Iterable[Pending]) -> list[Pending]:
        forgotten = list(chosen)
        for pending in forgotten:
            del self._pending[pending.checkpoint.path]
        return forgotten

    def _arrived(self, pending: Pending, *, size: int, write_s: float | None) -> None:
        """The file is whole: tell the study and mark what it replaces, unless nothing needs it any more."""
        number, trial, checkpoint = pending.trial, self._trial(pending), replace(pending.checkpoint, size=size)
        self.spent.bytes += size
        if checkpoint.attempt != trial.attempt or (trial.state.ended and trial not in self.study.top):
            with contextlib.suppress(OSError):
                Path(checkpoint.path).unlink()  # no entry names it: nothing has to be on disk first
            return
        older = trial.checkpoint
        self.study.checkpointed(number, checkpoint, {"blocked_s": pending.blocked_s, "write_s": write_s})
        self._holders.add(number)
        if older is not None and older.path != checkpoint.path:
            self._doomed.append((self.appended(), number, older))
        self.sweep()

    # --- what is deleted ---

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


def _size_of(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None
