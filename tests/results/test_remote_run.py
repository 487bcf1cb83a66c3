"""A store in a bucket: uploaded behind the driver, read anywhere, continued anywhere."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpo.cli import main
from hpo.errors import RunLocked, StoreError, UnknownRun
from hpo.results import Place, RunStore, Store
from hpo.results.claim import Claim, Pace
from hpo.storage import storage_at
from tests.buckets import Buckets
from tests.results.entries import RUN_STARTED, train

pytestmark = pytest.mark.integration

QUICK = Pace(settle_s=0.0, renew_s=0.2, seal_s=1000.0, logs_s=1000.0, patience_s=20.0)


@pytest.fixture
def url(buckets: Buckets) -> str:
    return buckets.new()


@pytest.fixture
def on(url: str, tmp_path: Path) -> Callable[[str], Place]:
    """The store as a machine of that name sees it."""
    return lambda machine: Place.of(url, cache_dir=tmp_path / machine)


def begun(place: Place, *, pace: Pace = QUICK) -> RunStore:
    store = RunStore.create(place, experiment="cifar", run_id="r1", pace=pace)
    store.append("run_started", detail=RUN_STARTED)
    train(store, 0, [0.1, 0.5], config={"lr": 0.1})
    return store


def again(place: Place, *, pace: Pace = QUICK) -> RunStore:
    return RunStore.open(place, experiment="cifar", run_id="r1", pace=pace)


def reports(place: Place) -> list[dict[str, Any]]:
    return list(Store(place).sql("SELECT trial, step, score FROM reports ORDER BY trial, step").to_pylist())


def state(place: Place) -> str:
    return str(Store(place).find_run("r1")["state"])


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


TWO = [{"trial": 0, "step": 1, "score": 0.1}, {"trial": 0, "step": 2, "score": 0.5}]


class TestADriver:
    def test_uploads_what_is_sealed_and_others_read_it(self, on: Callable[[str], Place], url: str) -> None:
        with begun(on("one")) as store:
            store.seal()
            until(lambda: reports(on("two")) == TWO)
            assert state(on("two")) == "running"
            train(store, 1, [0.9], config={"lr": 0.2})
            store.flush()
            assert len(reports(on("one"))) == 3  # the driver's machine sees its journal
            assert len(reports(on("two"))) == 2
            store.append("run_ended", detail={"state": "finished", "reason": ""})
        assert state(on("two")) == "finished"
        assert len(reports(on("two"))) == 3
        best = Store(on("two")).best("cifar", limit=1).to_pylist()
        assert [(row["trial"], row["hp_lr"]) for row in best] == [(1, 0.2)]
        names = [stored.name for stored in storage_at(url).below()]
        assert not [name for name in names if "probe" in name or name.endswith(("lock", "claims.json"))]

    def test_uploads_logs_and_curves_at_the_end(self, on: Callable[[str], Place]) -> None:
        with begun(on("one")) as store:
            for path in (store.paths.log(0, attempt=1), store.paths.tensorboard / "trial-00000" / "events"):
                path.parent.mkdir(parents=True)
                path.write_text("here")
        assert [path.read_text() for path in Store(on("two")).logs("r1", 0)] == ["here"]
        assert Store(on("two")).logs("r1", 7) == []
        assert [path.name for path in Store(on("two")).curves("r1").rglob("*") if path.is_file()] == ["events"]
        assert Store(on("one")).curves("r1") == store.paths.tensorboard

    def test_heeds_a_request_to_stop_from_another_machine(self, on: Callable[[str], Place]) -> None:
        with begun(on("one")) as store:
            until(lambda: bool(Store(on("two")).runs().num_rows))
            Store(on("two")).ask_to_stop("r1")
            until(store.paths.stop_request.exists)
        store.paths.stop_request.unlink()
        with again(on("two")) as store:
            time.sleep(3 * QUICK.renew_s)
            assert not store.paths.stop_request.exists()

    def test_is_asked_to_stop_on_its_own_machine(self, on: Callable[[str], Place]) -> None:
        with begun(on("one")) as store:
            Store(on("one")).ask_to_stop("r1")
            assert store.paths.stop_request.exists()


class TestAReader:
    def test_brings_what_it_reads_and_no_more(self, on: Callable[[str], Place]) -> None:
        begun(on("one")).close()
        RunStore.create(on("one"), experiment="other", run_id="r2", pace=QUICK).close()
        store = Store(on("two"))

        def brought() -> list[str]:
            copies = on("two").root / "readers"
            return sorted(file.relative_to(copies).parts[0] for file in copies.rglob("*.parquet"))

        assert store.newest("cifar") is not None
        assert brought() == ["runs", "runs"]
        assert len(store.trials("r1")) == 1
        assert brought() == ["runs", "runs", "trials"]
        store.sql("SELECT * FROM Runs JOIN trials USING (run_id)")
        assert set(brought()) == {"runs", "trials"}
        assert len(store.sql("SELECT * FROM reports")) == 2
        assert set(brought()) == {"runs", "trials", "reports", "events"}


class TestTheNextDriver:
    def test_is_refused_while_one_lives(self, on: Callable[[str], Place]) -> None:
        with begun(on("one")):
            with pytest.raises(RunLocked, match=r"process \d+ on \S+ drives it since"):
                again(on("one"))
            with pytest.raises(RunLocked, match=r"it was heard of \d+ s ago"):
                again(on("two"))

    def test_on_another_machine_goes_on(self, on: Callable[[str], Place]) -> None:
        with begun(on("one")):
            pass
        with again(on("two")) as store:
            assert [entry.kind for entry in store.entries] == [
                *("run_started", "proposed", "started", "report", "report", "stopped")
            ]
            train(store, 1, [0.9], config={"lr": 0.2})
        with again(on("one")) as store:
            assert len(store.entries) == 10
            assert store.notes == []
        assert len(reports(on("three"))) == 3

    def test_of_an_unknown_run_is_told(self, on: Callable[[str], Place]) -> None:
        with pytest.raises(UnknownRun, match="there is no run r1 of cifar"):
            again(on("one"))

    def test_after_a_killed_one_goes_on_at_once_on_its_machine(self, on: Callable[[str], Place], url: str) -> None:
        killed(url, on("one"))
        assert state(on("one")) == "interrupted"
        assert len(reports(on("one"))) == 2  # though only one was sealed
        with again(on("one")) as store:
            assert len([entry for entry in store.entries if entry.kind == "report"]) == 2
        assert len(reports(on("two"))) == 2

    def test_after_a_killed_one_elsewhere_goes_on_from_what_was_sealed(
        self, on: Callable[[str], Place], url: str, tmp_path: Path
    ) -> None:
        killed(url, on("one"))
        assert state(on("two")) == "running"  # as far as can be told from there
        with again(on("two"), pace=Pace(settle_s=0.0, renew_s=0.2, stale_s=2.0)) as store:  # it is waited for
            assert len([entry for entry in store.entries if entry.kind == "report"]) == 1
            train(store, 1, [0.9], config={"lr": 0.2})
        # The first machine learns that the run went on without what only it knew.
        assert len(reports(on("one"))) == 2
        with again(on("one")) as store:
            assert len([entry for entry in store.entries if entry.kind == "report"]) == 2
            [note] = store.notes
            assert "another machine went on with the run; what only this one knew is left out, in " in note
            assert list(Path(note.rpartition(" in ")[2]).glob("segment-*"))


def killed(url: str, place: Place) -> None:
    """A driver of this machine seals one report, appends another, and is killed."""
    code = f"""
