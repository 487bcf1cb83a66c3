"""Whole runs whose store is in a bucket: nothing is lost with a driver, a disk, or while the bucket refuses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo.engine import driver
from hpo.engine.desk import Desk
from hpo.engine.driver import Options
from hpo.engine.opening import OpenRun
from hpo.experiment_file import load
from hpo.results import Place, Store, read_entries
from hpo.storage import storage_at
from hpo.trial import TrialState
from tests.buckets import Buckets
from tests.engine.test_driver import BODY, Quiet, assert_replays

pytestmark = pytest.mark.integration


@pytest.fixture
def url(buckets: Buckets) -> str:
    return buckets.new()


@pytest.fixture
def go(ray_cluster: None, tmp_path: Path, url: str) -> Callable[..., OpenRun]:
    def run(settings: str = "", *, watcher: Quiet | None = None, machine: str = "one", **options: Any) -> OpenRun:
        path = tmp_path / "toy_study.py"
        path.write_text(BODY.replace("SETTINGS", settings))
        where = {"results": url, "cache_dir": tmp_path / machine, "concurrent": 2}
        return driver.run(load(path), Options(**{**where, **options}), watcher or Quiet())

    return run


def seen_from(url: str, cache: Path, query: str) -> list[dict[str, Any]]:
    return list(Store(Place.of(url, cache_dir=cache)).sql(query).to_pylist())


def test_a_run_ends_in_the_bucket_and_other_machines_read_it(
    go: Callable[..., OpenRun], url: str, tmp_path: Path
) -> None:
    before = set(Path(tempfile.gettempdir()).glob("hpo-checkpoint-*"))
    opened = go("fixed={'say': 'hello'}, keep_checkpoints=2")
    assert opened.study.finished
    for machine in ("one", "two"):
        assert seen_from(url, tmp_path / machine, "SELECT state FROM runs") == [{"state": "finished"}]
        reports = seen_from(url, tmp_path / machine, "SELECT trial, step FROM reports")
        assert len(reports) == sum(trial.step for trial in opened.study.trials)
        store = Store(Place.of(url, cache_dir=tmp_path / machine))
        assert store.logs("toy_study", 0)[0].read_text().startswith("hello 1\n")
        assert list(store.curves("toy_study").rglob("events*"))
    names = [stored.name for stored in storage_at(url).below()]
    states = [name for name in names if name.endswith(".pt")]
    assert len(states) == 2
    kept = {trial.checkpoint.path for trial in opened.study.trials if trial.checkpoint is not None}
    assert kept == {name[name.index("checkpoints/") :] for name in states}
    assert not list((tmp_path / "one").rglob("*.pt"))
    assert set(Path(tempfile.gettempdir()).glob("hpo-checkpoint-*")) == before
    assert_replays(opened)


def test_another_machine_goes_on(go: Callable[..., OpenRun], url: str, tmp_path: Path) -> None:
    def stop_soon(desk: Desk) -> None:
        if desk.num_steps >= 7:
            desk.close_down("the test asks")

    settings = "policy=NoStopping(6), trials=4"
    first = go(settings, watcher=Quiet(stop_soon))
    assert not first.study.finished
    second = go(settings, machine="two")
    assert second.resumed
    assert second.study.finished
    resumed = [entry for entry in read_entries(second.paths) if entry.detail.get("why") == "resumed"]
    assert any(entry.detail["from_step"] > 0 for entry in resumed)
    assert len(seen_from(url, tmp_path / "one", "SELECT * FROM reports")) == 24
    assert go(settings).nothing_to_do  # and the first machine learns of it
    assert_replays(second)


def test_a_killed_driver_is_followed_on_its_machine(go: Callable[..., OpenRun], url: str, tmp_path: Path) -> None:
    settings = "fixed={'sleep_s': 0.05}, policy=NoStopping(40), trials=2"
    path = tmp_path / "toy_study.py"
    path.write_text(BODY.replace("SETTINGS", settings))
    command = [sys.executable, "-m", "hpo.run", str(path), "--results", url, "--cpus", "2"]
    environment = {**os.environ, "HPO_CACHE": str(tmp_path / "one"), "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as process:
        until(lambda: len(steps(url, tmp_path / "one")) >= 10)
        assert seen_from(url, tmp_path / "one", "SELECT state FROM runs") == [{"state": "running"}]
        os.killpg(process.pid, signal.SIGKILL)
    acknowledged = steps(url, tmp_path / "one")
    opened = go(settings)
    assert opened.resumed
    assert opened.study.finished
    assert acknowledged <= steps(url, tmp_path / "one")
    assert len(seen_from(url, tmp_path / "two", "SELECT * FROM reports")) == 80
    assert_replays(opened)


def test_a_head_that_is_lost_with_its_disk_costs_a_minute_and_no_trial(
    go: Callable[..., OpenRun], url: str, tmp_path: Path
) -> None:
    settings = "fixed={'sleep_s': 0.05}, policy=NoStopping(9999), trials=2, checkpoint_every_s=0.1"
    path = tmp_path / "toy_study.py"
    path.write_text(BODY.replace("SETTINGS", settings))
    sealing = (
        "import functools, sys; from hpo.results import run_store as r; r.Pace = functools.partial(r.Pace, seal_s=2)"
    )
    words = [str(path), "--results", url, "--cpus", "2"]
    code = f"{sealing}; sys.argv[1:] = {words!r}; from hpo.run import command; command()"
    environment = {**os.environ, "HPO_CACHE": str(tmp_path / "one"), "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        events = "SELECT trial, max(step) AS step FROM events WHERE kind = 'checkpoint' GROUP BY trial ORDER BY trial"
        until(lambda: [row["step"] > 1 for row in seen_from(url, tmp_path / "two", events)] == [True, True])
        time.sleep(2)  # newer ones are written, and sealed is what the older ones are called
        os.killpg(process.pid, signal.SIGKILL)
    shutil.rmtree(tmp_path / "one")
    sealed = {row["trial"]: row["step"] for row in seen_from(url, tmp_path / "two", events)}
    storage = storage_at(url)
    for stored in storage.below("drivers"):  # as if it had not been heard of for two minutes
        storage.write(stored.name, storage.read(stored.name).replace(b'"held"', b'"released"'))

    def stop_soon(desk: Desk) -> None:
        if desk.num_steps >= 4:
            desk.close_down("the test asks")

    opened = go(settings, machine="three", watcher=Quiet(stop_soon))
    assert opened.resumed
    entries = read_entries(opened.paths)
    resumed = {entry.trial: entry.detail["from_step"] for entry in entries if entry.detail.get("why") == "resumed"}
    assert all(resumed[trial] >= step > 1 for trial, step in sealed.items())
    assert not [entry for entry in entries if entry.kind in ("unusable", "failed")]


def steps(url: str, cache: Path) -> set[tuple[int, int, float]]:
    """Trial, step and score of each stored report."""
    rows = seen_from(url, cache, "SELECT trial, step, score FROM reports")
    return {(row["trial"], row["step"], row["score"]) for row in rows}


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 100
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_bucket_that_refuses_for_a_while_costs_no_report(
    go: Callable[..., OpenRun], url: str, tmp_path: Path, buckets: Buckets
) -> None:
    outages: list[threading.Thread] = []

    def be_away() -> None:
        with buckets.away():
            time.sleep(4)

    def interfere(desk: Desk) -> None:
        if desk.num_steps == 4 and not outages:
            outages.append(threading.Thread(target=be_away))
            outages[0].start()

    opened = go("fixed={'sleep_s': 0.05}, policy=NoStopping(15), trials=4", watcher=Quiet(interfere))
    outages[0].join()
    assert opened.study.finished
    assert len(seen_from(url, tmp_path / "two", "SELECT * FROM reports")) == 60
    assert seen_from(url, tmp_path / "two", "SELECT * FROM events WHERE kind = 'failed'") == []
    assert_replays(opened)


def test_a_damaged_checkpoint_in_the_bucket_costs_steps_and_not_the_trial(go: Callable[..., OpenRun], url: str) -> None:
    def stop_soon(desk: Desk) -> None:
        if desk.num_steps == 4:
            desk.close_down("the test asks")

    settings = "policy=NoStopping(6), trials=1"
    go(settings, watcher=Quiet(stop_soon))
    storage = storage_at(url)
    states = [stored.name for stored in storage.below("work") if stored.name.endswith(".pt")]
    assert states
    for name in states:
        storage.write(name, b"damaged")
    second = go(settings)
    assert second.study.trials[0].state is TrialState.COMPLETED
    assert second.study.trials[0].num_failures == 0
    assert_replays(second)


def test_the_best_weights_are_brought_for_the_test(go: Callable[..., OpenRun], url: str, tmp_path: Path) -> None:
    opened = go("trials=1, policy=NoStopping(2)")
    path = tmp_path / "toy_study.py"
    again = driver.run(load(path), Options(url, tmp_path / "three", concurrent=1), Quiet(), with_test=True)
    assert again.paths.run_id == opened.paths.run_id
    assert again.tested == {"test_score": 2}
