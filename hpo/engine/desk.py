"""The desk between Ray Tune and the study: leases out, reports in, checkpoints asked for, requests to stop heeded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from hpo.engine.calibration import Calibration
from hpo.engine.checkpoint_writer import Written
from hpo.engine.checkpoints import PATIENCE_S, CheckpointKeeper
from hpo.engine.gauges import Gauges
from hpo.engine.standstill import Standstill
from hpo.engine.study import CROWDED, NOT_ITS_OWN, Study
from hpo.engine.trials import Checkpoint, Lease
from hpo.engine.worker import Saved, Trained
from hpo.trial import Exploit, GoOn, Pause, Stop

ATTEMPTS_IN_VAIN = 6
NEWS_WITHIN_S = 1.0
"""A file that is older is looked for: the next result of its process, which tells more, may take minutes."""
LOOK_EVERY_S = 0.003
"""Between two looks for a file that nothing but is waited for: writing a small one takes about as long."""
MOVING = "another number of trials a GPU comes next"


class StoppedAtOnce(KeyboardInterrupt):
    """The person asked twice; raised between two events, where nothing is half done."""


class Watcher(Protocol):
    """Sees what happens; the engine itself prints nothing."""

    def happened(self, line: str) -> None:
        """Something that a person may want to know."""

    def said(self, line: str) -> None:
        """Something that a person has to read."""

    def round(self, desk: Desk) -> None:
        """The driver went round its loop; called often, so most calls have to be cheap."""


class Desk:
    """One per driver; all calls come from the driver's one thread.

    Args:
        study: Replayed, ready to go on.
        keeper: Says when checkpoints are written.
        watcher: Told what happens.
        num_gpus: GPUs of each trial, for the reports.
        stop_request: File whose existence asks the run to stop.
        gauges: What is shown of the run, where Ray has a dashboard.
        shortage: What a trial needs and what there is, for people.
        clock: Seconds.
    """

    def __init__(
        self,
        study: Study,
        keeper: CheckpointKeeper,
        watcher: Watcher,
        *,
        num_gpus: float,
        stop_request: Path,
        gauges: Gauges | None = None,
        shortage: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study, self.keeper, self.watcher = study, keeper, watcher
        self.closing, self.close_reason = False, ""
        self.stops_now = False
        self.asked_by = ""
        self.training: set[tuple[int, int]] = set()
        self.in_vain = ""
        self.num_steps = 0
        self.busy_s = 0.0
        self.began = clock()
        self.num_gpus = num_gpus
        self.calibration: Calibration | None = None
        self._told_choice = False
        self._clock, self._stop_request, self._gauges = clock, stop_request, gauges
        self._standstill = Standstill(shortage)
        self._wanted: set[tuple[int, int]] = set()
        self._pausing: set[int] = set()
        self._looked = 0.0
        self._num_in_vain = 0

    # --- leases ---

    def lease(self) -> Lease | None:
        """The next lease of the study, once the states of paused trials are on disk: any may be promoted."""
        self._give_up_gone()
        self.keeper.look(paused=True)
        self.await_files(for_paused=True)
        if self._pausing or self.keeper.waits(for_paused=True):
            return None
        lease = self.study.lease()
        if lease is not None:
            self.keeper.begin(lease.trial)
            if (parent := lease.continues) is not None:
                self.watcher.happened(f"trial {lease.trial} goes on from trial {parent.trial} of run {parent.run}")
            elif lease.why != "new":
                step = lease.checkpoint.step if lease.checkpoint else 0
                self.watcher.happened(f"trial {lease.trial} {lease.why} from step {step}")
        return lease

    def report(self, lease: Lease, trained: Trained) -> bool:
        """Whether the lease goes on after this step."""
        self._told(trained.written)
        if lease.attempt != self.study.trials[lease.trial].attempt or not self.study.is_leased(lease.trial):
            return False  # another attempt replaced it
        self.num_steps += 1
        self.busy_s += trained.step_s
        if self._gauges is not None:
            self._gauges.reported(lease, trained)
        self._note_how(lease, trained)
        named = self.study.trials[lease.trial].course.named
        num_known = len(named)
        decision = self.study.report(lease.trial, trained.number, trained.step, self._extra(trained))
        for found in named[num_known:]:
            self.watcher.happened(found.of(lease.trial))
        if isinstance(decision, Stop):
            self.watcher.happened(f"trial {lease.trial} {self.study.trials[lease.trial].state}: {decision.reason}")
        elif isinstance(decision, Pause):
            self._pausing.add(lease.trial)
            self.watcher.happened(f"trial {lease.trial} paused: {decision.reason}")
        elif isinstance(decision, Exploit):
            self.keeper.holds(lease.trial)
            self.watcher.happened(f"trial {lease.trial} takes over from trial {decision.source}: {decision.reason}")
        self._calibrate(trained)
        put_off = self.emptying and isinstance(decision, GoOn)
        if put_off or self.keeper.due(lease.trial, decision):
            self._want_checkpoint(lease)
        if isinstance(decision, Stop):
            self.keeper.sweep()
        if put_off:
            self.study.interrupted(lease.trial, reason=self.close_reason or MOVING)
        return isinstance(decision, GoOn) and not put_off

    def _note_how(self, lease: Lease, trained: Trained) -> None:
        """Record what the trial began with, and how it trains, where the process tells."""
        if trained.began_with:
            detail = dict(trained.began_with)
            self.study.record("started_from", trial=lease.trial, attempt=lease.attempt, detail=detail)
        if trained.step.notes:
            self.study.record("trains", trial=lease.trial, step=trained.number, detail=dict(trained.step.notes))

    def _want_checkpoint(self, lease: Lease) -> None:
        self._wanted.add((lease.trial, lease.attempt))
        if self.study.trials[lease.trial].state.ended and lease.trial in self.study.parents:
            self._pausing.add(lease.trial)  # trials wait for its weights

    def _extra(self, trained: Trained) -> Mapping[str, Any]:
        step, seconds = trained.step, trained.step_s
        return {
            "step_s": seconds,
            "elapsed_s": self._clock() - self.began,
            "samples_per_s": step.num_samples / seconds if seconds > 0 and step.num_samples else None,
            "node": trained.node,
            "num_gpus": self.num_gpus,
            "gpu_s": seconds * self.num_gpus,
            "device_memory_mb": step.device_memory_mb,
        }

    def failed(
        self,
        lease: Lease,
        *,
        cause: str,
        message: str,
        trace: str,
        process: str = "",
        written: tuple[Written, ...] = (),
    ) -> None:
        """The attempt ended in an error, and its process with it; `written` is the last that it told."""
        self._pausing.discard(lease.trial)
        self._told(written)
        self.keeper.leave(process)
        self._give_up_gone()
        trial = self.study.trials[lease.trial]
        if lease.attempt != trial.attempt or not self.study.is_leased(lease.trial):
            return  # it ended before: what breaks after the last report of a lease changes nothing
        if cause == "checkpoint":
            self.study.forget_checkpoint(lease.trial)
        if self.calibration is not None and self.calibration.failed(out_of_memory=cause == "out_of_memory"):
            cause = CROWDED
            self._tell_choice()
        retry = self.study.failed(lease.trial, cause=cause, message=message, traceback=trace)
        self.keeper.sweep()
        if cause not in NOT_ITS_OWN:
            self._give_up_where_nothing_works(lease.trial, message)
        after = "tries again" if retry else "failed"
        self.watcher.happened(f"trial {lease.trial} {after}: {cause}: {message.splitlines()[0] if message else ''}")

    def _give_up_where_nothing_works(self, trial: int, message: str) -> None:
        """End a run none of whose first attempts got through a single step: the fault is not in the configurations."""
        self._num_in_vain += 1
        if self.num_steps == 0 and self._num_in_vain == ATTEMPTS_IN_VAIN:
            self.in_vain = (
                f"none of the first {self._num_in_vain} attempts got through a step; that of trial {trial}: {message}"
            )
            self.close_down(self.in_vain)

    # --- trials a GPU ---

    def calibrate(self, places: Mapping[int, int], *, epochs_left: Callable[[], float]) -> None:
        """Find out with the next trials how many a GPU bears: `Calibration` has the arguments."""
        self.calibration = Calibration(places, epochs_left=epochs_left, at=self._clock())

    @property
    def emptying(self) -> bool:
        """Whether no lease is given out and each trial is put off after its next report: the run ends, or moves."""
        return self.closing or (self.calibration is not None and self.calibration.moving)

    def _calibrate(self, trained: Trained) -> None:
        if self.calibration is not None and not self.calibration.settled:
            self.calibration.stepped((trained.node, trained.pid), trained.step, at=self._clock())
            self._tell_choice()

    def _tell_choice(self) -> None:
        choice = self.calibration.choice if self.calibration is not None else None
        if choice is not None and not self._told_choice:
            self._told_choice = True
            self.study.record("concurrent", detail=choice.detail())
            self.watcher.said(choice.sentence())

    def move(self) -> int:
        """Trials a GPU from now on; nothing trains while this is called."""
        assert self.calibration is not None  # noqa: S101 - it is what moves the trials
        self.settle()
        self.hang_up()
        self.calibration.move(at=self._clock())
        return self.calibration.trials_per_gpu

    # --- checkpoints ---

    def wants_checkpoint(self, lease: Lease) -> bool:
        """Whether the state of the lease's last report is to be written; asking takes the wish away."""
        key = (lease.trial, lease.attempt)
        wanted = key in self._wanted
        self._wanted.discard(key)
        return wanted

    def saved(self, lease: Lease, saved: Saved, *, process: str = "") -> None:
        """A process began to write a checkpoint, or could not."""
        self._pausing.discard(lease.trial)
        self._told(saved.written)
        if saved.error:
            self._not_written(lease.trial, saved.step, saved.error)
        else:
            checkpoint = Checkpoint(saved.checkpoint, lease.attempt, saved.step, size=0)
            self.keeper.begun(lease.trial, checkpoint, blocked_s=saved.blocked_s, process=process)

    def _told(self, written: tuple[Written, ...]) -> None:
        for one in written:
            if self.keeper.told(one) and one.error:
                self._not_written(one.trial, one.step, one.error)

    def _not_written(self, trial: int, step: int, error: str) -> None:
        self.study.record("checkpoint_failed", trial=trial, step=step, detail={"error": error})
        self.watcher.happened(f"trial {trial}: its checkpoint could not be written: {error}")

    def await_files(self, *, for_paused: bool = False) -> None:
        """Where nothing trains, return when no file is still to appear; none of a paused trial, if asked.

        Tune has nothing to do then, and would ask again in a second.
        """
        while not self.study.num_leased and self.keeper.waits(for_paused=for_paused):
            self.round()
            time.sleep(LOOK_EVERY_S)

    def _look_for_files(self, *, after_s: float = 0.0) -> None:
        self._give_up_gone()
        self.keeper.look(after_s=after_s)
        for pending in self.keeper.overdue():
            self._not_written(pending.trial, pending.checkpoint.step, f"there is no file after {PATIENCE_S:.0f} s")

    def settle(self) -> None:
        """Take in the last files: the processes that wrote them have ended."""
        self.keeper.leave()
        self._give_up_gone(wait=True)

    def _give_up_gone(self, *, wait: bool = False) -> None:
        for pending in self.keeper.gone(wait=wait):
            self._not_written(pending.trial, pending.checkpoint.step, "its process ended")

    # --- the end ---

    def close_down(self, reason: str) -> None:
        """Give out no more leases, and put off each trial after its next report."""
        if not self.closing:
            self.closing, self.close_reason = True, reason
            self.watcher.said(f"stopping: {reason}")

    def round(self) -> None:
        """What is done between events.

        Raises:
            StoppedAtOnce: Nobody is to be waited for any more.
        """
        if self.stops_now:
            raise StoppedAtOnce
        if self.asked_by:
            self.close_down(f"{self.asked_by}: the steps in progress are finished and saved; once more stops at once")
        self.keeper.delete_doomed()
        now = self._clock()
        if not self.study.num_leased:
            self._look_for_files()
        if now - self._looked > 0.5:
            self._looked = now
            self._look_for_files(after_s=NEWS_WITHIN_S)
            if self._stop_request.exists():
                self.close_down("asked to by `hpo stop`")
            if word := self._standstill.word(waiting=self.study.num_leased, training=len(self.training), now=now):
                self.watcher.said(word)
        if self._gauges is not None:
            self._gauges.round(self.training, num_gpus=self.num_gpus)
        self.watcher.round(self)

    def hang_up(self) -> None:
        """Note the trials whose attempt the end of the run cuts off."""
        for number in self.study.open_leases():
            self.study.interrupted(number, reason=self.close_reason or (MOVING if self.emptying else "the run ended"))
