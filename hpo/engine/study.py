"""The study: every decision of a run, made in one place from one order of inputs.

No Ray, no clock, no files. What happens comes in through `lease`, `report`, `failed`, `interrupted` and
`checkpointed`; what follows from it goes out as journal entries through `record`. So a journal holds, in one total
order, every input and every outcome, and `replay` makes the same study again from it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hpo.engine.growth import Continued, ContinuedTrials
from hpo.engine.origins import parent_of, parents
from hpo.engine.replay import Entry, Record, Replayed
from hpo.engine.trials import Checkpoint, Lease, Trial
from hpo.experiment import Experiment
from hpo.protocols import Judge, Step
from hpo.search import GridSearch, RandomSearch
from hpo.seeds import derive
from hpo.trial import GO_ON, Decision, Ended, Exploit, Pause, Report, Stop, TrialState

LOST_NODE = "node_lost"
CROWDED = "crowded"
"""Out of memory while it was being measured how many trials a GPU bears."""
NOT_ITS_OWN = (LOST_NODE, "checkpoint", "storage", CROWDED)
"""Causes that are not the trial's own: it is tried again without being counted."""
MAX_LOST = 20
"""A trial whose node is lost this often fails all the same: something about it ends nodes."""


class Study:
    """Owns the trials, the judges and the proposer of one run.

    Args:
        experiment: Checked.
        record: Where entries go.
    """

    def __init__(self, experiment: Experiment, record: Record) -> None:
        self.experiment = experiment
        self.num_trials = experiment.num_trials
        self.trials: list[Trial] = []
        self.top: list[Trial] = []
        search = experiment.search or (GridSearch() if experiment.trials is None else RandomSearch())
        self.record = record
        self._judges: list[Judge] = [policy.begin() for policy in experiment.policies]
        self._proposer = search.begin(experiment.domains, fixed=experiment.fixed, seed=experiment.seed)
        self.continued: tuple[Continued, ...] = ()
        self._waiting: deque[tuple[int, str]] = deque()  # (trial, why): trials to be leased again
        self._leased: set[int] = set()
        self._parked: list[int] = []  # trials that begin with the weights of one that has not ended
        self.parents = parents(experiment)
        self._num_ended = 0
        self._exhausted = False
        self._nothing_left = False

    # --- what goes out ---

    @property
    def num_leased(self) -> int:
        """Trials that are training now."""
        return len(self._leased)

    @property
    def finished(self) -> bool:
        """Whether nothing is training and nothing is left to train."""
        return self._nothing_left or (self._all_proposed and self._num_ended == len(self.trials))

    @property
    def _all_proposed(self) -> bool:
        return self._exhausted or len(self.trials) >= self.num_trials

    def lease(self) -> Lease | None:
        """What a free place is to train: a trial to be continued, one to be promoted, or a new one; None: nothing."""
        if self._waiting:
            number, why = self._waiting.popleft()
            return self._lease(self.trials[number], why)
        for judge in self._judges:
            if (number_ := judge.promote()) is not None:
                return self._lease(self.trials[number_], "promoted")
        if (parked := self._unparked()) is not None:
            return self._lease(parked, "new")
        while (trial := self._propose()) is not None:
            if not self._awaits_parent(trial):
                return self._lease(trial, "new")
            self._park(trial)
        if self._parked and not self._leased:
            return self._lease(self.trials[self._parked.pop(0)], "new")  # who it waits for stays paused
        # Paused trials that nobody promotes while nothing trains will never be: they stay paused.
        self._nothing_left = not self._leased
        return None

    def _propose(self) -> Trial | None:
        config = None if self._all_proposed else self._proposer.propose(len(self.trials))
        if config is None:
            self._exhausted = self._exhausted or not self._all_proposed
            return None
        number = len(self.trials)
        if self.continued:
            trial = self.continued[number].begun_as(number)
        else:
            trial = Trial(number, config, seed=derive(self.experiment.seed, "training", number))
        self.trials.append(trial)
        self._tell_judges(trial)
        self.record("proposed", trial=number, detail={"config": config, "seed": trial.seed, **trial.lineage()})
        return trial

    def _awaits_parent(self, trial: Trial) -> bool:
        parent = None if self.continued else parent_of(self.experiment, trial.config)
        return parent is not None and parent < trial.number and not self.trials[parent].state.ended

    def _park(self, trial: Trial) -> None:
        self._parked.append(trial.number)
        trial.state = TrialState.PAUSED
        trial.reason = f"begins with trial {parent_of(self.experiment, trial.config)} when that has ended"
        self.record("paused", trial=trial.number, step=0, detail={"reason": trial.reason})

    def _unparked(self) -> Trial | None:
        ready = next((number for number in self._parked if not self._awaits_parent(self.trials[number])), None)
        if ready is None:
            return None
        self._parked.remove(ready)
        return self.trials[ready]

    def keeps(self, trial: Trial) -> bool:
        """Whether the checkpoint of a trial that has ended stays: it is among the best, or others begin with it."""
        return trial in self.top or trial.number in self.parents

    def _tell_judges(self, trial: Trial) -> None:
        for judge in self._judges:
            judge.on_begin(trial.number, trial.config)

    def _lease(self, trial: Trial, why: str) -> Lease:
        self._leased.add(trial.number)
        trial.state = TrialState.RUNNING
        trial.attempt += 1
        checkpoint = trial.checkpoint
        self.record(
            "started",
            trial=trial.number,
            attempt=trial.attempt,
            detail={
                "why": why,
                "from_step": checkpoint.step if checkpoint else 0,
                "checkpoint": checkpoint.path if checkpoint else None,
            },
        )
        return Lease(trial.number, trial.attempt, trial.config, trial.seed, why, checkpoint)

    # --- what comes in ---

    def report(self, number: int, step: int, measured: Step, extra: Mapping[str, Any] | None = None) -> Decision:
        """The decision on a step of a leased trial.

        A step that is stored already (the trial went back to a checkpoint older than its last report) is neither
        stored nor judged again; a score that differs from the stored one is recorded as an event.
        """
        goal = self.experiment.goal
        value = measured.metrics.get(goal.metric, math.nan)
        score = goal.sign * float(value)
        trial = self.trials[number]
        if step <= trial.step:
            return self._again(trial, step, score)
        detail = {
            "score": score,
            "epoch": measured.epoch,
            "chunk": measured.chunk,
            "num_epochs": measured.num_epochs,
            "num_chunks": measured.num_chunks,
            "metrics": dict(measured.metrics),
            "lr": measured.lr,
            "finished": measured.finished,
            **(extra or {}),
        }
        self.record("report", trial=number, attempt=trial.attempt, step=step, detail=detail)
        had = trial.progress.after(measured)
        if had.changed_chunk:
            trial.course.begin_anew()
        for found in trial.course.report(step, score, measured.metrics):
            self.record("diagnosis", trial=number, step=step, detail=found.detail())
        report = Report(number, step, score, num_epochs=had.num_epochs, num_chunks=had.num_chunks)
        return self._judge(trial, report, finished=measured.finished)

    def _again(self, trial: Trial, step: int, score: float) -> Decision:
        stored = trial.scores[step - 1]
        if stored != score and not (math.isnan(stored) and math.isnan(score)):
            self.record("differs", trial=trial.number, step=step, detail={"stored": stored, "again": score})
        return GO_ON

    def _judge(self, trial: Trial, report: Report, *, finished: bool) -> Decision:
        trial.scores.append(report.score)
        if report.finite and trial.see(report):
            self._rank(trial)
        self._proposer.on_report(report)
        decisions = [judge.on_report(report) for judge in self._judges]  # each has to see each report
        if finished:
            decisions.append(
                Stop(
                    f"all {report.had('epoch')} epochs of its configuration trained",
                    completed=True,
                    by_itself=True,
                    policy="task",
                )
            )
        decision = _strongest(decisions)
        if isinstance(decision, Stop):
            self._stop(trial, decision)
        elif isinstance(decision, Pause):
            self._leased.discard(trial.number)
            trial.state, trial.reason = TrialState.PAUSED, decision.reason
            self.record("paused", trial=trial.number, step=trial.step, detail={"reason": decision.reason})
        elif isinstance(decision, Exploit):
            return self._exploit(trial, decision)
        return decision

    def _exploit(self, trial: Trial, decision: Exploit) -> Decision:
        """Have the trial go on from another one's last state, by another attempt; it goes on at once if there is none.

        Of the two, whose weights are better is the policy's to know: the state may be some steps old.
        """
        source = self.trials[decision.source]
        state = source.checkpoint
        if state is None or source is trial:
            return GO_ON
        self._leased.discard(trial.number)
        trial.state, trial.reason = TrialState.PAUSED, decision.reason
        trial.config = dict(decision.config)
        self._tell_judges(trial)
        trial.checkpoint = replace(state, step=trial.step, source=source.number)
        trial.took_over_at = trial.step
        trial.course.begin_anew()
        trial.progress.begin_anew()
        detail = {
            "source": source.number,
            "source_step": state.step,
            "path": state.path,
            "config": trial.config,
            "reason": decision.reason,
            "policy": decision.policy,
        }
        self.record("exploited", trial=trial.number, step=trial.step, detail=detail)
        self._waiting.append((trial.number, "exploited"))
        return decision

    def _rank(self, trial: Trial) -> None:
        """Keep `top`, the best `keep_checkpoints` trials, in order; a trial only ever rises."""
        ranked = {trial.number: trial for trial in (*self.top, trial)}
        best_first = sorted(ranked.values(), key=lambda t: (-(t.best_chunk or 0), -(t.best_score or 0.0), t.number))
        self.top = best_first[: self.experiment.keep_checkpoints]

    @property
    def best(self) -> Trial | None:
        """The trial with the best score so far, of those that know most of growing data; of equal ones the earliest."""
        return self.top[0] if self.top else None

    def _stop(self, trial: Trial, stop: Stop) -> None:
        trial.state = TrialState.COMPLETED if stop.completed else TrialState.STOPPED
        trial.reason, trial.cause = stop.reason, "diverged" if stop.diverged else ""
        detail = {"reason": stop.reason, "policy": stop.policy, "state": trial.state.value, "cause": trial.cause}
        self.record("stopped", trial=trial.number, step=trial.step, detail=detail)
        self._end(trial, by_itself=stop.by_itself)

    def _end(self, trial: Trial, *, by_itself: bool = False, failed: bool = False) -> None:
        self._leased.discard(trial.number)
        self._num_ended += 1
        ended = Ended(
            trial.number,
            trial.step,
            trial.best_score,
            by_itself=by_itself,
            failed=failed,
            num_epochs=trial.progress.num_epochs,
            num_chunks=trial.progress.num_chunks,
        )
        for judge in self._judges:
            judge.on_end(ended)
        self._proposer.on_end(ended)

    def failed(self, number: int, *, cause: str, message: str, traceback: str = "", retry: bool | None = None) -> bool:
        """Whether the trial, whose attempt ended in an error, is to be tried again; it then waits for a place.

        In a replay the journal says whether it was (`retry`), since `max_failures` may have changed in between.
        """
        trial = self.trials[number]
        if cause in NOT_ITS_OWN:
            trial.num_lost += 1
        else:
            trial.num_failures += 1
        if retry is None:
            retry = trial.num_failures <= self.experiment.max_failures and trial.num_lost <= MAX_LOST
        self._leased.discard(number)
        trial.cause, trial.reason = cause, message
        detail = {"cause": cause, "message": message, "traceback": traceback, "retry": retry}
        self.record("failed", trial=number, attempt=trial.attempt, step=trial.step, detail=detail)
        if retry:
            self._waiting.append((number, "retry"))
        else:
            trial.state = TrialState.FAILED
            self._end(trial, failed=True)
        return retry

    def interrupted(self, number: int, *, reason: str) -> None:
        """The attempt of a leased trial ended because the run did; the trial is continued by the next one."""
        trial = self.trials[number]
        self._leased.discard(number)
        trial.state = TrialState.PAUSED
        self.record("interrupted", trial=number, attempt=trial.attempt, step=trial.step, detail={"reason": reason})
        self._waiting.append((number, "resumed"))

    def checkpointed(self, number: int, checkpoint: Checkpoint, measured: Mapping[str, Any] | None = None) -> None:
        """A checkpoint of the trial exists; a later attempt starts from it. `measured` is recorded with it."""
        trial = self.trials[number]
        self.record(
            "checkpoint",
            trial=number,
            attempt=checkpoint.attempt,
            step=checkpoint.step,
            detail={"path": checkpoint.path, "bytes": checkpoint.size, **(measured or {})},
        )
        trial.checkpoint = checkpoint

    def forget_checkpoint(self, number: int) -> None:
        """The trial's checkpoint cannot be used; its next attempt starts from where the trial began."""
        trial = self.trials[number]
        if trial.checkpoint is not None:
            self.record("unusable", trial=number, step=trial.checkpoint.step, detail={"path": trial.checkpoint.path})
            trial.checkpoint = trial.inherited

    # --- replay ---

    def go_on_with(self, trials: Iterable[Continued]) -> None:
        """Have the trials of an earlier run, and no others: nothing is searched for."""
        self.continued = tuple(trials)
        self.parents = frozenset()
        self._proposer = ContinuedTrials(self.continued)
        self.extend_to(len(self.continued))

    def extend_to(self, num_trials: int) -> None:
        """Have so many trials in total, where they are not those of an earlier run; those that there are stay."""
        self.num_trials = len(self.continued) or num_trials
        self._exhausted = self._nothing_left = False

    def replay(self, entries: Iterable[Entry]) -> None:
        """Become the study that wrote the entries, holding each outcome against the recorded one.

        Outcomes of the last input that a torn tail took with it are recorded anew.

        Raises:
            ReplayError: The inputs give another outcome than was recorded.
        """
        before = self.record
        replayed = Replayed()
        self.record = replayed
        try:
            for entry in entries:
                replayed.hold_against(entry, self)
        finally:
            self.record = before
        for kind, trial, attempt, step, detail in replayed.unrecorded:
            before(kind, trial=trial, attempt=attempt, step=step, detail=detail)

    def forget_deleted(self, number: int, path: str) -> None:
        """That file of the trial's is not there any more."""
        trial = self.trials[number]
        if trial.checkpoint is not None and trial.checkpoint.path == path:
            trial.checkpoint = trial.inherited

    def drop_checkpoint(self, number: int, checkpoint: Checkpoint) -> None:
        """Record that the file of a checkpoint that nothing needs any more was deleted."""
        self.record(
            "deleted",
            trial=number,
            attempt=checkpoint.attempt,
            step=checkpoint.step,
            detail={"path": checkpoint.path},
        )
        self.forget_deleted(number, checkpoint.path)

    def is_leased(self, number: int) -> bool:
        """Whether an attempt at the trial is open."""
        return number in self._leased

    def open_leases(self) -> list[int]:
        """Trials whose attempt is open: after a replay, those that the driver's end cut off."""
        return sorted(self._leased)


def _strongest(decisions: Iterable[Decision]) -> Decision:
    """A completion before a stop, a stop before a pause or a copy; among equals the first policy's."""

    def strength(decision: Decision) -> int:
        return 2 + decision.completed if isinstance(decision, Stop) else int(isinstance(decision, (Pause, Exploit)))

    return max(decisions, key=strength, default=GO_ON)
