"""One driver after another on a run in a bucket, each of them cut off or refused at the worst moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpo.errors import RunLocked
from hpo.results import Place, RunStore
from hpo.results.claim import Pace
from hpo.results.folds import TrialFold
from hpo.results.tables import read_table, write_table
from hpo.storage import LocalStorage
from tests.results.entries import RUN_STARTED, train

URL = "s3://bucket/store"
QUICK = Pace(settle_s=0.0, renew_s=0.1, stale_s=2.0, seal_s=1000.0, logs_s=1000.0, patience_s=20.0)
AT_ONCE = replace(QUICK, stale_s=0.0)


class Bucket(LocalStorage):
    """A bucket that notes what is written, and can be slow, be cut off, or refuse."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.written: list[str] = []
        self.download_s = 0.0
        self.away = False
        self.refused = b"no claim says this"

    def below(self, folder: str = "") -> list:  # type: ignore[type-arg]
        self._answer()
        return super().below(folder)

    def write(self, name: str, data: bytes) -> None:
        self._answer()
        if self.refused in data:
            raise OSError("refused")
        self.written.append(name)
        super().write(name, data)

    def upload(self, path: Path, name: str) -> int:
        self._answer()
        self.written.append(name)
        return super().upload(path, name)

    def download(self, name: str, path: Path) -> None:
        time.sleep(self.download_s)
        super().download(name, path)

    def _answer(self) -> None:
        if self.away:
            raise OSError("no answer")


@pytest.fixture
def seen_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Bucket]:
    """The bucket as the next driver sees it."""

    def choose(machine: str) -> Bucket:
        bucket = Bucket(tmp_path / "bucket")
        monkeypatch.setattr("hpo.results.remote_run.checked", lambda _: bucket)
        monkeypatch.setattr("hpo.results.run_store.storage_at", lambda _: bucket)
        return bucket

    return choose


@pytest.fixture
def on(tmp_path: Path, seen_by: Callable[[str], Bucket]) -> Callable[[str], Place]:
    """The store on a machine; each call is the next driver's."""

    def place(machine: str) -> Place:
        seen_by(machine)
        return Place(tmp_path / machine, URL)

    return place


def begun(place: Place, pace: Pace = QUICK) -> RunStore:
    store = RunStore.create(place, experiment="e", run_id="r", pace=pace)
    store.append("run_started", detail=RUN_STARTED)
    train(store, 0, [0.1, 0.5], config={"lr": 0.1})
    store.flush()
    return store


def again(place: Place, pace: Pace = QUICK) -> RunStore:
    return RunStore.open(place, experiment="e", run_id="r", pace=pace)


def bucket_of(store: RunStore) -> Bucket:
    assert store._remote is not None
    bucket = store._remote._storage
    assert isinstance(bucket, Bucket)
    return bucket


def cut_off(store: RunStore) -> None:
    """The driver does not reach the bucket any more, to which it has said that there is the run."""
    bucket = bucket_of(store)
    until(lambda: bucket.stat(store.paths.name(store.paths.run_file)) is not None)
    bucket.away = True


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.01)


def scores(store: RunStore) -> list[float]:
    return [entry.detail["score"] for entry in store.entries if entry.kind == "report"]


class TestWhatIsKept:
    def test_is_what_a_machine_finds_that_has_nothing_else(self, on: Callable[[str], Place]) -> None:
        first = begun(on("one"))
        time.sleep(3 * QUICK.renew_s)
        assert (first.synced, first.kept) == (6, 0)
        first.seal()
        until(lambda: first.kept == 6)
        train(first, 1, [0.9], config={"lr": 0.2})
        first.flush()
        assert (first.synced, first.kept) == (10, 6)
        bucket_of(first).away = True
        with again(on("two"), AT_ONCE) as second:
            assert len(second.entries) == 6
            until(lambda: second.kept == 6)
        time.sleep(2 * QUICK.renew_s)  # nobody is taken over within that of a sign of life, but in this test
        bucket_of(first).away = False
        with pytest.raises(RunLocked, match="has taken the run over"):
            first.close()

    def test_is_everything_when_the_bucket_was_given_time(self, on: Callable[[str], Place]) -> None:
        with begun(on("one")) as store:
            assert store.keep()
            assert store.kept == store.appended

    def test_is_not_everything_where_the_bucket_refuses(self, on: Callable[[str], Place]) -> None:
        with begun(on("one"), replace(QUICK, patience_s=0.3)) as store:
            bucket_of(store).away = True
            assert not store.keep()
            assert store.kept == 0
            bucket_of(store).away = False
            until(store.keep)

    def test_is_what_is_on_the_disk_where_the_store_is_a_folder(self, tmp_path: Path) -> None:
        with RunStore.create(tmp_path, experiment="e") as store:
            train(store, 0, [0.1, 0.5], config={"lr": 0.1})
            store.flush()
            assert store.kept == store.synced == 5
            assert store.keep()
            assert store.holds()


