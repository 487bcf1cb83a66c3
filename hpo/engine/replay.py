"""What a study writes, and holding a replay of it against what was written."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from hpo.engine.growth import CONTINUES, Continued, trials_in
from hpo.engine.trials import Checkpoint
from hpo.errors import ReplayError
from hpo.protocols import Step


class Record(Protocol):
    """Where a study's entries go: the journal of a run, or a list in a simulation."""

    def __call__(
        self,
        kind: str,
        *,
        trial: int | None = None,
        attempt: int | None = None,
        step: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> object:
        """Append one entry."""


class Entry(Protocol):
    """A recorded entry, as the journal gives it back."""

    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def trial(self) -> int | None: ...
    @property
    def attempt(self) -> int | None: ...
    @property
    def step(self) -> int | None: ...
    @property
    def detail(self) -> Mapping[str, Any]: ...


class Fed(Protocol):
    """What takes the inputs of a run: `Study`, which says what each of these does."""

    def extend_to(self, num_trials: int) -> None: ...
    def go_on_with(self, trials: Iterable[Continued]) -> None: ...
    def lease(self) -> object: ...
    def report(self, number: int, step: int, measured: Step) -> object: ...
    def failed(self, number: int, *, cause: str, message: str, retry: bool | None) -> object: ...
    def interrupted(self, number: int, *, reason: str) -> None: ...
    def checkpointed(self, number: int, checkpoint: Checkpoint) -> None: ...
    def forget_checkpoint(self, number: int) -> None: ...
    def forget_deleted(self, number: int, path: str) -> None: ...


_KEYS = {
    "proposed": ("config", "seed"),
    "started": ("why", "from_step", "checkpoint"),
    "report": ("score",),
    "diagnosis": ("name",),
    "stopped": ("state", "policy"),
    "paused": (),
    "exploited": ("source", "path", "config"),
    "failed": ("cause", "retry"),
    "interrupted": (),
    "checkpoint": ("path",),
    "unusable": ("path",),
}
"""What has to agree between a recorded entry and the replayed one, by kind; other kinds decide nothing."""


_Said = tuple[str, int | None, int | None, int | None, Mapping[str, Any]]


class Replayed:
    """Collects what the study says while it is fed, and holds each recorded entry against it."""

    def __init__(self) -> None:
        self._said: deque[_Said] = deque()

    def __call__(
        self,
        kind: str,
        *,
        trial: int | None = None,
        attempt: int | None = None,
        step: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        if kind in _KEYS:
            self._said.append((kind, trial, attempt, step, detail or {}))

    def hold_against(self, entry: Entry, fed: Fed) -> None:
        """Feed the entry where it is not an outcome of one before, and compare."""
        if not self._said:
            feed(entry, fed)
        if entry.kind not in _KEYS:
            return
        if not self._said:
            raise self._differs(entry, "nothing")
        kind, trial, _, step, detail = self._said.popleft()
        same = (kind, trial, step) == (entry.kind, entry.trial, entry.step)
        if not same or any(not _equal(entry.detail.get(key), detail.get(key)) for key in _KEYS[kind]):
            raise self._differs(entry, f"{kind} of trial {trial} at step {step} with {dict(detail)}")

    @property
    def unrecorded(self) -> list[_Said]:
        """Outcomes of the last input that the journal does not hold."""
        return list(self._said)

    @staticmethod
    def _differs(entry: Entry, said: str) -> ReplayError:
        recorded = f"{entry.kind} of trial {entry.trial} at step {entry.step} with {dict(entry.detail)}"
        return ReplayError(
            f"the journal says {recorded}, but a replay gives {said}",
            where=f"entry {entry.seq}",
            remedy="this code decides otherwise than the code that began the run: begin a new one with --fresh",
        )


def feed(entry: Entry, fed: Fed) -> None:
    """Give the input that the entry tells of; outcomes are no inputs."""
    detail = entry.detail
    if entry.kind == "run_started":
        fed.extend_to(int(detail["trials"]))
    elif entry.kind == CONTINUES:
        fed.go_on_with(trials_in(detail))
    elif entry.kind in ("proposed", "started"):
        fed.lease()
    elif entry.trial is not None:
        _feed_of_trial(entry, entry.trial, fed)


def _feed_of_trial(entry: Entry, number: int, fed: Fed) -> None:
    detail = entry.detail
    if entry.kind == "report" and entry.step is not None:
        fed.report(number, entry.step, _step(detail))
    elif entry.kind == "failed":
        fed.failed(number, cause=detail["cause"], message=detail["message"], retry=detail["retry"])
    elif entry.kind == "interrupted":
        fed.interrupted(number, reason=detail["reason"])
    elif entry.kind == "checkpoint":
        fed.checkpointed(number, Checkpoint(detail["path"], entry.attempt or 0, entry.step or 0, int(detail["bytes"])))
    elif entry.kind == "unusable":
        fed.forget_checkpoint(number)
    elif entry.kind == "deleted":
        fed.forget_deleted(number, detail["path"])


def _step(detail: Mapping[str, Any]) -> Step:
    """The step of a report; journals of once hold neither the chunk nor how much of the data was had."""
    return Step(
        detail["metrics"],
        detail["epoch"],
        chunk=detail.get("chunk"),
        num_epochs=detail.get("num_epochs"),
        num_chunks=detail.get("num_chunks"),
        finished=detail["finished"],
    )


def _equal(recorded: Any, replayed: Any) -> bool:
    if isinstance(recorded, float) and isinstance(replayed, float) and math.isnan(recorded):
        return math.isnan(replayed)
    return bool(_plain(recorded) == _plain(replayed))


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, Mapping) else value
