"""A store in a bucket as readers see it: whoever sees a sealed segment sees all that belongs to it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from hpo.errors import StoreError
from hpo.results import Place, RunStore, Store
from hpo.storage import LocalStorage
from tests.results.entries import RUN_STARTED, train


class Bucket(LocalStorage):
    """A bucket that notes what is asked for, and can refuse to give some of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.brought: list[str] = []
        self.listed: list[str] = []
        self.refused = "nothing"

    def below(self, folder: str = "") -> list:  # type: ignore[type-arg]
        self.listed.append(folder)
        return super().below(folder)

    def download(self, name: str, path: Path) -> None:
        if name.startswith(self.refused):
            raise OSError("refused")
        self.brought.append(name.partition("/")[0])
        super().download(name, path)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A store with two sealed runs."""
    for run_id in ("r1", "r2"):
        with RunStore.create(tmp_path / "bucket", experiment="e", run_id=run_id) as store:
            store.append("run_started", detail=RUN_STARTED)
            train(store, 0, [0.1, 0.5], config={"lr": 0.1})
    bucket = Bucket(tmp_path / "bucket")
    monkeypatch.setattr("hpo.results.mirror.storage_at", lambda _: bucket)
    return bucket


@pytest.fixture
def reader(tmp_path: Path, bucket: Bucket) -> Store:
    return Store(Place(tmp_path / "here", "s3://bucket/store"))


ALL = "SELECT * FROM runs, trials, reports, events"


def test_parts_of_events_are_listed_first_and_brought_last(reader: Store, bucket: Bucket) -> None:
    reader.sql(ALL)
    assert [folder for folder in bucket.listed if folder != "drivers"] == ["events", "reports", "trials", "runs"]
    assert [table for table, _ in groupby(bucket.brought)] == ["runs", "trials", "reports", "events"]


def test_no_reader_sees_a_sealed_segment_without_its_reports(reader: Store, bucket: Bucket) -> None:
    bucket.refused = "reports"
    with pytest.raises(StoreError, match="refused"):
        reader.sql(ALL)
    assert not list((reader.root / "readers" / "events").rglob("*"))


def test_the_trials_of_one_run_are_brought_alone(reader: Store, bucket: Bucket) -> None:
    assert [row["best_score"] for row in reader.best("r1").to_pylist()] == [0.5]
    assert sorted(bucket.brought) == ["runs", "runs", "trials"]
    reader.trials("r1")
    assert len(bucket.brought) == 3  # and once