class TestTheClaims:
    def test_where_there_are_none_the_run_is_brought_all_the_same(self, on: Callable[[str], Place]) -> None:
        begun(on("one")).close()
        bucket = Bucket(on("one").root.parent / "bucket")
        for stored in bucket.below("drivers"):
            bucket.delete(stored.name)
        with again(on("two")) as second:
            assert scores(second) == [0.1, 0.5]
            train(second, 1, [0.9], config={"lr": 0.2})
        with again(on("one")) as third:
            assert scores(third) == [0.1, 0.5, 0.9]

    def test_where_there_are_none_the_machine_that_knows_more_goes_on(self, on: Callable[[str], Place]) -> None:
        store = begun(on("one"), replace(QUICK, patience_s=1.0))
        until(store.keep)
        bucket_of(store).away = True
        train(store, 1, [0.9], config={"lr": 0.2})
        with pytest.raises(Exception, match="could not be uploaded"):
            store.close()
        bucket = Bucket(on("one").root.parent / "bucket")
        for stored in bucket.below("drivers"):
            bucket.delete(stored.name)
        with again(on("one")) as second:
            assert scores(second) == [0.1, 0.5, 0.9]
            assert second.notes == []

    def test_one_that_could_not_be_held_says_nothing_of_the_driver_before(self, on: Callable[[str], Place]) -> None:
        with again_refused(on) as first:
            train(first, 1, [0.9], config={"lr": 0.2})
        with again(on("two")) as second:
            assert scores(second) == [0.1, 0.5, 0.9]
            train(second, 2, [0.3], config={"lr": 0.3})
        with again(on("three")) as third:
            assert scores(third) == [0.1, 0.5, 0.9, 0.3]

    def test_bringing_gives_signs_of_life(self, on: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hpo.results.remote_run._BATCH", 2)
        with begun(on("one")) as first:
            for trial in range(1, 9):
                train(first, trial, [0.2], config={"lr": 0.1})
                first.seal()
        place, outcome = on("two"), []
        slow = Bucket(place.root.parent / "bucket")
        slow.download_s = 0.3
        monkeypatch.setattr("hpo.results.remote_run.checked", lambda _: slow)
        pace = replace(QUICK, stale_s=3.0)
        bringing = threading.Thread(target=lambda: outcome.append(again(place, pace)))
        bringing.start()
        until(lambda: any(path.suffix == ".parquet" for path in place.root.rglob("*")))
        with pytest.raises(RunLocked, match="drives it since"):
            again(on("three"), pace)
        bringing.join()
        [second] = outcome
        assert second.holds()
        second.close()


def again_refused(on: Callable[[str], Place]) -> RunStore:
    """The driver of the first machine, which was cut off while one of a second machine tried to follow, in vain."""
    first = begun(on("one"))
    first.seal()
    until(lambda: first.kept == 6)
    bucket_of(first).away = True
    place = on("two")
    refusing = Bucket(place.root.parent / "bucket")
    refusing.refused = b'"held"'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpo.results.remote_run.checked", lambda _: refusing)
        with pytest.raises(Exception, match="refused"):
            again(place, AT_ONCE)
    for stored in refusing.below("drivers"):  # that of the second one, which may have been written, was not
        if b'"released"' in refusing.read(stored.name):
            refusing.delete(stored.name)
    bucket_of(first).away = False
    return first


class TestOneThatWasSucceeded:
    def test_may_neither_append_nor_flush_nor_delete(self, on: Callable[[str], Place]) -> None:
        first = begun(on("one"))
        assert first.holds()
        cut_off(first)
        second = again(on("two"), AT_ONCE)
        until(lambda: not first.holds())  # while nothing can be asked
        bucket_of(first).away = False
        until(lambda: first._remote is not None and first._remote.lost is not None)
        for do in (first.flush, first.keep, lambda: first.append("report", trial=0), first.close):
            with pytest.raises(RunLocked, match="has taken the run over"):
                do()
        assert not first.holds()
        assert second.holds()
        second.close()

    @pytest.mark.parametrize("size_differs", [True, False])
    def test_cannot_spoil_the_journal_by_a_late_upload(self, on: Callable[[str], Place], size_differs: bool) -> None:  # noqa: FBT001
        first = begun(on("one"))
        cut_off(first)
        with again(on("two"), AT_ONCE) as second:
            train(second, 0, [0.7], config={"lr": 0.1})
            assert second.keep()
            segment = second.paths.segment(1)
            late = b"late" if size_differs else bytes(segment.stat().st_size)
            Bucket(on("two").root.parent / "bucket").write(second.paths.name(segment), late)
        with again(on("three")) as third:
            assert scores(third) == [0.7]
        bucket_of(first).away = False
        with pytest.raises(RunLocked):
            first.close()

    def test_cannot_spoil_it_while_its_successor_goes_on(self, on: Callable[[str], Place]) -> None:
        first = begun(on("one"))
        cut_off(first)
        second = again(on("two"), QUICK)
        train(second, 0, [0.7], config={"lr": 0.1})
        second.seal()
        segment = second.paths.segment(1)
        bucket, name = bucket_of(second), second.paths.name(segment)
        until(lambda: bucket.stat(name) is not None)
        LocalStorage.write(bucket, name, b"late")
        until(lambda: bucket.read(name) == segment.read_bytes())
        second.close()
        bucket_of(first).away = False
        with pytest.raises(RunLocked):
            first.close()


class TestLogs:
    def test_are_not_uploaded_twice(self, on: Callable[[str], Place]) -> None:
        with begun(on("one")) as store:
            for trial in range(5):
                path = store.paths.log(trial, attempt=1)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("printed")
        store = again(on("one"))
        store.paths.log(2, attempt=1).write_text("printed more")
        store.close()
        logs = [name for name in bucket_of(store).written if name.endswith(".log")]
        assert logs == [store.paths.name(store.paths.log(2, attempt=1))]
        assert not [name for name in bucket_of(store).written if "segment-000001" in name]

    def test_are_uploaded_with_signs_of_life_and_parts_between(
        self, on: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hpo.results.remote_run._BATCH", 4)
        store = begun(on("one"), replace(QUICK, renew_s=0.0))
        for trial in range(16):
            path = store.paths.log(trial, attempt=1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("printed")
        store.close()
        kinds = ["log" if name.endswith(".log") else name.partition("/")[0] for name in bucket_of(store).written]
        runs_of_logs = "".join("l" if kind == "log" else "." for kind in kinds).split(".")
        assert max(len(run) for run in runs_of_logs) == 4
        assert kinds.count("log") == 16


def test_brought_rows_that_know_too_much_are_made_anew(on: Callable[[str], Place]) -> None:
    with begun(on("one")) as store:
        pass
    bucket = Bucket(on("one").root.parent / "bucket")
    table, through = read_table(store.paths.trials_file)
    fold = TrialFold("r", table)
    fold.rows[0].best_score = 7.0  # of a report whose segment was never uploaded
    write_table(store.paths.trials_file, fold.table(), through_seq=through + 3)
    bucket.upload(store.paths.trials_file, store.paths.name(store.paths.trials_file))
    with again(on("two")) as second:
        rows, through = read_table(second.paths.trials_file)
        assert (rows["best_score"].to_pylist(), through) == ([0.5], 6)
