import logging
import threading
import time

import pyarrow.parquet as pq
import pytest

from hpo.errors import RunLocked, StoreError, UnknownRun
from hpo.results import RunPaths, RunStore, Store
from hpo.results.lock import is_held
from tests.results.entries import RUN_STARTED, train


def rows(path) -> list[dict]:
    with pq.ParquetFile(path) as file:
        return file.read().to_pylist()


def test_a_run_is_seen_at_once_and_as_it_changes(tmp_path):
    with RunStore.create(tmp_path, experiment="e", run_id="r") as store:
        assert rows(store.paths.run_file)[0]["state"] == "running"
        assert rows(store.paths.run_file)[0]["started_at"] is not None
        told = threading.Event()
        store.listen(lambda _: told.set())
        store.append("run_started", detail=RUN_STARTED)
        told.wait()
        assert rows(store.paths.run_file)[0]["goal"] == "val_accuracy"
        store.append("run_ended", detail={"state": "finished", "reason": ""})
    row = rows(store.paths.run_file)[0]
    assert (row["state"], row["reason"]) == ("finished", None)
    assert row["finished_at"] >= row["started_at"]


def test_each_seal_is_a_part_of_each_kind(tmp_path):
    with RunStore.create(tmp_path, experiment="e", run_id="r") as store:
        train(store, 0, [0.1, 0.2], config={"lr": 0.1})
        store.seal()
        store.seal()
        store.append("note")
        store.seal()
        train(store, 1, [0.3], config={"lr": 0.2}, loss=0.5)
    paths = store.paths
    assert paths.sealed() == paths.segments() == [1, 2, 3]
    assert not paths.reports_part(2).exists()
    assert [row["step"] for row in rows(paths.reports_part(1))] == [1, 2]
    assert "loss" not in rows(paths.reports_part(1))[0]
    assert rows(paths.reports_part(3))[0]["loss"] == 0.5
    assert [row["kind"] for row in rows(paths.events_part(2))] == ["note"]
    assert [row["trial"] for row in rows(paths.trials_file)] == [0, 1]


def test_every_file_says_its_version(tmp_path):
    with RunStore.create(tmp_path, experiment="e", run_id="r") as store:
        train(store, 0, [0.1], config={"lr": 0.1})
    files = list(tmp_path.rglob("*.parquet"))
    assert len(files) == 4
    assert {pq.read_metadata(file).metadata[b"hpo.schema_version"] for file in files} == {b"1"}


def test_a_part_without_reports_still_says_that_it_is_sealed(tmp_path):
    with RunStore.create(tmp_path, experiment="e", run_id="r") as store:
        store.append("report", trial=0, attempt=1, step=1, detail={"score": 1.0, "metrics": {}})
    assert rows(store.paths.events_part(1)) == []
    assert len(rows(store.paths.reports_part(1))) == 1


@pytest.mark.parametrize("how", [{"seal_every_rows": 10}, {"seal_every_s": 0.01}])
def test_it_seals_by_itself(tmp_path, how):
    with RunStore.create(tmp_path, experiment="e", **how) as store:
        for _ in range(12):
            store.append("x")
        while not store.paths.sealed():
            time.sleep(0.01)
    assert store.paths.sealed() == store.paths.segments()


def test_opened_again_it_knows_what_was_and_goes_on(tmp_path):
    with RunStore.create(tmp_path, experiment="e", run_id="r") as store:
        store.append("run_started", detail=RUN_STARTED)
        train(store, 0, [0.1, 0.2], config={"lr": 0.1}, end="")
    began = rows(store.paths.run_file)[0]["started_at"]
    with RunStore.open(tmp_path, experiment="e", run_id="r") as store:
        assert [entry.kind for entry in store.entries] == ["run_started", "proposed", "started", "report", "report"]
        assert (store.torn, store.appended, store.synced) == (None, 5, 5)
        store.append("report", trial=0, attempt=1, step=3, detail={"score": 0.4, "epoch": 3, "metrics": {}})
        store.flush()
        assert store.synced == 6
    trial = rows(store.paths.trials_file)[0]
    assert (trial["best_score"], trial["epochs"], trial["num_attempts"]) == (0.4, 3, 1)
    assert rows(store.paths.run_file)[0]["started_at"] == began


def test_what_a_dead_driver_left_unsealed_is_sealed_at_opening(tmp_path):
    with RunStore.create(tmp_path, experiment="e", run_id="r") as store:
        train(store, 0, [0.1, 0.2], config={"lr": 0.1})
        store.seal()
        train(store, 1, [0.3], config={"lr": 0.2})
    for file in (store.paths.events_part(2), store.paths.trials_file):  # as if it had died before these
        file.unlink()
    with RunStore.open(tmp_path, experiment="e", run_id="r") as store:
        assert store.paths.sealed() == [1, 2]
        assert len(rows(store.paths.trials_file)) == 2
    assert len(Store(tmp_path).sql("FROM reports")) == 3


def test_a_seal_that_fails_loses_nothing_and_is_made_up_for(tmp_path, caplog):
    store = RunStore.create(tmp_path, experiment="e", run_id="r")
    train(store, 0, [0.1, 0.2], config={"lr": 0.1})
    (tmp_path / "reports").write_text("in the way")
    with pytest.raises(StoreError, match=r"part-000001\.parquet: cannot be written"):
        store.seal()
    assert len(Store(tmp_path).sql("FROM reports")) == 2
    (tmp_path / "reports").unlink()
    store.append("note")
    store.close()
    assert store.paths.sealed() == [1, 2]
    assert len(rows(store.paths.trials_file)) == 1
    with RunStore.open(tmp_path, experiment="e", run_id="r") as again:
        assert len(again.entries) == 6


def test_a_seal_in_the_background_that_fails_is_tried_again(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hpo"):
        store = RunStore.create(tmp_path, experiment="e", run_id="r", seal_every_rows=1)
        (tmp_path / "events").write_text("in the way")
        for _ in iter(lambda: len(caplog.records), 1):
            store.append("x")
            store.flush()
        (tmp_path / "events").unlink()
        store.close()
    assert "a seal failed and will be tried again" in caplog.text
    assert store.paths.sealed() == store.paths.segments()


def test_one_driver_a_run(tmp_path):
    store = RunStore.create(tmp_path, experiment="e", run_id="r")
    with pytest.raises(RunLocked, match=r"run r: process \d+ on .* drives it since"):
        RunStore.open(tmp_path, experiment="e", run_id="r")
    store.close()
    store.close()
    assert not is_held(store.paths.lock)
    RunStore.open(tmp_path, experiment="e", run_id="r").close()


def test_a_run_is_created_once_and_opened_only_where_there_is_one(tmp_path):
    RunStore.create(tmp_path, experiment="e", run_id="r").close()
    with pytest.raises(StoreError, match=r"there is a run r already\n  open it, or choose another name"):
        RunStore.create(tmp_path, experiment="e", run_id="r")
    with pytest.raises(UnknownRun, match=r"there is no run q of e\n.*`hpo runs`"):
        RunStore.open(tmp_path, experiment="e", run_id="q")


def test_a_damaged_journal_leaves_the_lock_free(tmp_path):
    paths = RunPaths(tmp_path, "e", "r")
    with RunStore.create(tmp_path, experiment="e", run_id="r") as store:
        store.append("x")
        store.seal()
        store.append("x")
    paths.segment(1).write_bytes(b"damaged")
    with pytest.raises(StoreError, match="is damaged at offset 0"):
        RunStore.open(tmp_path, experiment="e", run_id="r")
    assert not is_held(paths.lock)
