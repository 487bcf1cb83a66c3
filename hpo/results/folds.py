"""What a run and its trials have come to: a fold over the journal's entries, to be continued from the stored rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from hpo.results.segment import Entry
from hpo.results.tables import TIME, microseconds, strict_json

TRIALS = pa.schema(
    [
        ("run_id", pa.string()),
        ("trial", pa.int64()),
        ("state", pa.string()),
        ("stop_reason", pa.string()),
        ("cause", pa.string()),
        ("config", pa.string()),
        ("parent_run", pa.string()),
        ("parent_trial", pa.int64()),
        ("parent_digest", pa.string()),
        ("seed", pa.int64()),
        ("epochs", pa.int64()),
        ("best_score", pa.float64()),
        ("best_step", pa.int64()),
        ("best_chunk", pa.int64()),
        ("last_score", pa.float64()),
        ("checkpoint", pa.string()),
        ("num_attempts", pa.int64()),
    ]
)
"""Columns that every trial has; `hp_<name>` columns follow them."""

RUNS = pa.schema(
    [
        ("run_id", pa.string()),
        ("experiment", pa.string()),
        ("digest", pa.string()),
        ("started_at", TIME),
        ("finished_at", TIME),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("goal", pa.string()),
        ("mode", pa.string()),
        ("num_trials", pa.int64()),
        ("dataset", pa.string()),
        ("dataset_fingerprint", pa.string()),
        ("dataset_pieces", pa.string()),
        ("parent_run", pa.string()),
        ("git_commit", pa.string()),
        ("versions", pa.string()),
        ("host", pa.string()),
        ("pid", pa.int64()),
    ]
)


@dataclass(slots=True)
class TrialRow:
    """All that is known of a trial; its fields but `config` are the columns of their name."""

    trial: int
    state: str = "running"
    stop_reason: str | None = None
    cause: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    parent_run: str | None = None
    parent_trial: int | None = None
    parent_digest: str | None = None
    seed: int | None = None
    epochs: int = 0
    best_score: float | None = None
    best_step: int | None = None
    best_chunk: int | None = None
    last_score: float | None = None
    checkpoint: str | None = None
    num_attempts: int = 0


class TrialFold:
    """The rows of `trials`. Folding entries in pieces, or from a stored table on, gives what all at once gives."""

    def __init__(self, run_id: str, table: pa.Table | None = None) -> None:
        self.run_id = run_id
        self.rows: dict[int, TrialRow] = {}
        stored_columns = set() if table is None else set(table.column_names)  # an older run lacks the newest ones
        names = [column.name for column in fields(TrialRow) if column.name in stored_columns]
        for stored in table.select(names).to_pylist() if table is not None else ():
            self.rows[stored["trial"]] = TrialRow(**{**stored, "config": json.loads(stored["config"])})

    def apply(self, entries: Iterable[Entry]) -> None:
        """Take in entries, in the journal's order."""
        for entry in entries:
            change = _CHANGES.get(entry.kind)
            if change is not None and entry.trial is not None:
                change(self.rows.setdefault(entry.trial, TrialRow(entry.trial)), entry)

    def table(self) -> pa.Table:
        """A row per trial, by number."""
        rows = sorted(self.rows.values(), key=lambda row: row.trial)
        columns: dict[str, pa.Array] = {}
        for column in TRIALS:
            if column.name == "run_id":
                columns["run_id"] = pa.repeat(pa.scalar(self.run_id), len(rows))
            elif column.name == "config":
                columns["config"] = pa.array([strict_json(row.config) for row in rows], pa.string())
            else:
                columns[column.name] = pa.array([getattr(row, column.name) for row in rows], column.type)
        for name in sorted({name for row in rows for name in row.config}):
            values = [row.config.get(name) for row in rows]
            if any(value is not None for value in values):
                columns[f"hp_{name}"] = hyper_parameter(values)
        return pa.table(columns)


