import json
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from hpo.errors import StoreError, UnknownRun
from hpo.results import RunStore, Store
from hpo.results.folds import RUNS, TRIALS
from hpo.results.tables import EVENTS, REPORTS
from tests.results.entries import RUN_STARTED, report, train


def ended_run(root: Path, *, experiment: str = "e", run_id: str, digest: str = "d1", **config) -> None:
    with RunStore.create(root, experiment=experiment, run_id=run_id) as store:
        store.append("run_started", detail={**RUN_STARTED, "digest": digest})
        train(store, 0, [0.1, 0.2], config=config)
        store.append("run_ended", detail={"state": "finished", "reason": ""})


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_an_empty_store_has_views_without_rows(tmp_path, folder):
    store = Store(tmp_path / folder)
    for view, schema in (("runs", RUNS), ("trials", TRIALS), ("reports", REPORTS), ("events", EVENTS)):
        table = store.sql(f"FROM {view}")
        assert (table.num_rows, table.schema.names) == (0, schema.names)
    assert store.runs().num_rows == 0
    assert store.newest("e") is None
    with pytest.raises(UnknownRun, match=r"no run is called 'x'\n  the store is empty: is --results right\?"):
        store.find_run("x")


def test_a_living_run_is_seen_whole(tmp_path):
    store, reader = RunStore.create(tmp_path, experiment="e", run_id="r"), Store(tmp_path)
    store.append("run_started", detail=RUN_STARTED)
    train(store, 0, [0.1, 0.2], config={"lr": 0.1})
    store.seal()
    train(store, 1, [0.4, 0.3], config={"lr": 0.2}, loss=0.5, end="")
    store.flush()
    assert reader.sql("SELECT trial, step, score, loss FROM reports ORDER BY seq").to_pylist() == [
        {"trial": 0, "step": 1, "score": 0.1, "loss": None},
        {"trial": 0, "step": 2, "score": 0.2, "loss": None},
        {"trial": 1, "step": 1, "score": 0.4, "loss": 0.5},
        {"trial": 1, "step": 2, "score": 0.3, "loss": 0.5},
    ]
    assert reader.runs().to_pylist()[0]["state"] == "running"
    trials = reader.trials("r").to_pylist()
    assert [(row["state"], row["best_score"], row["hp_lr"]) for row in trials] == [
        ("completed", 0.2, 0.1),
        ("running", 0.4, 0.2),
    ]
    kinds = reader.sql("SELECT kind, count(*) AS num FROM events GROUP BY kind ORDER BY kind").to_pylist()
    assert [(row["kind"], row["num"]) for row in kinds] == [
        ("proposed", 2),
        ("run_started", 1),
        ("started", 2),
        ("stopped", 1),
    ]
    store.close()
    assert reader.sql("SELECT count(*) AS num FROM reports").to_pylist() == [{"num": 4}]


def test_a_run_whose_driver_died_is_interrupted(tmp_path):
    store = RunStore.create(tmp_path, experiment="e", run_id="r")
    store.append("run_started", detail=RUN_STARTED)
    store.close()
    assert Store(tmp_path).sql("SELECT state FROM runs").to_pylist() == [{"state": "interrupted"}]
    assert Store(tmp_path).runs()["state"].to_pylist() == ["interrupted"]


def test_the_row_of_a_run_comes_from_the_journal_where_the_file_is_behind(tmp_path):
    store = RunStore.create(tmp_path, experiment="e", run_id="r")
    behind = store.paths.run_file.read_bytes()
    store.append("run_started", detail=RUN_STARTED)
    store.append("run_ended", detail={"state": "finished", "reason": ""})
    store.close()
    store.paths.run_file.write_bytes(behind)
    store.paths.events_part(1).unlink()
    row = Store(tmp_path).find_run("r")
    assert (row["state"], row["digest"]) == ("finished", "d1")


def test_a_torn_end_is_not_read_and_not_touched(tmp_path):
    store = RunStore.create(tmp_path, experiment="e", run_id="r")
    train(store, 0, [0.1], config={})
    store.flush()
    segment = store.paths.segment(1)
    whole = segment.read_bytes()
    segment.write_bytes(whole + whole[-100:])
    assert Store(tmp_path).sql("FROM reports").num_rows == 1
    assert segment.stat().st_size == len(whole) + 100
    segment.write_bytes(whole)
    store.close()


