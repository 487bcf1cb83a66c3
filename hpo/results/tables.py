"""From journal entries to rows of `reports` and `events`; and how a table becomes a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpo.errors import StoreError
from hpo.results.layout import write_atomically
from hpo.results.segment import SCHEMA_VERSION, VERSION_KEY, Entry, check_version

THROUGH_KEY = b"hpo.through_seq"
TIME = pa.timestamp("us")  # UTC, without saying so: a zone would need packages that readers may not have

REPORTS = pa.schema(
    [
        ("run_id", pa.string()),
        ("trial", pa.int64()),
        ("attempt", pa.int64()),
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("chunk", pa.int64()),
        ("score", pa.float64()),
        ("lr", pa.float64()),
        ("step_s", pa.float64()),
        ("elapsed_s", pa.float64()),
        ("samples_per_s", pa.float64()),
        ("node", pa.string()),
        ("num_gpus", pa.float64()),
        ("gpu_s", pa.float64()),
        ("device_memory_mb", pa.float64()),
        ("happened_at", TIME),
        ("seq", pa.int64()),
    ]
)
"""Columns that every report has; metrics follow them, each a `float64`. (`at` alone is a word of DuckDB's SQL.)"""

EVENTS = pa.schema(
    [
        ("run_id", pa.string()),
        ("seq", pa.int64()),
        ("happened_at", TIME),
        ("kind", pa.string()),
        ("trial", pa.int64()),
        ("attempt", pa.int64()),
        ("step", pa.int64()),
        ("detail", pa.string()),
    ]
)

_FROM_DETAIL = [
    name for name in REPORTS.names if name not in {"run_id", "trial", "attempt", "step", "happened_at", "seq"}
]


def metric_column(name: str) -> str:
    """The column of a metric: its name, with `metric_` before it where a fixed column has that name already."""
    return f"metric_{name}" if name.lower() in REPORTS.names else name


def reports_table(run_id: str, entries: Iterable[Entry]) -> pa.Table:
    """A row per `report` entry; a metric that a report lacks is null."""
    reports = [entry for entry in entries if entry.kind == "report"]
    columns: dict[str, pa.Array] = {
        "run_id": pa.repeat(pa.scalar(run_id), len(reports)),
        "trial": pa.array([entry.trial for entry in reports], pa.int64()),
        "attempt": pa.array([entry.attempt for entry in reports], pa.int64()),
        "step": pa.array([entry.step for entry in reports], pa.int64()),
        "happened_at": pa.array([microseconds(entry.at) for entry in reports], TIME),
        "seq": pa.array([entry.seq for entry in reports], pa.int64()),
    }
    for name in _FROM_DETAIL:
        kind = REPORTS.field(name).type
        columns[name] = pa.array([_fit(entry.detail.get(name), kind) for entry in reports], kind)
    metrics = [entry.detail.get("metrics") or {} for entry in reports]
    names = sorted({name for row in metrics for name in row})
    for name in names:
        columns[metric_column(name)] = pa.array([_fit(row.get(name), pa.float64()) for row in metrics], pa.float64())
    ordered = [*REPORTS.names, *(name for name in columns if name not in REPORTS.names)]
    return pa.table({name: columns[name] for name in ordered})


def events_table(run_id: str, entries: Iterable[Entry]) -> pa.Table:
    """A row per entry that is no report; `detail` is strict JSON, in which `"NaN"` and its like are texts."""
    events = [entry for entry in entries if entry.kind != "report"]
    columns = [
        pa.repeat(pa.scalar(run_id), len(events)),
        [entry.seq for entry in events],
        [microseconds(entry.at) for entry in events],
        [entry.kind for entry in events],
        [entry.trial for entry in events],
        [entry.attempt for entry in events],
        [entry.step for entry in events],
        [strict_json(entry.detail) for entry in events],
    ]
    return pa.table(columns, schema=EVENTS)


def strict_json(value: Any) -> str:
    """JSON that every reader takes: floats that are no numbers become the texts NaN, Infinity, -Infinity."""
    try:
        return json.dumps(value, allow_nan=False, default=dict)
    except ValueError:
        return json.dumps(_spelled(value), default=dict)


def _spelled(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return {key: _spelled(part) for key, part in value.items()}
    return [_spelled(part) for part in value] if isinstance(value, list | tuple) else value


def microseconds(at: float) -> int:
    """Unix seconds as what a `TIME` column counts."""
    return round(at * 1e6)


def _fit(value: Any, kind: pa.DataType) -> Any:
    """The value as the column takes it; null where it is of another nature."""
    if kind == pa.string():
        return None if value is None else str(value)
    if not isinstance(value, int | float):
        return None
    return float(value) if kind == pa.float64() else int(value) if math.isfinite(value) else None


# --- files ---


def write_table(path: Path, table: pa.Table, *, through_seq: int) -> None:
    """Write a Parquet file, whole and durable.

    Args:
        path: The file.
        table: What it holds.
        through_seq: Last journal entry that is in it.

    Raises:
        StoreError: It cannot be written.
    """
    marks = {VERSION_KEY: str(SCHEMA_VERSION).encode(), THROUGH_KEY: str(through_seq).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(marks), sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def read_table(path: Path) -> tuple[pa.Table, int]:
    """A file that `write_table` wrote, and its `through_seq`.

    Raises:
        FileNotFoundError: There is none.
        StoreError: It is damaged, or of a newer version.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise StoreError(
            f"is no whole Parquet file: {error}",
            where=str(path),
            remedy="bring it back from a copy, or delete it and the events parts of its run, and open the run again",
        ) from error
    check_version(table.schema.metadata, path)
    return table.replace_schema_metadata(None), int(table.schema.metadata[THROUGH_KEY])


def stacked(tables: Sequence[pa.Table], *, fixed: pa.Schema) -> pa.Table:
    """All rows under each other; a column of differing types becomes `float64` if all are numbers, else text."""
    kinds: dict[str, set[pa.DataType]] = {field.name: {field.type} for field in fixed}
    for table in tables:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    schema = pa.schema([(name, _widest(types)) for name, types in kinds.items()])
    return pa.concat_tables([_in_schema(table, schema) for table in tables] or [schema.empty_table()])


def _widest(types: set[pa.DataType]) -> pa.DataType:
    if len(types) == 1:
        return next(iter(types))
    return pa.float64() if types <= {pa.int64(), pa.float64()} else pa.string()


def _in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    present = set(table.column_names)
    columns = [
        table[field.name].cast(field.type) if field.name in present else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
