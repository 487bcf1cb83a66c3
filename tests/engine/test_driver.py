"""Whole runs on a real Ray: from an experiment file to rows in the store."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo.engine import driver
from hpo.engine.desk import Desk
from hpo.engine.driver import Options
from hpo.engine.opening import OpenRun
from hpo.engine.study import Study
from hpo.errors import DataError, HpoError, RunLocked
from hpo.experiment_file import load
from hpo.results import RunStore, Store, read_entries
from hpo.trial import TrialState

pytestmark = pytest.mark.integration

BODY = """
from hpo import *
from tests.engine.toy import Promoting, Toy
from tests.training.line import LineFit
declared = dict(
    task=Toy(), space={"x": uniform(0.0, 1.0)}, goal=Maximize("score"), trials=6, policy=Asha(9), checkpoint_every_s=0.0
)
experiment = Experiment(**declared | dict(SETTINGS))
"""


class Quiet:
    """Watches without a word, and can do something between two events."""

    def __init__(self, do: Callable[[Desk], None] | None = None) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []
        self._do = do

    def begins(self, run: OpenRun) -> None:
        self.notes = list(run.notes)

    def happened(self, line: str) -> None:
        self.lines.append(line)

    said = happened

    def round(self, desk: Desk) -> None:
        if self._do is not None:
            self._do(desk)

    def stop_signals(self, desk: Desk) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.fixture
def go(ray_cluster: None, tmp_path: Path) -> Callable[..., OpenRun]:
    def run(
        settings: str = "", *, watcher: Quiet | None = None, overrides: dict[str, Any] | None = None, **options: Any
    ) -> OpenRun:
        path = tmp_path / "toy_study.py"
        path.write_text(BODY.replace("SETTINGS", settings))
        where = {"results": tmp_path / "results", "cache_dir": tmp_path / "cache", "concurrent": 2}
        return driver.run(load(path, overrides=overrides), Options(**{**where, **options}), watcher or Quiet())

    return run


def rows(tmp_path: Path, query: str) -> list[dict[str, Any]]:
    return list(Store(tmp_path / "results").sql(query).to_pylist())


class TestARun:
    def test_ends_in_the_store(self, go: Callable[..., OpenRun], tmp_path: Path) -> None:
        opened = go()
        assert opened.study.finished
        [run] = rows(tmp_path, "SELECT * FROM runs")
        assert (run["state"], run["experiment"], run["goal"], run["mode"]) == ("finished", "toy_study", "score", "max")
        trials = rows(tmp_path, "SELECT * FROM trials ORDER BY trial")
        assert [row["trial"] for row in trials] == list(range(6))
        assert {row["state"] for row in trials} <= {"completed", "stopped"}
        reports = rows(tmp_path, "SELECT trial, step, score, loss FROM reports ORDER BY trial, step")
        assert len(reports) == sum(trial.step for trial in opened.study.trials)
        assert all(row["loss"] == -row["score"] for row in reports)
        best = max(trials, key=lambda row: row["best_score"])
        assert opened.study.best is not None
        assert best["trial"] == opened.study.best.number
        assert best["hp_x"] == opened.study.best.config["x"]

    def test_a_schedule_knows_how_long_a_policy_lets_trials_train(
        self, go: Callable[..., OpenRun], tmp_path: Path
    ) -> None:
        fixed = {"lr": 0.1, "batch_size": 8, "optimizer": "sgd", "lr_schedule": "cosine", "schedule_every": "epoch"}
        go(f"task=LineFit(), space={{}}, fixed={fixed}, goal=Minimize('val_loss'), trials=1, policy=NoStopping(4)")
        rates = [row["lr"] for row in rows(tmp_path, "SELECT lr FROM reports ORDER BY step")]
        assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)

    def test_gives_the_same_proposals_with_any_number_of_workers(self, go: Callable[..., OpenRun]) -> None:
        proposals = [
            [trial.config["x"] for trial in go(f"policy=NoStopping({n})", concurrent=n).study.trials] for n in (1, 2)
        ]
        assert proposals[0] == proposals[1]

    def test_keeps_what_a_trial_printed(self, go: Callable[..., OpenRun]) -> None:
        opened = go("fixed={'say': 'hello from'}, trials=5, policy=NoStopping(2)", concurrent=1)
        assert [trial.attempt for trial in opened.study.trials] == [1] * 5  # one process prints for all of them
        for trial in range(5):
            assert opened.paths.log(trial).read_text() == "hello from 1\nhello from 2\n"

    def test_keeps_the_checkpoints_of_the_best(self, go: Callable[..., OpenRun]) -> None:
        opened = go("trials=6, policy=NoStopping(3), keep_checkpoints=2")
        kept = sorted(path.parent.name for path in opened.paths.checkpoints.rglob("*.pt"))
        assert kept == sorted(f"trial-{trial.number:05d}" for trial in opened.study.top)
        assert len(kept) == 2

    def test_promotes_paused_trials_without_starving_the_search(self, go: Callable[..., OpenRun]) -> None:
        opened = go("trials=9, policy=Promoting(9)")
        assert len(opened.study.trials) == 9
        assert any(trial.state is TrialState.COMPLETED for trial in opened.study.trials)
        assert sum(trial.attempt > 1 for trial in opened.study.trials) >= 3
        assert_replays(opened)


class TestWritingBesideTraining:
    def test_training_does_not_wait_for_a_slow_write(self, go: Callable[..., OpenRun]) -> None:
        opened = go("fixed={'write_s': 0.3, 'sleep_s': 0.02}, trials=1, policy=NoStopping(30)", concurrent=1)
        entries = read_entries(opened.paths)
        written = [entry for entry in entries if entry.kind == "checkpoint"]
        steps_between = [later.step - earlier.step for earlier, later in itertools.pairwise(written)]
        assert max(steps_between) > 1  # it trained on while the first one was written
        assert opened.study.trials[0].checkpoint is not None
        assert opened.study.trials[0].checkpoint.step == 30  # the run did not end before its last file was there
        assert_replays(opened)

    def test_a_paused_trial_is_promoted_from_the_state_that_it_paused_with(self, go: Callable[..., OpenRun]) -> None:
        opened = go("fixed={'write_s': 0.05}, trials=6, policy=Promoting(9), checkpoint_every_s=60.0")
        promoted = [entry for entry in read_entries(opened.paths) if entry.detail.get("why") == "promoted"]
        assert promoted
        assert {entry.detail["from_step"] for entry in promoted} <= {1, 3}
        assert_replays(opened)

    def test_what_cannot_be_written_costs_the_checkpoint_alone(
        self, go: Callable[..., OpenRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hpo.engine.checkpoints.PATIENCE_S", 1.0)  # the last failure is told to nobody
        opened = go("fixed={'write_fails': True}, trials=3, policy=NoStopping(3)", concurrent=1)
        assert {trial.state for trial in opened.study.trials} == {TrialState.COMPLETED}
        assert {trial.checkpoint for trial in opened.study.trials} == {None}
        failures = [
            row["detail"] for row in rows(tmp_path, "SELECT detail FROM events WHERE kind = 'checkpoint_failed'")
        ]
        assert any("No space left on device" in detail for detail in failures)
        assert not [path for path in opened.paths.checkpoints.rglob("*") if path.is_file()]

    def test_what_it_prints_is_in_no_other_trials_log(self, go: Callable[..., OpenRun]) -> None:
        opened = go("fixed={'write_s': 0.02, 'sleep_s': 0.01}, trials=4, policy=NoStopping(4)", concurrent=1)
        for trial in range(4):
            lines = opened.paths.log(trial).read_text().splitlines()
            assert set(lines) <= {f"writing trial-{trial:05d}"}


class TestFailures:
    def test_an_error_is_tried_again_and_then_kept_with_its_traceback(
        self, go: Callable[..., OpenRun], tmp_path: Path
    ) -> None:
        opened = go("fixed={'fail_at': 2, 'say': 'now'}, trials=2, policy=NoStopping(4)")
        assert [trial.state for trial in opened.study.trials] == [TrialState.FAILED] * 2
        assert [trial.attempt for trial in opened.study.trials] == [2, 2]
        failures = rows(tmp_path, "SELECT detail FROM events WHERE kind = 'failed'")
        assert len(failures) == 4
        assert all("RuntimeError: told to fail" in row["detail"] for row in failures)
        assert "Traceback" in failures[0]["detail"]
        assert "now 1" in opened.paths.log(0).read_text()

    def test_out_of_memory_is_named(self, go: Callable[..., OpenRun]) -> None:
        opened = go("fixed={'memory_at': 1}, trials=1, max_failures=0")
        assert opened.study.trials[0].cause == "out_of_memory"

    def test_a_process_that_dies_fails_its_trial_alone(self, go: Callable[..., OpenRun]) -> None:
        opened = go("space={'kill_at': choice(0, 2), 'x': uniform(0, 1)}, trials=4, policy=NoStopping(3), seed=1")
        died = [trial for trial in opened.study.trials if trial.config["kill_at"] == 2]
        lived = [trial for trial in opened.study.trials if trial.config["kill_at"] == 0]
        assert died
        assert lived
        assert {(trial.state, trial.cause) for trial in died} == {(TrialState.FAILED, "killed")}
        assert {trial.state for trial in lived} == {TrialState.COMPLETED}

    def test_a_nan_stops_the_trial_and_the_study_goes_on(self, go: Callable[..., OpenRun]) -> None:
        opened = go("fixed={'nan_at': 1}, trials=3")
        assert [trial.cause for trial in opened.study.trials] == ["diverged"] * 3
        assert opened.study.finished

    def test_a_run_that_cannot_begin_says_so(self, go: Callable[..., OpenRun], tmp_path: Path) -> None:
        with pytest.raises(
            HpoError, match=r"(?s)none of the first 6 attempts got through a step.*hpo logs toy_study 0"
        ):
            go("fixed={'fail_at': 1}, trials=20")
        assert rows(tmp_path, "SELECT state FROM runs") == [{"state": "failed"}]

    def test_a_metric_that_is_no_number_fails_the_trial_alone(self, go: Callable[..., OpenRun]) -> None:
        opened = go("fixed={'text_at': 2}, trials=1, max_failures=0")
        assert opened.study.trials[0].state is TrialState.FAILED
        assert "the metric 'score' is 'text', not a Python number" in opened.study.trials[0].reason


class TestGoingOn:
    def test_a_run_that_was_asked_to_stop_goes_on_from_its_checkpoints(
        self, go: Callable[..., OpenRun], tmp_path: Path
    ) -> None:
        def stop_soon(desk: Desk) -> None:
            if desk.num_steps == 5:
                desk.close_down("the test asks")

        # More steps than the stop at 5 leaves to one trial, however late the process of the other starts.
        settings = "fixed={'sleep_s': 0.02}, policy=NoStopping(12), trials=4"
        first = go(settings, watcher=Quiet(stop_soon))
        assert not first.study.finished
        assert rows(tmp_path, "SELECT state FROM runs") == [{"state": "interrupted"}]
        second = go(settings)
        assert second.resumed
        assert second.study.finished
        assert second.paths == first.paths
        assert rows(tmp_path, "SELECT kind FROM events WHERE kind = 'differs'") == []
        resumed = [entry for entry in read_entries(second.paths) if entry.detail.get("why") == "resumed"]
        assert resumed
        assert any(entry.detail["from_step"] > 0 for entry in resumed)
        assert len(rows(tmp_path, "SELECT * FROM reports")) == 48
        assert_replays(second)

    def test_a_stop_request_ends_it_as_ctrl_c_would(self, go: Callable[..., OpenRun]) -> None:
        asked: list[Path] = []

        def ask(desk: Desk) -> None:
            if desk.num_steps == 3 and not asked:
                asked.append(desk._stop_request)
                desk._stop_request.touch()

        opened = go("fixed={'sleep_s': 0.1}, policy=NoStopping(50), trials=4", watcher=Quiet(ask))
        assert not opened.study.finished
        assert not opened.paths.stop_request.exists()

    def test_a_driver_killed_after_the_last_trial_is_made_up_for(
        self, go: Callable[..., OpenRun], tmp_path: Path
    ) -> None:
        opened = go("trials=2")
        held = RunStore.open(tmp_path / "results", experiment="toy_study", run_id=opened.paths.run_id)
        held.append("run_started", detail={**read_entries(opened.paths)[0].detail, "resumed": True})
        held.close()
        assert rows(tmp_path, "SELECT state FROM runs") == [{"state": "interrupted"}]
        assert go("trials=2").nothing_to_do
        assert rows(tmp_path, "SELECT state FROM runs") == [{"state": "finished"}]

    def test_a_request_to_stop_that_nobody_heeded_does_not_stop_the_next(self, go: Callable[..., OpenRun]) -> None:
        opened = go("trials=2")
        opened.paths.stop_request.touch()
        assert go("trials=2", overrides={"trials": 4}).study.finished

    def test_strays_of_killed_processes_are_deleted(self, go: Callable[..., OpenRun]) -> None:
        opened = go("trials=2, keep_checkpoints=1")
        stray = opened.paths.checkpoint(1, 7, 7)
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_text("half")
        go("trials=2, keep_checkpoints=1", overrides={"trials": 3})
        assert not stray.exists()
        assert list(opened.paths.checkpoints.rglob("*.pt"))

    def test_nothing_is_done_twice_and_more_trials_extend_it(self, go: Callable[..., OpenRun]) -> None:
        first = go()
        again = go()
        assert again.nothing_to_do
        more = go(overrides={"trials": 9})
        assert more.paths == first.paths
        assert len(more.study.trials) == 9
        assert [t.config for t in more.study.trials[:6]] == [t.config for t in first.study.trials]
        assert_replays(more)

    def test_a_changed_experiment_is_a_new_run_and_says_why(self, go: Callable[..., OpenRun]) -> None:
        first = go("trials=2")
        watcher = Quiet()
        second = go("trials=2, seed=5", watcher=watcher)
        assert second.paths != first.paths
        assert watcher.notes == [
            f"a new run, because the experiment changed since {first.paths.run_id}: seed: 0 is now 5"
        ]

    def test_fresh_begins_anew(self, go: Callable[..., OpenRun]) -> None:
        assert go("trials=2").paths != go("trials=2", fresh=True).paths

    def test_changed_data_is_refused(self, go: Callable[..., OpenRun], tmp_path: Path) -> None:
        (tmp_path / "toy.txt").write_text("one")
        go("trials=2", data_dir=tmp_path)
        (tmp_path / "toy.txt").write_text("two")
        with pytest.raises(DataError, match=r"(?s)its fingerprint is two, but the run began with one.*--fresh"):
            go("trials=2", data_dir=tmp_path)

    def test_a_second_driver_is_refused(self, go: Callable[..., OpenRun], tmp_path: Path) -> None:
        first = go("trials=2")
        held = RunStore.open(tmp_path / "results", experiment="toy_study", run_id=first.paths.run_id)
        try:
            with pytest.raises(RunLocked, match=r"process \d+ on "):
                go("trials=2")
        finally:
            held.close()

    def test_a_damaged_checkpoint_costs_the_steps_and_not_the_trial(self, go: Callable[..., OpenRun]) -> None:
        def stop_soon(desk: Desk) -> None:
            if desk.num_steps == 4:
                desk.close_down("the test asks")

        settings = "policy=NoStopping(6), trials=1"
        first = go(settings, watcher=Quiet(stop_soon))
        for path in first.paths.checkpoints.rglob("*.pt"):
            path.write_text("damaged")
        second = go(settings)
        assert second.study.trials[0].state is TrialState.COMPLETED
        assert second.study.trials[0].num_failures == 0
        assert_replays(second)


def assert_replays(opened: OpenRun) -> None:
    """The journal gives the same study again."""
    again = Study(opened.file.experiment, lambda *_, **__: None)
    again.replay(read_entries(opened.paths))
    assert repr(again.trials) == repr(opened.study.trials)
