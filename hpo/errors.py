"""What can go wrong, in the user's words: where, what (the value and the rule), and the remedy."""

from __future__ import annotations

from typing import Any


class HpoError(Exception):
    """Base of every error that is shown to a person without a traceback.

    Args:
        problem: The value and the rule that it breaks, in one sentence.
        where: What the user wrote or named: a file, `space.lr`, a path.
        remedy: What to do or to look at next.

    The process exits with `exit_code` when such an error ends it.
    """

    exit_code = 1

    def __init__(self, problem: str, *, where: str = "", remedy: str = "") -> None:
        self.problem, self.where, self.remedy = problem, where, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{text}\n  {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.problem, self.where, self.remedy)

    def inside(self, outer: str) -> HpoError:
        """The same error, its place named from further out: `space.lr` inside `x.py` is `x.py: space.lr`."""
        where = f"{outer}: {self.where}" if self.where else outer
        return type(self)(self.problem, where=where, remedy=self.remedy)


def _rebuild(kind: type[HpoError], problem: str, where: str, remedy: str) -> HpoError:
    return kind(problem, where=where, remedy=remedy)


class ExperimentError(HpoError):
    """The experiment file, or an option that changes it, is wrong. Nothing has been started."""

    exit_code = 2


class DataError(HpoError):
    """A data set is missing, cut off, damaged, or not what the run began with."""

    exit_code = 2


class StoreError(HpoError):
    """The results store cannot be read or written."""


class UnknownRun(StoreError):  # noqa: N818 - reads as what it says
    """No run of that name is in the store."""

    exit_code = 2


class RunLocked(StoreError):  # noqa: N818
    """Another driver is working on the run."""


class CheckpointError(HpoError):
    """A checkpoint cannot be read, or does not belong to what it is loaded into."""


class WorkerLost(HpoError):  # noqa: N818
    """Another of the processes that train a trial together ended, or did not answer in time."""


class ReplayError(HpoError):
    """The journal of a run cannot be replayed by this version of the code."""