import os, signal, time
from pathlib import Path
from hpo.results import Place, RunStore
from hpo.results.claim import Pace
from hpo.storage import storage_at
from tests.results.entries import RUN_STARTED, report
place = Place(Path({str(place.root)!r}), {place.url!r})
store = RunStore.create(place, experiment="cifar", run_id="r1", pace=Pace(0.0))
store.append("run_started", detail=RUN_STARTED)
store.append("proposed", trial=0, detail={{"config": {{"lr": 0.1}}, "seed": 0}})
store.append("report", trial=0, attempt=1, step=1, detail=report(0.1))
store.seal()
while storage_at({url!r}).stat("events/experiment=cifar/run=r1/part-000001.parquet") is None:
    time.sleep(0.02)
store.append("report", trial=0, attempt=1, step=2, detail=report(0.5))
store.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == -9


class TestABucketThatRefuses:
    def test_costs_nothing_but_time(self, on: Callable[[str], Place], buckets: Buckets) -> None:
        store = begun(on("one"))
        with buckets.away():
            store.seal()
            for trial in range(1, 20):
                train(store, trial, [0.2], config={"lr": 0.3})
            store.flush()
            store.seal()
            closing = threading.Thread(target=store.close)
            closing.start()
            time.sleep(1)
        closing.join()
        assert len(reports(on("two"))) == 21

    def test_for_too_long_is_told_and_made_up_for(self, on: Callable[[str], Place], buckets: Buckets) -> None:
        store = begun(on("one"), pace=Pace(settle_s=0.0, patience_s=0.0))
        until(lambda: bool(Store(on("two")).runs().num_rows))
        store.flush()
        with buckets.away():
            with pytest.raises(StoreError, match="nothing answers"):
                Store(on("two")).runs()
            with pytest.raises(StoreError, match=r"(?s)\d files of the run could not be uploaded.*on this machine"):
                store.close()
            store.close()
        assert reports(on("one")) == TWO
        assert reports(on("two")) == []
        again(on("one")).close()
        assert reports(on("two")) == TWO

    def test_before_the_start_is_an_error(self, on: Callable[[str], Place], buckets: Buckets) -> None:
        place = Place.of(buckets.url("no-such-bucket/x"), cache_dir=on("one").root)
        with pytest.raises(StoreError, match="there is no such bucket"):
            RunStore.create(place, experiment="cifar")
        assert not list(place.root.rglob("run.parquet"))


