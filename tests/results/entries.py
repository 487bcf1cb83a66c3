"""What a driver appends, in small, for the tests of the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.results import Entry, RunStore

RUN_STARTED = {
    "resumed": False,
    "goal": "val_accuracy",
    "mode": "max",
    "trials": 4,
    "digest": "d1",
    "dataset": "digits",
    "dataset_fingerprint": "f1",
    "git_commit": "c1",
    "versions": {"hpo": "0.1.0"},
    "host": "node1",
    "pid": 17,
}


def report(score: float, *, epoch: int = 1, **metrics: float) -> dict[str, Any]:
    """The detail of a report."""
    measured = {"score": score, "epoch": epoch, "chunk": None, "lr": 0.1, "step_s": 0.5, "node": "node1"}
    return {**measured, "metrics": {"val_accuracy": score, **metrics}}


def entry(seq: int, kind: str, *, trial: int | None = None, step: int | None = None, **detail: Any) -> Entry:
    """An entry, a second after the one before."""
    return Entry(seq, 1_000_000.0 + seq, kind, trial, None if trial is None else 1, step, detail)


def train(
    store: RunStore,
    trial: int,
    scores: list[float],
    *,
    config: Mapping[str, Any],
    end: str = "completed",
    **more: float,
) -> None:
    """Append a trial's whole life."""
    store.append("proposed", trial=trial, detail={"config": config, "seed": trial})
    store.append("started", trial=trial, attempt=1, detail={"why": "new", "from_step": 0, "checkpoint": None})
    for step, score in enumerate(scores, start=1):
        store.append("report", trial=trial, attempt=1, step=step, detail=report(score, epoch=step, **more))
    if end:
        detail = {"reason": "enough", "policy": "asha", "state": end}
        store.append("stopped", trial=trial, step=len(scores), detail=detail)
