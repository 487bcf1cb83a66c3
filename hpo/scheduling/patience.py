"""A trial's own early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.errors import ExperimentError
from hpo.protocols import Judge, Policy, positive_int
from hpo.trial import GO_ON, Decision, Ended, Report, Stop


@dataclass(frozen=True)
class Patience(Policy):
    """Stops a trial whose best score is `patience` steps old; its best weights stay its checkpoint.

    A step improves where its score is above the best so far by more than `min_delta` (the first finite score
    always does); one that is no number never does. The rule is that of Keras' `EarlyStopping`.

    Args:
        patience: Steps without improvement that a trial may have, at least 1.
        min_delta: Smallest gain in the goal metric that counts, at least 0.
    """

    patience: int
    min_delta: float = field(default=0.0, kw_only=True)
    keeps_best = True

    def check(self) -> None:
        positive_int(vars(self), "patience")
        if (
            isinstance(self.min_delta, bool)
            or not isinstance(self.min_delta, (int, float))
            or not 0 <= self.min_delta < math.inf
        ):
            raise ExperimentError(
                f"{self.min_delta!r} is not a number of at least 0",
                where="min_delta",
                remedy="0 counts every gain",
            )

    @property
    def max_steps(self) -> None:
        return None

    def begin(self) -> PatienceJudge:
        return PatienceJudge(self)


class PatienceJudge(Judge):
    """The best score of each living trial, and the step that it came from."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._best: dict[int, tuple[int, float]] = {}

    def on_report(self, report: Report) -> Decision:
        step, best = self._best.get(report.trial, (0, -math.inf))
        if report.finite and (step == 0 or report.score > best + self._patience.min_delta):
            self._best[report.trial] = (report.step, report.score)
            return GO_ON
        if report.step - step < self._patience.patience:
            return GO_ON
        since = f"since step {step} ({best:.6g})" if step else "and no finite score at all"
        return Stop(
            f"no gain above {self._patience.min_delta:g} in {report.step - step} steps, {since}",
            by_itself=True,
            policy="patience",
        )

    def on_end(self, ended: Ended) -> None:
        self._best.pop(ended.trial, None)

    def state(self) -> dict[str, Any]:
        return {str(trial): [step, best] for trial, (step, best) in self._best.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._best = {int(trial): (int(step), float(best)) for trial, (step, best) in state.items()}
