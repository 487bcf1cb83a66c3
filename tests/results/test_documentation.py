"""Every snippet of docs/results.md runs, on a store whose parts have differing metrics, and reads all rows."""

import re
from pathlib import Path

import pytest

from hpo.results import RunStore
from hpo.results.folds import RUNS, TRIALS
from hpo.results.tables import EVENTS, REPORTS
from tests.results.entries import RUN_STARTED, train

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run_id, lr in (("r1", 0.1), ("r2", 1)):
        with RunStore.create(Path("results"), experiment="cifar", run_id=run_id) as store:
            store.append("run_started", detail=RUN_STARTED)
            train(store, 0, [0.1, 0.2], config={"lr": lr, "opt": "sgd"})
            store.seal()
            train(store, 1, [0.3, 0.4], config={"lr": lr}, val_loss=0.5)
            store.append("failed", trial=1, attempt=1, detail={"cause": "error", "message": "why", "retry": True})


def run(word: str) -> dict:
    (snippet,) = [snippet for snippet in SNIPPETS if f"import {word}" in snippet]
    names: dict = {}
    exec(compile(snippet, f"docs/results.md ({word})", "exec"), names)  # noqa: S102
    return names


def test_the_store():
    names = run("Store")
    assert names["best"]["trial"].to_pylist() == [1, 0]
    assert names["curve"].to_pydict() == {"step": [1, 1, 2, 2], "val_loss": [0.5] * 4}
    assert names["states"].to_pylist() == [{"state": "completed", "num": 2}, {"state": "running", "num": 2}]
    assert names["failures"]["message"].to_pylist() == ["why", "why"]


def test_duckdb():
    reports = run("duckdb")["reports"]
    assert (reports.num_rows, reports["val_loss"].null_count) == (8, 4)
    assert {"experiment", "run"} <= set(reports.column_names)


def test_pyarrow():
    reports = run("pyarrow.dataset as ds")["reports"]
    assert reports.num_rows == 8
    assert reports["val_loss"].null_count == 4
    assert set(reports["run"].to_pylist()) == {"r1", "r2"}


def test_pandas():
    names = run("pandas as pd")
    assert names["reports"]["val_loss"].notna().sum() == 4
    assert len(names["reports"]) == 8
    assert len(names["trials"]) == 4


def test_polars():
    reports = run("polars as pl")["reports"]
    assert (len(reports), reports["val_loss"].null_count()) == (8, 4)


def test_the_journal():
    (snippet,) = [snippet for snippet in SNIPPETS if "open_stream" in snippet]
    names: dict = {}
    exec(snippet, names)  # noqa: S102
    assert len([entry for entry in names["entries"] if entry["kind"] == "report"]) == 8


def test_every_snippet_is_run():
    assert len(SNIPPETS) == 6


@pytest.mark.parametrize("schema", [RUNS, TRIALS, REPORTS, EVENTS])
def test_every_column_is_described(schema):
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in schema.names if f"`{name}`" not in text] == []
