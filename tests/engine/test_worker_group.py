"""Trials on several workers, on a real Ray with real process groups."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpo.engine import driver
from hpo.engine.driver import Options
from hpo.engine.opening import OpenRun
from hpo.experiment_file import load
from hpo.results import Store, read_entries
from hpo.trial import TrialState
from tests.engine.test_driver import Quiet, assert_replays

pytestmark = pytest.mark.integration

BODY = """
from hpo import *
from tests.engine.crew import *
declared = dict(
    task=Crew(), space={"lr": uniform(0.01, 0.1)}, fixed={"batch_size": 10}, goal=Minimize("val_loss"), trials=1,
    policy=Scripted(), checkpoint_every_s=0.0, max_failures=1, per_trial=PerTrial(gpus=0, workers=2, hang_s=6.0),
)
experiment = Experiment(**declared | dict(SETTINGS))
"""


@pytest.fixture
def go(ray_cluster: None, tmp_path: Path) -> Callable[..., OpenRun]:
    def run(settings: str = "", *, watcher: Quiet | None = None, **options: Any) -> OpenRun:
        path = tmp_path / "crew_study.py"
        path.write_text(BODY.replace("SETTINGS", settings))
        where = {"results": tmp_path / "results", "cache_dir": tmp_path / "cache", "concurrent": 1}
        return driver.run(load(path), Options(**{**where, **options}), watcher or Quiet())

    return run


def told(opened: OpenRun, trial: int, rank: int) -> list[str]:
    """The calls that a rank has printed."""
    words = ("begin", "step", "load", "take over")
    lines = opened.paths.log(trial, rank).read_text().splitlines()
    return [re.sub(r" pid=\d+", "", line) for line in lines if line.startswith(words)]


def pids(opened: OpenRun, trial: int) -> set[int]:
    found: set[int] = set()
    for rank in (0, 1):
        found |= {int(pid) for pid in re.findall(r"pid=(\d+)", opened.paths.log(trial, rank).read_text())}
    return found


def causes(opened: OpenRun) -> list[tuple[str, str]]:
    return [(e.detail["cause"], e.detail["message"]) for e in read_entries(opened.paths) if e.kind == "failed"]


def gone(pid: int) -> bool:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_whatever_is_decided_reaches_every_rank(go: Callable[..., OpenRun]) -> None:
    script = '(0, 2, ("pause",)), (1, 1, ("stop",)), (2, 3, ("exploit", 0, 0.5))'
    opened = go(f"trials=3, policy=Scripted(script=({script},))")
    study = opened.study
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETED, TrialState.STOPPED, TrialState.COMPLETED]
    for trial in range(3):
        assert told(opened, trial, 0) == told(opened, trial, 1)
    first = study.trials[0].config["lr"]
    paused = ["step 1", "step 2", f"begin lr={first}", "load attempt-01-step-0002.pt", "step 3", "step 4"]
    assert told(opened, 0, 1) == [f"begin lr={first}", *paused]
    assert told(opened, 1, 1)[1:] == ["step 1"]
    copied = told(opened, 2, 1)
    assert copied[4] == "begin lr=0.5"
    assert copied[5].startswith("take over attempt-0")
    assert copied[6].startswith("step ")
    assert study.trials[2].config == {"lr": 0.5, "batch_size": 10}
    assert study.trials[2].step == 4
    assert len(set.union(*(pids(opened, trial) for trial in range(3)))) == 2  # the same processes trained them all
    [row] = Store(opened.paths.root).sql("SELECT parent_trial, hp_lr FROM trials WHERE trial = 2").to_pylist()
    assert row == {"parent_trial": 0, "hp_lr": 0.5}
    assert_replays(opened)


def test_two_workers_measure_what_one_measures(go: Callable[..., OpenRun]) -> None:
    scores = [
        go(
            f"policy=Scripted(max_epochs=2), per_trial=PerTrial(gpus=0, workers={workers}, strategy='spread')",
            fresh=True,
        )
        .study.trials[0]
        .scores
        for workers in (1, 2)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_more_trials_than_fit_wait_for_each_other(go: Callable[..., OpenRun]) -> None:
    opened = go("trials=5, policy=Scripted(max_epochs=2), fixed={'batch_size': 10, 'wait_s': 0.05}", concurrent=None)
    assert all(trial.state is TrialState.COMPLETED for trial in opened.study.trials)
    assert {trial.attempt for trial in opened.study.trials} == {1}


class TestAnAttempt:
    def failing(self, go: Callable[..., OpenRun], tmp_path: Path, how: str, *, rank: int) -> OpenRun:
        breaks = {"breaks": how, "rank": rank, "at": 3, "mark": str(tmp_path / "broken")}
        fixed = {"batch_size": 10, "wait_s": 0.5, **breaks}
        opened = go(f"fixed={fixed}")
        assert [trial.state for trial in opened.study.trials] == [TrialState.COMPLETED]
        assert opened.study.trials[0].attempt == 2
        for number in (0, 1):  # the second attempt goes on in both from where the first was saved
            again = told(opened, 0, number)
            [loaded] = [at for at, call in enumerate(again) if call.startswith("load ")]
            step = int(again[loaded].removeprefix("load attempt-01-step-").removesuffix(".pt"))
            assert again[loaded + 1 :] == [f"step {number}" for number in range(step + 1, 5)]
            assert step in (1, 2)
        first = {int(p) for r in (0, 1) for p in re.findall(r"pid=(\d+)", opened.paths.log(0, r).read_text())[:1]}
        assert len(first) == 2
        assert all(gone(pid) for pid in first)
        assert_replays(opened)
        return opened

    @pytest.mark.parametrize("rank", [0, 1])
    def test_ends_with_a_rank_that_dies(self, go: Callable[..., OpenRun], tmp_path: Path, rank: int) -> None:
        [(cause, message)] = causes(self.failing(go, tmp_path, "die", rank=rank))
        assert cause == "killed"
        assert message == f"rank {rank}: the trial's process died"

    def test_ends_with_a_rank_that_raises(self, go: Callable[..., OpenRun], tmp_path: Path) -> None:
        [(cause, message)] = causes(self.failing(go, tmp_path, "raise", rank=1))
        assert cause == "error"
        assert message == "rank 1: RuntimeError: told to fail"

    def test_ends_with_a_rank_that_hangs(self, go: Callable[..., OpenRun], tmp_path: Path) -> None:
        [(cause, message)] = causes(self.failing(go, tmp_path, "hang", rank=1))
        assert cause == "hung"
        assert message == "rank 1 did not answer, for which it has 6 s (per_trial.hang_s)"


def test_ranks_end_with_the_actor_that_started_them(go: Callable[..., OpenRun], tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def kill_the_actor(desk: Any) -> None:
        log = next((tmp_path / "results").rglob("trial-00000-rank-1.log"), None)
        if "ranks" in seen or log is None or "step 2" not in log.read_text():
            return
        text = "".join(path.read_text() for path in log.parent.glob("*.log"))
        seen["ranks"] = [int(pid) for pid in re.findall(r"pid=(\d+)", text)]
        raylet = psutil.Process(seen["ranks"][0]).ppid()
        titles = {p.pid: " ".join(p.cmdline()) for p in psutil.Process(raylet).children()}
        [actor] = [pid for pid, title in titles.items() if "trial" in title.lower() and pid not in seen["ranks"]]
        os.kill(actor, 9)

    opened = go("fixed={'batch_size': 10, 'wait_s': 0.2}, policy=Scripted(max_epochs=6)", watcher=Quiet(kill_the_actor))
    assert opened.study.trials[0].state is TrialState.COMPLETED
    assert [cause for cause, _ in causes(opened)] == ["killed"]
    assert len(seen["ranks"]) == 2
    assert all(gone(pid) for pid in seen["ranks"])