def test_hyper_parameters_of_differing_types_become_text(tmp_path):
    ended_run(tmp_path, run_id="r1", lr=0.5, depth=3, augment=("flip",))
    ended_run(tmp_path, run_id="r2", lr="auto", depth=2.5)
    rows = Store(tmp_path).sql("SELECT hp_lr, hp_depth, hp_augment, config FROM trials ORDER BY run_id").to_pylist()
    assert [(row["hp_lr"], row["hp_depth"], row["hp_augment"]) for row in rows] == [
        ("0.5", 3.0, '["flip"]'),
        ("auto", 2.5, None),
    ]
    assert json.loads(rows[0]["config"]) == {"lr": 0.5, "depth": 3, "augment": ["flip"]}
    assert Store(tmp_path).trials("r1")["hp_lr"].type == pa.float64()


def test_the_best_come_first_and_those_without_a_score_not_at_all(tmp_path):
    with RunStore.create(tmp_path, experiment="e", run_id="r") as store:
        for trial, scores in enumerate([[0.1], [0.3, 0.2], [float("nan")], [0.3]]):
            train(store, trial, scores, config={"lr": 0.1})
    best = Store(tmp_path).best("r", limit=2)
    assert best["trial"].to_pylist() == [1, 3]
    assert Store(tmp_path).best("r")["trial"].to_pylist() == [1, 3, 0]


def test_a_run_is_found_by_its_id_by_its_beginning_and_by_its_experiment(tmp_path):
    ended_run(tmp_path, run_id="20260101-a", digest="d1")
    ended_run(tmp_path, run_id="20260102-b", digest="d2")
    ended_run(tmp_path, experiment="other", run_id="20260102-b2")
    store = Store(tmp_path)
    assert store.find_run("20260102-b")["experiment"] == "e"
    assert store.find_run("20260101")["run_id"] == "20260101-a"
    assert store.find_run("e")["run_id"] == "20260102-b"
    assert store.paths("other").run_id == "20260102-b2"
    assert store.newest("e")["run_id"] == "20260102-b"
    assert store.newest("e", digest="d1")["run_id"] == "20260101-a"
    assert store.newest("e", digest="d9") is None
    with pytest.raises(UnknownRun, match=r"2 runs begin with '20260102'\n.*20260102-b2 \(other\), 20260102-b \(e\)"):
        store.find_run("20260102")
    with pytest.raises(UnknownRun, match=r"no run is called 'x'\n  there are, newest first: .*, 20260101-a \(e\)$"):
        store.trials("x")


def test_many_runs_are_not_all_listed(tmp_path):
    for number in range(12):
        RunStore.create(tmp_path, experiment="e", run_id=f"r{number:02d}").close()
    with pytest.raises(UnknownRun, match=r"r11 \(e\), .*, r02 \(e\) and 2 older ones"):
        Store(tmp_path).find_run("x")


@pytest.mark.parametrize("query", ["SELECT nope FROM trials", "SELEC 1", "SELECT 1 FROM nowhere", "SELECT 1 / 'x'"])
def test_a_wrong_query_is_told_what_there_is(tmp_path, query):
    ended_run(tmp_path, run_id="r", lr=0.5)
    with pytest.raises(
        StoreError, match=r"(?s)SQL: .*Error.*views and columns:.*trials: run_id.*hp_lr.*events: run_id"
    ):
        Store(tmp_path).sql(query)


def test_a_statement_without_rows_gives_none(tmp_path):
    assert Store(tmp_path).sql("CREATE TABLE mine (a INT)").num_rows == 0


def test_a_store_may_lie_in_a_folder_with_any_name(tmp_path):
    root = tmp_path / "it's [a] *store?"
    ended_run(root, run_id="r", lr=0.5)
    assert Store(root).sql("FROM reports").num_rows == 2


def test_readers_during_seals_see_each_synced_report_exactly_once(tmp_path):
    store, reader, done = RunStore.create(tmp_path, experiment="e", run_id="r"), Store(tmp_path), threading.Event()

    def write() -> None:
        for step in range(1, 1501):
            store.append("report", trial=step % 7, attempt=1, step=step, detail=report(step / 1000, epoch=step))
            if step % 60 == 0:
                store.seal()
            if step % 25 == 0:
                store.flush()
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    num_looks = 0
    while not done.is_set() or num_looks == 0:
        synced = store.synced
        seen = sorted(reader.sql("SELECT seq FROM reports")["seq"].to_pylist())
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) >= synced
        synced = store.synced
        trials = reader.trials("r")
        assert max(trials["epochs"].to_pylist(), default=0) >= synced
        num_looks += 1
    writer.join()
    store.close()
    assert reader.sql("SELECT count(DISTINCT seq) AS num, count(*) AS all FROM reports").to_pylist() == [
        {"num": 1500, "all": 1500}
    ]
