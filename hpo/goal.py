"""Which metric decides, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """The metric that decides, and which way is better."""

    metric: str
    mode: str

    @property
    def sign(self) -> int:
        """1 where larger metric values are better, -1 where smaller ones are: `score = sign * metric`."""
        return 1 if self.mode == "max" else -1


def Maximize(metric: str) -> Goal:  # noqa: N802 - reads as a declaration in an experiment file
    """The goal of a large `metric`."""
    return Goal(metric, "max")


def Minimize(metric: str) -> Goal:  # noqa: N802
    """The goal of a small `metric`."""
    return Goal(metric, "min")
