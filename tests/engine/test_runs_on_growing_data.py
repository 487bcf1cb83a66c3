"""Whole runs on a real Ray whose data get a shard between two of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hpo.engine import driver
from hpo.engine.desk import Desk
from hpo.engine.driver import Options
from hpo.engine.opening import OpenRun
from hpo.experiment_file import load
from hpo.files import digest
from hpo.protocols import Setting
from hpo.results import Place, Store
from hpo.storage import brought
from tests.buckets import Buckets
from tests.engine.test_driver import Quiet, assert_replays

pytestmark = pytest.mark.integration

BODY = """
from hpo import *
from tests.engine.shards import Sharded
experiment = Experiment(
    task=Sharded(), space={"x": uniform(0.0, 1.0)}, goal=Maximize("score"), trials=3, keep_checkpoints=2, max_failures=0
)
"""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.txt").write_text(f"rows {number}")
    return folder


@pytest.fixture
def go(ray_cluster: None, tmp_path: Path, shards: Path) -> Callable[..., OpenRun]:
    path = tmp_path / "grown.py"
    path.write_text(BODY)

    def run(results: Path | str, watcher: Quiet | None = None, **options: Any) -> OpenRun:
        given = Options(results, tmp_path / "cache", shards, concurrent=2)
        return driver.run(load(path), given, watcher or Quiet(), **options)

    return run


@pytest.mark.parametrize("in_bucket", [False, True], ids=["folder", "bucket"])
def test_the_best_trials_are_fine_tuned_on_the_new_shard(
    go: Callable[..., OpenRun], tmp_path: Path, shards: Path, buckets: Buckets, *, in_bucket: bool
) -> None:
    results = buckets.new() if in_bucket else tmp_path / "results"
    store = Store(Place.of(results, cache_dir=tmp_path / "elsewhere"))

    def rows(query: str) -> list[dict[str, Any]]:
        return list(store.sql(query).to_pylist())

    def checkpoints(opened: OpenRun) -> dict[str, str]:
        """Digest of each checkpoint that the store has of a run, by its path or URL."""
        named = [trial.checkpoint for trial in opened.study.trials if trial.checkpoint is not None]
        found = {}
        for one in named:
            with brought(opened.paths.located(one.path)) as path:
                found[opened.paths.located(one.path)] = digest(path)
        return found

    first = go(results)
    best = [trial.number for trial in first.study.top]
    before = checkpoints(first)
    assert len(before) == 2
    (shards / "2.txt").write_text("rows 2")
    heard = Quiet()
    second = go(results, heard, with_test=True)
    run, parent = second.paths.run_id, first.paths.run_id
    assert heard.notes == [
        f"1 new shard (2.txt): trials {best[0]} and {best[1]} of run {parent} are fine-tuned on it",
    ]
    assert f"trial 0 goes on from trial {best[0]} of run {parent}" in heard.lines
    [row] = rows(f"SELECT * FROM runs WHERE run_id = '{run}'")  # noqa: S608
    assert (row["state"], row["parent_run"], row["num_trials"]) == ("finished", parent, 2)
    trials = rows(f"SELECT * FROM trials WHERE run_id = '{run}' ORDER BY trial")  # noqa: S608
    assert [(one["state"], one["parent_run"], one["parent_trial"]) for one in trials] == [
        ("completed", parent, number) for number in best
    ]
    assert [one["hp_x"] for one in trials] == [first.study.trials[number].config["x"] for number in best]
    assert {one["parent_digest"] for one in trials} == set(before.values())
    reports = rows(f"SELECT trial, step, epoch, chunk FROM reports WHERE run_id = '{run}' ORDER BY trial")  # noqa: S608
    assert reports == [{"trial": trial, "step": 1, "epoch": 3, "chunk": 3} for trial in (0, 1)]
    printed = [store.logs(run, trial)[0].read_text().splitlines()[0] for trial in (0, 1)]
    assert printed == ["trained on 2.txt"] * 2
    assert second.tested == {"test_score": pytest.approx(first.study.trials[best[0]].config["x"] + 0.3)}
    assert checkpoints(first) == before
    assert len(checkpoints(second)) == 2
    assert_replays(second)
    line = rows(
        f"""WITH RECURSIVE line AS (
            SELECT * FROM trials WHERE run_id = '{run}' AND trial = 0
            UNION ALL
            SELECT older.* FROM line JOIN trials AS older
                ON older.run_id = line.parent_run AND older.trial = line.parent_trial
        ) SELECT run_id, trial FROM line"""  # noqa: S608
    )
    assert line == [{"run_id": run, "trial": 0}, {"run_id": parent, "trial": best[0]}]
    again = go(results)
    assert again.nothing_to_do
    assert again.paths == second.paths


def test_a_shard_that_arrives_meanwhile_is_not_seen_and_a_vanished_state_fails_one_trial(
    go: Callable[..., OpenRun], tmp_path: Path, shards: Path
) -> None:
    results = tmp_path / "results"
    first = go(results)
    gone = first.study.top[0].checkpoint
    assert gone is not None
    Path(first.paths.located(gone.path)).unlink()
    (shards / "2.txt").write_text("rows 2")

    def stop(desk: Desk) -> None:
        if desk.study.trials:
            desk.close_down("the test asks")

    second = go(results, Quiet(stop))
    assert not second.study.finished
    (shards / "3.txt").write_text("rows 3")
    heard = Quiet()
    on = go(results, heard)
    assert on.paths == second.paths
    assert heard.notes[0].startswith("1 new shard (3.txt) since run ")
    assert len(on.dataset.pieces) == 3
    assert_replays(on)
    failed, went_on = on.study.trials
    assert failed.state == "failed"
    assert f"{gone.path}: trial {first.study.top[0].number} of run {first.paths.run_id} cannot be" in failed.reason
    assert (went_on.state, went_on.step) == ("completed", 1)
    third = go(results)
    assert [trial.state for trial in third.study.trials] == ["completed"]
    assert third.study.continued[0].parent.run == on.paths.run_id


DIGITS = """
from hpo import *
from hpo.training import Classification
from hpo.training.data import ChunkFolder
from hpo.training.models import Mlp
experiment = Experiment(
    task=Classification(model=Mlp, data=ChunkFolder("SHARDS", num_classes=10, replay=0.5)),
    space={"lr": loguniform(1e-3, 1e-2)}, fixed={"epochs_per_chunk": 2, "batch_size": 64},
    goal=Maximize("val_accuracy"), trials=2, keep_checkpoints=1,
)
"""


def test_digits_in_shards_are_trained_on_once(ray_cluster: None, tmp_path: Path) -> None:
    images, labels = load_digits(return_X_y=True)
    folder = tmp_path / "shards"
    folder.mkdir()
    path = tmp_path / "digits.py"
    path.write_text(DIGITS.replace("SHARDS", str(folder)))

    def add(number: int) -> None:
        some = slice(400 * number, 400 * (number + 1))
        np.savez(folder / f"{number}.npz", images=images[some].reshape(-1, 8, 8).astype(np.uint8), labels=labels[some])

    def run() -> OpenRun:
        return driver.run(load(path), Options(tmp_path / "results", tmp_path / "cache", concurrent=2), Quiet())

    def reports(opened: OpenRun) -> list[tuple[int, int, int]]:
        query = "SELECT trial, step, epoch, chunk FROM reports WHERE run_id = '{}' ORDER BY trial, step"
        found = Store(tmp_path / "results").sql(query.format(opened.paths.run_id)).to_pylist()
        return [(row["step"], row["epoch"], row["chunk"]) for row in found]

    add(0), add(1)
    first = run()
    assert reports(first) == [(1, 1, 1), (2, 2, 1), (3, 3, 2), (4, 4, 2)] * 2
    add(2)
    second = run()
    best = first.study.top[0]
    assert [one.parent.trial for one in second.study.continued] == [best.number]
    assert reports(second) == [(1, 5, 3), (2, 6, 3)]
    assert second.study.trials[0].config == best.config

    task = load(path).experiment.task
    assert task.as_of(second.dataset, 2) == first.dataset
    trainer = task.begin(Setting("cpu", 1, first.dataset, tmp_path / "cache", "val_accuracy"))
    trainer.begin(best.config, seed=best.seed)
    assert [trainer.step().finished for _ in range(4)] == [False, False, False, True]  # the third is not seen