def hyper_parameter(values: list[Any]) -> pa.Array:
    """A column of one hyper-parameter: bool, int64, float64 or text, whatever holds them all; else JSON text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(value is None or abs(value) < 2**63 for value in values):
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    texts = [value if value is None or isinstance(value, str) else strict_json(value) for value in values]
    return pa.array(texts, pa.string())


def _proposed(row: TrialRow, entry: Entry) -> None:
    row.config = dict(entry.detail["config"])
    row.seed = entry.detail.get("seed")
    row.parent_run, row.parent_trial = entry.detail.get("parent_run"), entry.detail.get("parent_trial")


def _started(row: TrialRow, _: Entry) -> None:
    row.state, row.stop_reason, row.cause = "running", None, None
    row.num_attempts += 1


def _started_from(row: TrialRow, entry: Entry) -> None:
    row.parent_run, row.parent_trial = entry.detail["run"], entry.detail["trial"]
    row.parent_digest = entry.detail["digest"]


def _reported(row: TrialRow, entry: Entry) -> None:
    given = entry.detail.get("score")
    score = math.nan if given is None else float(given)
    row.last_score = score
    row.epochs = max(row.epochs, int(entry.detail.get("epoch") or 0))
    chunk = entry.detail.get("chunk")  # of growing data, the score of the newest chunk counts
    if math.isfinite(score) and (row.best_score is None or chunk != row.best_chunk or score > row.best_score):
        row.best_score, row.best_step, row.best_chunk = score, entry.step, chunk


def _stopped(row: TrialRow, entry: Entry) -> None:
    row.state, row.stop_reason = entry.detail["state"], entry.detail.get("reason")
    row.cause = entry.detail.get("cause") or None


def _paused(row: TrialRow, entry: Entry) -> None:
    row.state, row.stop_reason = "paused", entry.detail.get("reason")


def _exploited(row: TrialRow, entry: Entry) -> None:
    row.config = dict(entry.detail["config"])
    row.parent_run, row.parent_trial, row.parent_digest = None, entry.detail["source"], None
    row.state, row.stop_reason, row.checkpoint = "paused", entry.detail.get("reason"), entry.detail["path"]


def _failed(row: TrialRow, entry: Entry) -> None:
    if entry.detail.get("retry"):
        row.state = "running"
        return
    row.state, row.cause, row.stop_reason = "failed", entry.detail.get("cause"), entry.detail.get("message")


def _checkpointed(row: TrialRow, entry: Entry) -> None:
    row.checkpoint = entry.detail["path"]


def _deleted(row: TrialRow, entry: Entry) -> None:
    if row.checkpoint == entry.detail["path"]:
        row.checkpoint = None


_CHANGES: dict[str, Callable[[TrialRow, Entry], None]] = {
    "proposed": _proposed,
    "started": _started,
    "started_from": _started_from,
    "report": _reported,
    "stopped": _stopped,
    "paused": _paused,
    "interrupted": _paused,
    "exploited": _exploited,
    "failed": _failed,
    "checkpoint": _checkpointed,
    "deleted": _deleted,
    "unusable": _deleted,
}


class RunFold:
    """The one row of `runs`."""

    def __init__(self, run_id: str, experiment: str, table: pa.Table | None = None) -> None:
        self.row: dict[str, Any] = dict.fromkeys(RUNS.names)
        self.row.update(run_id=run_id, experiment=experiment, state="running")
        if table is not None:
            present = [column for column in _COUNTED if column.name in table.column_names]  # an older run lacks some
            stored = table.select([column.name for column in present]).cast(pa.schema(present))
            self.row.update(stored.to_pylist()[0])

    def apply(self, entries: Iterable[Entry]) -> bool:
        """Whether the entries, in the journal's order, changed the row."""
        changed = False
        for entry in entries:
            if entry.kind == "run_started":
                self._start(entry)
            elif entry.kind == "run_ended":
                state, reason = entry.detail["state"], entry.detail.get("reason") or None
                self.row.update(state=state, reason=reason, finished_at=microseconds(entry.at))
            changed = changed or entry.kind in ("run_started", "run_ended")
        return changed

    def begin(self, at: float) -> None:
        """The run is there from `at` on, in Unix seconds; its first `run_started` says it better."""
        self.row["started_at"] = microseconds(at)

    def _start(self, entry: Entry) -> None:
        detail = entry.detail
        self.row.update({name: detail[name] for name in _TOLD if name in detail})
        self.row.update(state="running", reason=None, finished_at=None)
        self.row["num_trials"] = detail.get("trials")
        self.row["versions"] = strict_json(detail.get("versions") or {})
        if pieces := detail.get("dataset_pieces"):
            self.row["dataset_pieces"] = strict_json(pieces)
        if not detail.get("resumed"):
            self.begin(entry.at)

    def table(self) -> pa.Table:
        """One row."""
        return pa.Table.from_pylist([self.row], schema=_COUNTED).cast(RUNS)


_TOLD = ("digest", "goal", "mode", "dataset", "dataset_fingerprint", "parent_run", "git_commit", "host", "pid")
_COUNTED = pa.schema([(part.name, pa.int64() if part.type == TIME else part.type) for part in RUNS])
