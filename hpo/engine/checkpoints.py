"""When a checkpoint is written, and which ones stay."""

from __future__ import annotations

import concurrent.futures
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from hpo.engine.checkpoint_files import FRESH_WITHIN_S, CheckpointFiles
from hpo.engine.checkpoint_writer import Written
from hpo.engine.study import Study
from hpo.engine.trials import Checkpoint, Trial
from hpo.trial import Decision, Exploit, GoOn, Pause, TrialState

NUM_COSTS = 9
"""Writes by which a new trial's are judged: by their median, since a bucket that refused has made some of them dear."""
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


@dataclass(frozen=True)
class _Left:
    """Checkpoints that a process was writing when it ended; `looked` is done when it is known which are there."""

    paths: frozenset[str]
    looked: Future[None]
    until: float


@dataclass
class CheckpointKeeper:
    """Says when to write, and deletes what nothing needs any more.

    A checkpoint is written before a trial pauses or is put off, when a trial ends among the best `keep_checkpoints`
    with weights that no file holds, and else every `checkpoint_every_s` seconds, or more rarely where that would take
    more than 1 % of the time. Kept are the newest checkpoint of each trial that may go on, and those of the best trials
    that have ended. A file is deleted only after the entry that makes it superfluous is kept: on disk, or in the bucket
    where the next driver finds the journal even if this machine is lost. What an earlier run wrote is never deleted.

    Files are written while training goes on. One exists once it is known to be whole, since its process says so or it
    is there under its name; until then it is pending, and no later attempt begins from it.

    The study knows files by the names that the journal calls them: relative to the run's folder where they lie in it.

    Where `last_states` is set, a trial that ends among the best is written as it ended: a later run may go on with it.
    """

    study: Study
    files: CheckpointFiles
    appended: Callable[[], int]
    kept: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    spent: Spent = field(default_factory=Spent)
    last_states: bool = False
    _intervals: dict[int, _Interval] = field(default_factory=dict)
    _pending: dict[str, Pending] = field(default_factory=dict)
    _left: list[_Left] = field(default_factory=list)
    _costs: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_COSTS))
    _holders: set[int] = field(default_factory=set)
    _doomed: list[tuple[int, int, Checkpoint]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._holders.update(trial.number for trial in self.study.trials if trial.checkpoint is not None)

    def begin(self, trial: int) -> None:
        """The trial's clock starts: what it trains from now on could be lost."""
        known = self._intervals.get(trial)
        usual = statistics.median(self._costs) if self._costs else 0.0
        self._intervals[trial] = _Interval(self.clock(), known.cost_s if known else usual)

    def due(self, number: int, decision: Decision) -> bool:
        """Whether the state after this report is to be written."""
        trial = self.study.trials[number]
        if isinstance(decision, Pause):
            return True
        if isinstance(decision, Exploit):
            return False  # what it was is given up
        held = trial.checkpoint.step if trial.checkpoint is not None else 0
        if not isinstance(decision, GoOn):
            return self.study.keeps(trial) and held < (trial.step if self.last_states else trial.best_step)
        if held >= trial.step or any(pending.trial == number for pending in self._pending.values()):
            return False
        passed, cost_s = self.clock() - self._intervals[number].since, self._intervals[number].cost_s
        return passed >= max(self.study.experiment.checkpoint_every_s, cost_s / SHARE_OF_TIME)

    # --- from a snapshot to a file ---

    def begun(self, number: int, checkpoint: Checkpoint, *, blocked_s: float, process: str) -> None:
        """A process is writing a checkpoint; the trial's interval starts anew."""
        now = self.clock()
        checkpoint = replace(checkpoint, path=self.files.recorded(checkpoint.path))
        self._pending[checkpoint.path] = Pending(number, checkpoint, process, now, blocked_s)
        self.spent.num += 1
        self.spent.blocked_s += blocked_s
        self._intervals[number] = _Interval(now, blocked_s)

    def told(self, written: Written) -> bool:
        """Take in how a write ended; whether it was waited for."""
        self.spent.num_told += 1
        self.spent.cpu_s += written.cpu_s
        self.spent.write_s += written.write_s
        if interval := self._intervals.get(written.trial):
            # A trial may have one core, and then the writer's seconds on it are training's.
            interval.cost_s += written.cpu_s
            self._costs.append(interval.cost_s)
        pending = self._pending.pop(self.files.recorded(written.path), None)
        if pending is not None and not written.error:
            self._arrived(pending, size=written.size, write_s=written.write_s)
        return pending is not None

    def look(self, *, paused: bool = False, after_s: float = 0.0) -> None:
        """Find the pending files that have appeared; only those of paused trials, or begun so long ago, if asked."""
        before = self.clock() - after_s
        for pending in list(self._pending.values()):
            if pending.since > before or (paused and not self._is_begun_from(pending)):
                continue
            if (size := self.files.size(pending.checkpoint.path)) is not None:
                del self._pending[pending.checkpoint.path]
                self._arrived(pending, size=size, write_s=None)

    def leave(self, process: str | None = None) -> None:
        """A process ended, or all did: what it was writing is there by now, or never will be."""
        left = frozenset(path for path, one in self._pending.items() if process is None or one.process == process)
        if left:
            self._left.append(_Left(left, self.files.look_again(), self.clock() + FRESH_WITHIN_S))

    def gone(self, *, wait: bool = False) -> list[Pending]:
        """The checkpoints that processes left unwritten, as far as it is known; `wait` for that, some seconds at most.

        Nothing more is expected of them.
        """
        if not self._left:
            return []
        if wait:
            concurrent.futures.wait([left.looked for left in self._left], timeout=FRESH_WITHIN_S)
        known = [left for left in self._left if wait or left.looked.done() or self.clock() >= left.until]
        self._left = [left for left in self._left if left not in known]
        self.look()
        paths = frozenset[str]().union(*(left.paths for left in known))
        return self._forget(pending for path, pending in self._pending.items() if path in paths)

    def overdue(self) -> list[Pending]:
        """The checkpoints that nothing but is waited for, and has been for too long: nothing more is expected."""
        before = self.clock() - PATIENCE_S
        return self._forget(p for p in self._pending.values() if p.since <= before and self._is_waited_for(p))

    def waits(self, *, for_paused: bool = False) -> bool:
        """Whether files are still to appear; if asked, only those of paused trials and of processes that ended."""
        if not for_paused:
            return bool(self._pending)
        return bool(self._left) or any(map(self._is_begun_from, self._pending.values()))

    def _is_needed_by_another(self, number: int, path: str) -> bool:
        others = (trial.checkpoint for trial in self.study.trials if trial.number != number)
        return any(checkpoint is not None and checkpoint.path == path for checkpoint in others)

    def _is_waited_for(self, pending: Pending) -> bool:
        return not self.study.num_leased or self._is_begun_from(pending)

    def _is_begun_from(self, pending: Pending) -> bool:
        """Whether the next lease may begin with it."""
        trial = self._trial(pending)
        return trial.state is TrialState.PAUSED or (trial.state.ended and trial.number in self.study.parents)

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
        replaced = checkpoint.attempt != trial.attempt or checkpoint.step <= trial.took_over_at
        if replaced or (trial.state.ended and not self.study.keeps(trial)):
            self.files.delete(checkpoint.path)  # no entry names it: nothing has to be on disk first
            return
        older = trial.checkpoint
        self.study.checkpointed(number, checkpoint, {"blocked_s": pending.blocked_s, "write_s": write_s})
        self._holders.add(number)
        if older is not None and older.path != checkpoint.path and older.parent is None:
            self._doomed.append((self.appended(), number, older))
        self.sweep()

    # --- what is deleted ---

    def holds(self, number: int) -> None:
        """The trial points to a checkpoint that another one wrote."""
        self._holders.add(number)

    def sweep(self) -> None:
        """Mark the checkpoints of ended trials that are not among the best."""
        for number in list(self._holders):
            trial = self.study.trials[number]
            if trial.state.ended and not self.study.keeps(trial):
                self._holders.discard(number)
                if trial.checkpoint is not None and trial.checkpoint.parent is None:
                    self._doomed.append((self.appended(), number, trial.checkpoint))

    def delete_strays(self) -> None:
        """Delete files that a killed driver or trial left behind: those that no trial points to."""
        self.files.delete_strays({trial.checkpoint.path for trial in self.study.trials if trial.checkpoint is not None})

    def delete_doomed(self) -> None:
        """Delete the marked files whose reason is kept."""
        if not self._doomed or self._doomed[0][0] > (kept := self.kept()):
            return
        ready = [doomed for doomed in self._doomed if doomed[0] <= kept]
        self._doomed = [doomed for doomed in self._doomed if doomed[0] > kept]
        for _, number, checkpoint in ready:
            if self._is_needed_by_another(number, checkpoint.path):
                continue  # which is to go on from it; once that has one of its own, this is a stray
            self.study.drop_checkpoint(number, checkpoint)
            self.files.delete(checkpoint.path)
