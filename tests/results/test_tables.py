import json
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import StoreError
from hpo.results.tables import (
    EVENTS,
    REPORTS,
    events_table,
    metric_column,
    read_table,
    reports_table,
    stacked,
    strict_json,
    write_table,
)
from tests.results.entries import entry, report


def test_a_report_is_a_row_with_a_column_per_metric():
    entries = [
        entry(1, "started", trial=3),
        entry(2, "report", trial=3, step=1, **report(0.5)),
        entry(3, "report", trial=3, step=2, **report(math.nan, epoch=2, loss=1)),
    ]
    table = reports_table("r", entries)
    assert table.schema.names == [*REPORTS.names, "loss", "val_accuracy"]
    assert table.select(REPORTS.names).schema == REPORTS
    first, second = table.to_pylist()
    assert (first["trial"], first["attempt"], first["step"], first["epoch"], first["seq"]) == (3, 1, 1, 1, 2)
    assert (first["loss"], first["val_accuracy"], first["chunk"], first["node"]) == (None, 0.5, None, "node1")
    assert first["happened_at"].timestamp() is not None
    assert (second["loss"], second["epoch"]) == (1.0, 2)
    assert math.isnan(second["score"])


def test_no_reports_are_no_rows_with_all_columns():
    assert reports_table("r", []).schema == REPORTS
    assert events_table("r", []).schema == EVENTS


@pytest.mark.parametrize(
    ("metric", "column"),
    [("lr", "metric_lr"), ("Step", "metric_Step"), ("loss", "loss"), ("happened_at", "metric_happened_at")],
)
def test_a_metric_never_hides_a_fixed_column(metric, column):
    assert metric_column(metric) == column
    row = reports_table("r", [entry(1, "report", trial=0, step=1, **report(0.5, **{metric: 7.0}))]).to_pylist()[0]
    assert (row[column], row["lr"], row["step"]) == (7.0, 0.1, 1)


def test_what_is_no_number_is_null():
    detail = {"score": None, "epoch": math.inf, "num_gpus": "many", "metrics": {"loss": "low", "ok": True}}
    row = reports_table("r", [entry(1, "report", trial=0, step=1, **detail)]).to_pylist()[0]
    assert (row["score"], row["epoch"], row["num_gpus"], row["loss"], row["ok"]) == (None, None, None, None, 1.0)


def test_all_that_is_no_report_is_an_event():
    entries = [entry(1, "report", trial=0), entry(2, "anything", trial=4, why="so"), entry(3, "run_ended", x=math.nan)]
    first, second = events_table("r", entries).to_pylist()
    assert (first["seq"], first["kind"], first["trial"], json.loads(first["detail"])) == (
        2,
        "anything",
        4,
        {"why": "so"},
    )
    assert (second["trial"], json.loads(second["detail"])) == (None, {"x": "NaN"})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(ANYTHING)
def test_strict_json_is_read_by_strict_readers(value):
    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(strict_json(value), parse_constant=refuse)
    if "NaN" not in str(read) and "Infinity" not in str(read):
        assert read == value


def test_a_table_comes_back_with_how_far_it_goes(tmp_path):
    table = reports_table("r", [entry(1, "report", trial=0, step=1, **report(0.5))])
    write_table(tmp_path / "part.parquet", table, through_seq=7)
    read, through = read_table(tmp_path / "part.parquet")
    assert read == table
    assert through == 7


def test_a_damaged_file_and_a_strangers_are_errors(tmp_path):
    path = tmp_path / "part.parquet"
    path.write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(StoreError, match=r"part.parquet: is no whole Parquet file: .*\n.*from a copy"):
        read_table(path)
    pa.parquet.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(StoreError, match=r"part.parquet: its schema version is none"):
        read_table(path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "nowhere.parquet")


def test_stacked_columns_are_widened_where_types_differ():
    fixed = pa.schema([("run_id", pa.string())])
    tables = [
        pa.table({"run_id": ["a"], "hp_lr": [1], "hp_x": [0.5], "hp_only": [True]}),
        pa.table({"run_id": ["b"], "hp_lr": [0.5], "hp_x": ["auto"]}),
        pa.table({"run_id": ["c"], "hp_x": [True]}),
    ]
    table = stacked(tables, fixed=fixed)
    assert table["hp_lr"].to_pylist() == [1.0, 0.5, None]
    assert table["hp_x"].to_pylist() == ["0.5", "auto", "true"]
    assert table["hp_only"].to_pylist() == [True, None, None]
    assert stacked([], fixed=fixed) == fixed.empty_table()
