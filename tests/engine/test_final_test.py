"""The test data: the best weights are the kept ones, and a storage that refuses is no reason to train them again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.engine.final_test import score_best
from hpo.engine.study import Study
from hpo.engine.trials import Checkpoint
from hpo.errors import HpoError, StoreError
from hpo.protocols import Dataset, Setting
from hpo.results import RunPaths, RunStore
from hpo.storage import brought, storage_at
from tests.buckets import Buckets
from tests.engine.test_study import experiment, step

SETTING = Setting("cpu", 1, Dataset("toy", "toy"), Path("nowhere"), "score")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path, experiment="e") as store:
        yield store


def studied(store: RunStore, checkpoint: str = "") -> Study:
    """A study of one trial with two steps, whose checkpoint is called so."""
    study = Study(experiment(), store.append)
    study.lease()
    for number in (1, 2):
        study.report(0, number, step(0.1 * number))
    if checkpoint:
        study.checkpointed(0, Checkpoint(checkpoint, 1, 2, 5))
    return study


def kept(store: RunStore, bucket: str = "") -> str:
    """A checkpoint that only it makes score 7, in the run's folder or, of another run, in a bucket."""
    paths = RunPaths(store.paths.root, "e", "another", bucket) if bucket else store.paths
    path = paths.checkpoint(0, 1, 2)
    storage_at(bucket or str(paths.root)).write(paths.name(path), b'{"epoch": 7}')
    return paths.target(path)


def test_a_study_without_a_score_has_nothing_to_test(store: RunStore) -> None:
    with pytest.raises(HpoError, match=r"(?s)--test: no trial has a finite score.*hpo logs RUN TRIAL"):
        score_best(Study(experiment(), store.append), store, SETTING)


@pytest.mark.parametrize("in_bucket", [True, False])
def test_kept_weights_are_scored(store: RunStore, buckets: Buckets, *, in_bucket: bool) -> None:
    checkpoint = kept(store, buckets.new() if in_bucket else "")
    assert score_best(studied(store, checkpoint), store, SETTING) == {"test_score": 7}


def test_weights_that_nobody_kept_are_trained_again(store: RunStore) -> None:
    for checkpoint in ("", "checkpoints/trial-00000/attempt-01-step-0002.pt"):
        assert score_best(studied(store, checkpoint), store, SETTING) == {"test_score": 2}


def test_a_storage_that_refuses_is_asked_again_and_told(
    store: RunStore, buckets: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.engine.final_test.brought", functools.partial(brought, patience_s=0.0))
    study = studied(store, kept(store, buckets.new()))
    with buckets.away(), pytest.raises(StoreError, match="nothing answers"):
        score_best(study, store, SETTING)
    assert score_best(study, store, SETTING) == {"test_score": 7}
