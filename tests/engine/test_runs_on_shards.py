"""A whole run on a real Ray over shards in a folder, to which one is added between two commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.engine import driver
from hpo.engine.driver import Options
from hpo.experiment_file import load
from hpo.results import Store
from tests.engine.test_driver import Quiet
from tests.training import shards

BODY = """
from hpo import *
from hpo.training import Regression
from hpo.training.data import ChunkFolder
from hpo.training.models import Mlp
experiment = Experiment(
    task=Regression(model=Mlp, data=ChunkFolder({folder!r}, targets="y")),
    space={{"lr": loguniform(1e-3, 1e-1)}}, fixed={{"hidden": (8,), "batch_size": 16}},
    goal=Minimize("val_loss"), trials=2, keep_checkpoints=1, max_failures=0,
)
"""


@pytest.mark.integration
@pytest.mark.usefixtures("ray_cluster")
def test_the_best_trial_goes_on_with_the_shard_that_arrived(tmp_path: Path) -> None:
    folder = shards.write_parquet(tmp_path / "shards", num=3)
    late = folder / "002.parquet"
    late.rename(folder / "_later")
    path = tmp_path / "grows.py"
    path.write_text(BODY.format(folder=str(folder)))
    options = Options(tmp_path / "results", tmp_path / "cache", None, concurrent=2)
    first = driver.run(load(path), options, Quiet())
    (folder / "_later").rename(late)
    second = driver.run(load(path), options, Quiet())
    assert first.study.best is not None
    assert second.study.best is not None
    assert len(second.study.trials) == 1
    found = Store(tmp_path / "results").sql(
        "SELECT r.parent_run, t.parent_trial, p.chunk, p.epoch, p.val_old_loss IS NOT NULL AS old "
        "FROM runs r JOIN trials t USING (run_id) JOIN reports p USING (run_id) WHERE r.parent_run IS NOT NULL"
    )
    best = first.study.best.number
    assert [tuple(row.values()) for row in found.to_pylist()] == [(first.paths.run_id, best, 3, 3, True)]
