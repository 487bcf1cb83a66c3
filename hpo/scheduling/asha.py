"""Asynchronous successive halving, stopping rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.declared import positive_int
from hpo.errors import ExperimentError
from hpo.protocols import Judge, Policy
from hpo.trial import GO_ON, Decision, Ended, Report, Stop

RESOURCES = ("step", "epoch", "chunk")


def rung_levels(grace: int, reduction_factor: int, max_steps: int) -> tuple[int, ...]:
    """`grace, grace * r, grace * r**2, …` below `max_steps`, and `max_steps` itself; integers throughout."""
    levels = []
    level = grace
    while level < max_steps:
        levels.append(level)
        level *= reduction_factor
    return (*levels, max_steps)


@dataclass(frozen=True)
class Asha(Policy):
    """Stops a trial at a rung unless it is among the best `1 / reduction_factor` that have come by so far.

    Nobody waits: a trial is judged when it reaches a rung, against those that reached it before. It goes on where
    at most `1 / reduction_factor` of these others are better, so the best so far always does. That is the count
    that the quantile of Syne Tune's stopping ASHA gives, without its interpolation; equal scores are ordered by
    trial number, the earlier trial first. At `max_epochs` a trial has completed.

    What is counted is `resource`:
      * "epoch", the default: passes over the training data, however often a trial measures. Right where data do not
        grow, and where trials differ in how much they train between two reports.
      * "chunk": pieces of growing data, with all of their epochs. Trials are compared when they know the same data,
        however many epochs each gives to a chunk; between two chunks a score falls because the data are new, not
        because the trial is bad, so nothing is stopped there.
      * "step": reports. With `val_check_interval` it stops within an epoch, which large data repay; trials then have to
        have the same interval and batch size, or the same step is another amount of training.

    The rule is the one that Ray Tune and Syne Tune call ASHA; algorithm 2 of the paper (Li et al. 2020, "A System
    for Massively Parallel Hyperparameter Tuning") promotes paused trials instead.

    Args:
        max_epochs: Epochs (chunks, steps) that the best trials get.
        grace: Epochs (chunks, steps) before anything is stopped.
        reduction_factor: At least 2; one in so many goes on at each rung.
        resource: "epoch", "chunk" or "step".
    """

    max_epochs: int
    grace: int = field(default=1, kw_only=True)
    reduction_factor: int = field(default=3, kw_only=True)
    resource: str = field(default="epoch", kw_only=True)

    def describe(self) -> dict[str, Any]:
        told = super().describe()
        if self.resource == "epoch":
            del told["resource"]  # there was no other once: runs of then are runs of this experiment
        return told

    def check(self) -> None:
        if self.resource not in RESOURCES:
            raise ExperimentError(
                f"{self.resource!r} is not one of {', '.join(map(repr, RESOURCES))}",
                where="resource",
                remedy='count epochs, the default; with growing data, e.g. Asha(5, resource="chunk")',
            )
        positive_int(vars(self), "max_epochs", "grace", "reduction_factor")
        if self.grace > self.max_epochs:
            raise ExperimentError(
                f"{self.grace} is above max_epochs={self.max_epochs}",
                where="grace",
                remedy="nothing would ever be stopped: lower grace, or use NoStopping",
            )
        if self.reduction_factor < 2:
            raise ExperimentError("1 is below 2", where="reduction_factor", remedy="use 3 or 4; 2 stops least")

    @property
    def max_steps(self) -> int | None:
        return None if self.resource == "chunk" else self.max_epochs

    @property
    def rungs(self) -> tuple[int, ...]:
        return rung_levels(self.grace, self.reduction_factor, self.max_epochs)

    def begin(self) -> AshaJudge:
        return AshaJudge(self)


class AshaJudge(Judge):
    """The scores at each rung, by trial."""

    def __init__(self, asha: Asha) -> None:
        self._asha = asha
        self._scores: dict[int, dict[int, float]] = {level: {} for level in asha.rungs}

    def on_report(self, report: Report) -> Decision:
        if not report.finite:
            return Stop(
                f"diverged: the score at step {report.step} is {report.score}",
                diverged=True,
                policy="asha",
            )
        had = report.had(self._asha.resource)
        rung = max((level for level in self._scores if level <= had), default=None)
        is_first = rung is not None and report.trial not in self._scores[rung]  # a rung may last for some reports
        if rung is not None and is_first:
            self._scores[rung][report.trial] = report.score
        if had >= self._asha.max_epochs:
            return Stop(f"all {had} {self._asha.resource}s trained", completed=True, policy="asha")
        return self._judge(report, rung) if rung is not None and is_first else GO_ON

    def _judge(self, report: Report, rung: int) -> Decision:
        scores = self._scores[rung]
        mine = (report.score, -report.trial)
        better = sum((score, -trial) > mine for trial, score in scores.items())
        others = len(scores) - 1
        if better * self._asha.reduction_factor <= others:
            return GO_ON
        return Stop(
            f"rung {rung}: {better} of {others} others are better than {report.score:.6g}",
            policy="asha",
        )

    def on_end(self, ended: Ended) -> None:
        """A trial that ended for itself is counted in the rungs that it did not reach, with its best score."""
        if not ended.by_itself or ended.best_score is None:
            return
        for level, scores in self._scores.items():
            if level > ended.had(self._asha.resource):
                scores[ended.trial] = ended.best_score

    def state(self) -> dict[str, Any]:
        return {str(level): {str(t): s for t, s in scores.items()} for level, scores in self._scores.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._scores = {int(level): {int(t): s for t, s in scores.items()} for level, scores in state.items()}
