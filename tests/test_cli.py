"""`hpo`: what it answers from a store."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpo.cli import main
from hpo.results import RunStore


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A store with one run of two trials, one of which failed."""
    root = tmp_path / "results"
    with RunStore.create(root, experiment="x", run_id="20260101-000000-abcd") as store:
        start = {"resumed": False, "goal": "score", "mode": "max", "trials": 2, "digest": "d", "dataset": "toy"}
        start |= {"dataset_fingerprint": "f", "git_commit": None, "versions": {}, "host": "h", "pid": 1}
        store.append("run_started", detail=start)
        for trial in range(2):
            store.append("proposed", trial=trial, detail={"config": {"x": 0.5 + trial, "say": "a"}, "seed": 1})
            store.append("started", trial=trial, attempt=1, detail={"why": "new", "from_step": 0, "checkpoint": None})
        report = {"score": 0.25, "epoch": 1, "chunk": None, "metrics": {"score": 0.25}, "lr": 0.1}
        store.append("report", trial=0, attempt=1, step=1, detail=report)
        store.append("stopped", trial=0, step=1, detail={"reason": "end", "policy": "asha", "state": "completed"})
        failure = {"cause": "error", "message": "no", "traceback": "Traceback: no\n", "retry": False}
        store.append("failed", trial=1, attempt=1, step=0, detail=failure)
        store.append("run_ended", detail={"state": "finished", "reason": ""})
        log = store.paths.log(0)
        log.parent.mkdir(parents=True)
        log.write_text("hello\n")
    return root


def typed(results: Path | None, *words: str) -> tuple[int, str, str]:
    where = [] if results is None else ["--results", str(results)]
    done = CliRunner().invoke(main, [*words, *where])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_without_arguments_it_explains_itself() -> None:
    code, out, _ = typed(None)
    assert code == 0
    assert "hpo run experiments/cifar_lr_dropout.py --quick" in out
    for name in ("run", "runs", "best", "sql", "logs", "stop", "tensorboard"):
        assert f"\n  {name} " in out


def test_runs(results: Path) -> None:
    _, out, _ = typed(results, "runs", "--format", "json")
    [run] = json.loads(out)
    assert (run["run_id"], run["state"], run["trials"], run["best"]) == ("20260101-000000-abcd", "finished", 2, 0.25)


@pytest.mark.parametrize("reference", ["x", "20260101-000000-abcd", "20260101"])
def test_best_by_name_id_or_beginning(results: Path, reference: str) -> None:
    code, out, _ = typed(results, "best", reference, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert rows[0]["trial"] == "0"
    assert float(rows[0]["best_score"]) == 0.25


def test_best_as_a_table_for_people(results: Path) -> None:
    code, out, _ = typed(results, "best", "x")
    assert code == 0
    assert "0.25" in out


def test_sql(results: Path) -> None:
    _, out, _ = typed(results, "sql", "SELECT trial, hp_x FROM trials ORDER BY trial", "--format", "json")
    assert json.loads(out) == [{"trial": 0, "hp_x": 0.5}, {"trial": 1, "hp_x": 1.5}]


def test_sql_that_is_wrong_names_the_columns(results: Path) -> None:
    code, _, err = typed(results, "sql", "SELECT nothing FROM trials")
    assert code == 1
    assert "nothing" in err
    assert "best_score" in err


def test_no_rows(results: Path) -> None:
    assert "no rows" in typed(results, "sql", "SELECT * FROM reports WHERE trial = 9")[1]


def test_logs_show_what_was_printed_and_why_it_failed(results: Path) -> None:
    assert typed(results, "logs", "x", "0")[1] == "hello\n"
    out = typed(results, "logs", "x", "1")[1]
    assert "--- attempt 1 failed: error" in out
    assert "Traceback: no" in out


def test_logs_of_a_trial_that_is_not_there(results: Path) -> None:
    code, _, err = typed(results, "logs", "x", "7")
    assert code == 2
    assert "the run has 2 trials: 0 to 1" in err


def test_a_run_that_is_not_there_lists_what_is(results: Path) -> None:
    code, _, err = typed(results, "best", "y")
    assert code == 2
    assert "20260101-000000-abcd" in err


def test_stop_of_a_run_that_has_ended(results: Path) -> None:
    code, _, err = typed(results, "stop", "x")
    assert code == 2
    assert "it is not running, but finished" in err


def test_an_empty_store_answers(tmp_path: Path) -> None:
    code, out, _ = typed(tmp_path, "runs")
    assert code == 0
    assert "no rows" in out
