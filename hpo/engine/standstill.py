"""Trials that wait for a place while none trains: said, since a run may wait for ever and look as if it worked."""

from __future__ import annotations

from collections.abc import Callable

FIRST_WORD_S = 60.0
"""Longer than a process takes to start; then the time doubles from word to word."""


class Standstill:
    """Notes for how long nothing trains.

    Args:
        shortage: What a trial needs and what there is, asked for where it has to be said.
    """

    def __init__(self, shortage: Callable[[], str]) -> None:
        self._shortage = shortage
        self._since: float | None = None
        self._next_s = FIRST_WORD_S

    def word(self, *, waiting: int, training: int, now: float) -> str:
        """What is to be said now, mostly nothing.

        Args:
            waiting: Trials that are to train.
            training: Those that have a place.
            now: Seconds, of any clock.
        """
        if training or not waiting:
            self._since, self._next_s = None, FIRST_WORD_S
            return ""
        if self._since is None:
            self._since = now
        if now - self._since < self._next_s:
            return ""
        told_s, self._next_s = self._next_s, 2 * self._next_s
        trials = "the next trial waits" if waiting == 1 else f"{waiting} trials wait"
        return f"nothing trains: {trials} for a place since {told_s / 60:.0f} min; {self._shortage()}"
