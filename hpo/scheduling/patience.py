"""A trial's own early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.declared import positive_int
from hpo.errors import ExperimentError
from hpo.protocols import Judge, Policy
from hpo.trial import GO_ON, Config, Decision, Ended, Report, Stop


@dataclass(frozen=True)
class Patience(Policy):
    """Stops a trial whose best score is `patience` steps old; its best weights stay its checkpoint.

    A step improves where its score is above the best so far by more than `min_delta` (the first finite score
    always does); one that is no number never does. The rule is that of Keras' `EarlyStopping`. Of data that grow, steps
    are counted anew with each chunk, whose first score falls because its data are new.

    Both numbers are hyper-parameters as well: where a configuration has `patience` or `min_delta`, that trial's counts.

    Args:
        patience: Steps without improvement that a trial may have, at least 1.
        min_delta: Smallest gain in the goal metric that counts, at least 0.
    """

    patience: int = 10
    min_delta: float = field(default=0.0, kw_only=True)
    keeps_best = True
    takes = ("patience", "min_delta")

    def check(self) -> None:
        _check(vars(self))

    def check_config(self, config: Config) -> None:
        _check({**vars(self), **config})

    @property
    def max_steps(self) -> None:
        return None

    def begin(self) -> PatienceJudge:
        return PatienceJudge(self)


class PatienceJudge(Judge):
    """The best score of each living trial, and the step that it came from."""

    def __init__(self, patience: Patience) -> None:
        self._usual = (patience.patience, float(patience.min_delta))
        self._own: dict[int, tuple[int, float]] = {}
        self._best: dict[int, tuple[int, float]] = {}
        self._chunks: dict[int, int] = {}

    def on_begin(self, trial: int, config: Config) -> None:
        patience, min_delta = self._usual
        own: tuple[Any, Any] = (config.get("patience", patience), config.get("min_delta", min_delta))
        self._own.pop(trial, None)
        if own != self._usual:
            self._own[trial] = own

    def on_report(self, report: Report) -> Decision:
        patience, min_delta = self._own.get(report.trial, self._usual)
        if report.num_chunks > self._chunks.get(report.trial, 0):
            self._chunks[report.trial] = report.num_chunks
            self._best[report.trial] = (report.step, -math.inf)
            return GO_ON
        step, best = self._best.get(report.trial, (0, -math.inf))
        if report.finite and (step == 0 or report.score > best + min_delta):
            self._best[report.trial] = (report.step, report.score)
            return GO_ON
        if report.step - step < patience:
            return GO_ON
        since = f"since step {step} ({best:.6g})" if math.isfinite(best) else "and no finite score at all"
        return Stop(
            f"no gain above {min_delta:g} in {report.step - step} steps, {since}",
            by_itself=True,
            policy="patience",
        )

    def on_end(self, ended: Ended) -> None:
        for told in (self._best, self._own, self._chunks):
            told.pop(ended.trial, None)

    def state(self) -> dict[str, Any]:
        kept = {"best": self._best, "own": self._own}
        pairs = {name: {str(trial): list(pair) for trial, pair in told.items()} for name, told in kept.items()}
        return {**pairs, "chunks": {str(trial): num for trial, num in self._chunks.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._best, self._own = (
            {int(trial): (int(first), float(second)) for trial, (first, second) in state[name].items()}
            for name in ("best", "own")
        )
        self._chunks = {int(trial): num for trial, num in state["chunks"].items()}


def _check(settings: Mapping[str, Any]) -> None:
    positive_int(settings, "patience")
    min_delta = settings["min_delta"]
    if isinstance(min_delta, bool) or not isinstance(min_delta, (int, float)) or not 0 <= min_delta < math.inf:
        raise ExperimentError(
            f"{min_delta!r} is not a number of at least 0", where="min_delta", remedy="0 counts every gain"
        )
