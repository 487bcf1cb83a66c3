"""Asynchronous successive halving, stopping rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.declared import positive_int
from hpo.errors import ExperimentError
from hpo.protocols import Judge, Policy
from hpo.trial import GO_ON, Decision, Ended, Report, Stop


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

    The rule is the one that Ray Tune and Syne Tune call ASHA; algorithm 2 of the paper (Li et al. 2020, "A System
    for Massively Parallel Hyperparameter Tuning") promotes paused trials instead.

    Args:
        max_epochs: Steps that the best trials get.
        grace: Steps before anything is stopped.
        reduction_factor: At least 2; one in so many goes on at each rung.
    """

    max_epochs: int
    grace: int = field(default=1, kw_only=True)
    reduction_factor: int = field(default=3, kw_only=True)

    def check(self) -> None:
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
    def max_steps(self) -> int:
        return self.max_epochs

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
        scores = self._scores.get(report.step)
        if scores is not None:
            scores[report.trial] = report.score
        if report.step >= self._asha.max_epochs:
            return Stop(f"all {report.step} epochs trained", completed=True, policy="asha")
        return GO_ON if scores is None else self._judge(report, scores)

    def _judge(self, report: Report, scores: Mapping[int, float]) -> Decision:
        mine = (report.score, -report.trial)
        better = sum((score, -trial) > mine for trial, score in scores.items())
        others = len(scores) - 1
        if better * self._asha.reduction_factor <= others:
            return GO_ON
        return Stop(
            f"rung {report.step}: {better} of {others} others are better than {report.score:.6g}",
            policy="asha",
        )

    def on_end(self, ended: Ended) -> None:
        """A trial that ended for itself is counted in the rungs that it did not reach, with its best score."""
        if not ended.by_itself or ended.best_score is None:
            return
        for level, scores in self._scores.items():
            if level > ended.step:
                scores[ended.trial] = ended.best_score

    def state(self) -> dict[str, Any]:
        return {str(level): {str(t): s for t, s in scores.items()} for level, scores in self._scores.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._scores = {int(level): {int(t): s for t, s in scores.items()} for level, scores in state.items()}