def test_a_driver_that_was_succeeded_stops(on: Callable[[str], Place], url: str) -> None:
    store = begun(on("one"))
    other = Claim(storage_at(url), "cifar", "r1", pace=Pace(settle_s=0.0, stale_s=0.0))
    other.take()
    other.hold()

    def refused() -> bool:
        try:
            store.append("report", trial=0)
        except RunLocked:
            return True
        return False

    until(refused)
    with pytest.raises(RunLocked, match="has taken the run over"):
        store.close()


def test_a_run_that_was_never_uploaded_is_known_on_its_machine(on: Callable[[str], Place], buckets: Buckets) -> None:
    store = begun(on("one"), pace=Pace(settle_s=0.0, renew_s=1000.0, patience_s=0.0))
    for stored in (storage := storage_at(on("one").url)).below("runs"):
        storage.delete(stored.name)
    assert [row["run_id"] for row in Store(on("one")).runs().to_pylist()] == ["r1"]
    store.close()


def test_the_commands_take_a_url(url: str) -> None:
    def said(*words: str) -> str:
        result = CliRunner().invoke(main, [*words, "--results", url])
        assert result.exit_code == 0, result.output
        return str(result.output)

    with begun(Place.of(url)) as store:
        log = store.paths.log(0, attempt=1)
        log.parent.mkdir(parents=True)
        log.write_text("hello\n")
        until(lambda: "running" in said("runs"))
        assert said("logs", "cifar", "0") == "hello\n"
        assert said("stop", "cifar") == "asked r1 to stop\n"
        assert store.paths.stop_request.exists()
    assert "0.5" in said("best", "cifar")
    assert said("sql", "SELECT count(*) AS n FROM reports", "--format", "csv") == "n\n2\n"
