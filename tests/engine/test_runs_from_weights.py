"""Whole runs on a real Ray that begin with the weights of others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo.engine import driver
from hpo.engine.driver import Options
from hpo.engine.opening import OpenRun
from hpo.experiment_file import load
from hpo.results import Store
from hpo.training.weights_file import digest, read_weights
from tests.engine.test_driver import Quiet

pytestmark = pytest.mark.integration

BODY = """
from hpo import *
from tests.training.line import LineFit
from tests.training.test_trainer_fine_tuning import Deep
declared = dict(
    task=LineFit(model=Deep), space={"lr": loguniform(1e-3, 1e-1)}, goal=Minimize("val_loss"), trials=2,
    policy=NoStopping(2), fixed={"batch_size": 8},
)
experiment = Experiment(**declared | dict(SETTINGS))
"""


def run(folder: Path, name: str, settings: str = "") -> OpenRun:
    path = folder / f"{name}.py"
    path.write_text(BODY.replace("SETTINGS", settings))
    options = Options(results=folder / "results", cache_dir=folder / "cache", concurrent=2)
    return driver.run(load(path), options, Quiet())


def test_the_second_experiment_begins_with_the_best_of_the_first(ray_cluster: None, tmp_path: Path) -> None:
    def rows(query: str) -> list[dict[str, Any]]:
        return list(Store(tmp_path / "results").sql(query).to_pylist())

    parent = run(tmp_path, "parent")
    best = parent.study.best
    assert best is not None
    fixed = {"batch_size": 8, "start_from": "best:parent", "freeze": "first", "partial": True, "epochs": 1}
    child = run(tmp_path, "child", f"""fixed={fixed!r}, trials=1""")
    [row] = rows(f"SELECT * FROM trials WHERE run_id = '{child.paths.run_id}'")  # noqa: S608
    assert (row["state"], row["parent_run"], row["parent_trial"]) == ("completed", parent.paths.run_id, best.number)
    assert best.checkpoint is not None
    weights = Path(parent.paths.located(best.checkpoint.path))
    assert row["parent_digest"] == digest(weights)
    [told] = rows("SELECT detail ->> 'start' AS start FROM events WHERE kind = 'trains' AND detail ->> 'start' != ''")
    assert re.fullmatch(r"\d+ loaded", told["start"])
    log = child.paths.log(0).read_text()
    assert "head.weight: loaded (in the model (1, 4), in the weights (1, 4))" in log
    own = child.study.trials[0].checkpoint
    assert own is not None
    before, after = read_weights(weights), read_weights(Path(child.paths.located(own.path)))
    assert torch.equal(before["first.weight"], after["first.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])

    within = run(tmp_path, "within", """trials=None, space={"start_from": grid(None, "trial:0", "trial:2")}""")
    trials = rows(f"SELECT * FROM trials WHERE run_id = '{within.paths.run_id}' ORDER BY trial")  # noqa: S608
    assert [row["state"] for row in trials] == ["completed", "completed", "failed"]
    assert [row["parent_trial"] for row in trials] == [None, 0, None]
    assert trials[1]["parent_run"] == within.paths.run_id
    assert "trial 2 cannot begin with trial 2 of its run, which is not an earlier one" in trials[2]["stop_reason"]
    assert run(
        tmp_path, "within", """trials=None, space={"start_from": grid(None, "trial:0", "trial:2")}"""
    ).nothing_to_do


def test_every_process_of_a_trial_begins_with_the_weights(ray_cluster: None, tmp_path: Path) -> None:
    parent = run(tmp_path, "parent", "trials=1")
    still = {
        "batch_size": 8,
        "start_from": "best:parent",
        "partial": True,
        "freeze": -1,
        "optimizer": "sgd",
        "lr": 1e-9,
    }
    child = run(tmp_path, "child", f"fixed={still!r}, space={{}}, trials=1, per_trial=PerTrial(gpus=0, workers=2)")
    store = Store(tmp_path / "results")
    [row] = store.trials(child.paths.run_id).to_pylist()
    assert (row["state"], row["parent_run"], row["parent_trial"]) == ("completed", parent.paths.run_id, 0)
    assert parent.study.best is not None
    assert row["best_score"] == pytest.approx(parent.study.best.best_score)  # for it learns next to nothing
    for rank in range(2):
        log = child.paths.log(0, rank).read_text()
        assert len(re.findall(r"start from \S+: 11 loaded", log)) == 1
        assert log.count("head.weight: loaded (in the model (1, 4), in the weights (1, 4))") == 1
    query = "SELECT detail ->> 'start' AS start FROM events WHERE run_id = '{}' AND detail ->> 'start' IS NOT NULL"
    assert store.sql(query.format(child.paths.run_id)).to_pylist() == [{"start": "11 loaded"}]
