"""Every trial trains to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.declared import positive_int
from hpo.protocols import Judge, Policy
from hpo.trial import GO_ON, Decision, Report, Stop


@dataclass(frozen=True)
class NoStopping(Policy):
    """Trains every trial for `max_epochs` epochs, whatever its score: the baseline of every comparison."""

    resource = "epoch"

    max_epochs: int

    def check(self) -> None:
        positive_int(vars(self), "max_epochs")

    @property
    def max_steps(self) -> int:
        return self.max_epochs

    def begin(self) -> NoStoppingJudge:
        return NoStoppingJudge(self.max_epochs)


class NoStoppingJudge(Judge):
    """Counts to `max_epochs`."""

    def __init__(self, max_epochs: int) -> None:
        self._max_epochs = max_epochs

    def on_report(self, report: Report) -> Decision:
        if report.had("epoch") < self._max_epochs:
            return GO_ON
        return Stop(f"all {report.had('epoch')} epochs trained", completed=True, policy="nostopping")

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        return
