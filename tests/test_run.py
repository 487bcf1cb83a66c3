"""`python -m hpo.run`: as a person types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from hpo.errors import ExperimentError
from hpo.results import Store
from hpo.run import command, parse_settings

BODY = """
from hpo import *
from tests.engine.toy import Toy
experiment = Experiment(
    task=Toy(), space={"x": uniform(0.0, 1.0)}, goal=Maximize("score"), trials=6, policy=Asha(9),
    per_trial=PerTrial(gpus=0, cpus=1), quick={"trials": 2, "asha.max_epochs": 3}, checkpoint_every_s=0.0,
)
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "toy_study.py"
    path.write_text(BODY)
    return path


def typed(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(command, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def start(study: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, "-m", "hpo.run", str(study), *words]
    return subprocess.Popen(
        command, cwd=study.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--set", "x"), "error: --set: 'x' is not NAME=VALUE"),
            (("--set", "y=1"), "--set: y: nobody takes it"),
            (("--concurrent", "auto", "--set", "per_trial.gpus=2"), '--concurrent: "auto" finds how many'),
            (("--set", "per_trial.gpus=1.5"), "per_trial.gpus: 1.5 is neither whole nor below 1"),
        ],
    )
    def test_are_shown_without_a_traceback_and_end_with_2(
        self, study: Path, tmp_path: Path, words: tuple[str, ...], message: str
    ) -> None:
        code, out, err = typed(study, *words, "--results", tmp_path / "results")
        assert code == 2
        assert message in err
        assert "Traceback" not in out + err
        assert not (tmp_path / "results").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--set", "per_trial.cpus=4000"), "per_trial.cpus: 4000 is more than the"),
            (("--set", "per_trial.gpus=2", "--gpus", "1"), "per_trial.gpus: 2 is more than the 1 that there are"),
        ],
    )
    def test_of_resources_come_before_ray_starts(self, study: Path, words: tuple[str, ...], message: str) -> None:
        done = start(study, *words)
        out, _ = done.communicate(timeout=60)
        assert done.returncode == 2
        assert message in out
        assert "Traceback" not in out
        assert not (study.parent / "results").exists()

    def test_of_the_file_name_it(self, study: Path) -> None:
        study.write_text(BODY.replace('Maximize("score")', 'Maximize("accuracy")'))
        code, _, err = typed(study)
        assert code == 2
        assert f"{study}: goal: Toy does not report 'accuracy'" in err
        assert "it reports: score, loss" in err

    def test_of_missing_data(self, study: Path, tmp_path: Path) -> None:
        code, _, err = typed(study, "--data-dir", tmp_path / "nowhere", "--dry-run")
        assert code == 2
        assert "there is no toy.txt" in err


class TestSettings:
    def test_are_numbers_literals_or_text(self) -> None:
        assert parse_settings(("a=1", "b=1e-3", "c=adam", "d=[1, 2]", "e=true", "f=(1, 2)", "g=None", "h=x=y")) == {
            "a": 1,
            "b": 1e-3,
            "c": "adam",
            "d": [1, 2],
            "e": True,
            "f": (1, 2),
            "g": None,
            "h": "x=y",
        }

    def test_without_a_name(self) -> None:
        with pytest.raises(ExperimentError, match=r"'=1' is not NAME=VALUE"):
            parse_settings(("=1",))


class TestDryRun:
    def test_says_what_would_be_done_and_does_nothing(self, study: Path, tmp_path: Path) -> None:
        code, out, _ = typed(study, "--dry-run", "--results", tmp_path / "results", "--set", "say=hi")
        assert code == 0
        assert "6 trials reach epoch 1" in out
        assert "54 with no stopping" in out
        assert "checkpoints: up to 0.0 MiB each, 5 kept" in out
        assert '"say": "hi"' in out
        assert not (tmp_path / "results").exists()

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (("--cpus", "6"), "each trial gets 1 CPU core; 6 at a time"),
            (("--cpus", "6", "--concurrent", "2"), "each trial gets 1 CPU core; 2 at a time"),
            (("--cpus", "6", "--set", "concurrent=3"), "each trial gets 1 CPU core; 3 at a time"),
            (("--cpus", "6", "--concurrent", "auto"), "each trial gets 1 CPU core; 6 at a time"),
            (
                ("--cpus", "8", "--gpus", "2", "--set", "per_trial.gpus=0.25"),
                "each trial gets 1 CPU core and 0.25 of a GPU; 8 at a time",
            ),
            (
                ("--cpus", "8", "--gpus", "2", "--set", "per_trial.gpus=1", "--concurrent", "auto"),
                "each trial begins with 1 CPU core and 1 GPU; 2 at a time, and more as far as measuring finds them",
            ),
            (("--address", "x:1", "--set", "per_trial.gpus=1"), "1 CPU core and 1 GPU; the cluster says how many fit"),
        ],
    )
    def test_says_what_each_trial_gets(
        self, study: Path, words: tuple[str, ...], line: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Other tests leave a Ray in this process, which the command, in a process of its own, would not find.
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        code, out, err = typed(study, "--dry-run", *words)
        assert code == 0, err
        assert line in out

    @pytest.mark.parametrize("value", ["0", "many", "-1"])
    def test_concurrent_is_a_number_or_auto(self, study: Path, value: str) -> None:
        code, _, err = typed(study, "--dry-run", "--concurrent", value)
        assert code == 2
        assert "Invalid value for '--concurrent'" in err

    def test_quick_is_applied(self, study: Path) -> None:
        _, out, _ = typed(study, "--dry-run", "--quick")
        assert "2 trials reach epoch 1" in out
        assert "(quick)" in out


@pytest.mark.integration
class TestRuns:
    def test_modules_beside_the_file_are_brought_to_the_workers(self, study: Path) -> None:
        (study.parent / "beside_toy.py").write_text("print('imported from', __file__)\nPOLICY_EPOCHS = 2\n")
        text = "from beside_toy import POLICY_EPOCHS\n" + BODY.replace("Asha(9)", "NoStopping(POLICY_EPOCHS)")
        study.write_text(text.replace(', "asha.max_epochs": 3', ""))
        driver = start(study, "--cpus", "1", "--trials", "1")
        out, _ = driver.communicate(timeout=120)
        assert driver.returncode == 0, out
        [log] = (study.parent / "results").rglob("trial-00000.log")
        assert "hpo-code-" in log.read_text()  # a copy: an edit does not reach a run that goes on

    def test_to_the_end_and_says_what_came_out(self, study: Path) -> None:
        driver = start(study, "--test")
        out, _ = driver.communicate(timeout=120)
        assert driver.returncode == 0, out
        assert "toy_study run 2" in out
        assert "best of toy_study" in out
        assert "of 6 trials" in out
        assert "test_score of the best trial: 9" in out
        assert "next: hpo best toy_study" in out
        assert "Traceback" not in out

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(self, study: Path, how: signal.Signals) -> None:
        slow = ("--set", "sleep_s=0.4", "--set", "asha.grace=9", "--trials", "8")
        driver = start(study, *slow)
        assert driver.stdout is not None
        for line in driver.stdout:
            if "completed: all" in line:
                break
        driver.send_signal(how)
        out, _ = driver.communicate(timeout=120)
        assert driver.returncode == 130, out
        assert "interrupted; go on with: python -m hpo.run" in out
        again = start(study, *slow)
        out, _ = again.communicate(timeout=120)
        assert again.returncode == 0, out
        assert "goes on" in out

    def test_a_trial_that_takes_all_memory_fails_alone_and_by_name(
        self, study: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = psutil.virtual_memory()
        if memory.available < 6 * 2**30:
            pytest.skip(f"6 GiB of free memory are needed, {memory.available / 2**30:.1f} are there")
        limit = (memory.total - memory.available + 3 * 2**30) / memory.total
        monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.3f}")
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
        space = '{"x": uniform(0.0, 1.0), "eat_at": grid(0, 2)}'
        study.write_text(BODY.replace('{"x": uniform(0.0, 1.0)}', space).replace("Asha(9)", "Asha(3, grace=3)"))
        driver = start(study, "--cpus", "2", "--set", "max_failures=0", "--trials", "4", "--concurrent", "1")
        out, _ = driver.communicate(timeout=240)
        assert driver.returncode == 0, out
        rows = Store(study.parent / "results").sql("SELECT hp_eat_at, state, cause FROM trials").to_pylist()
        ate = {(row["state"], row["cause"]) for row in rows if row["hp_eat_at"]}
        assert ate == {("failed", "out_of_memory")}
        assert {row["state"] for row in rows if not row["hp_eat_at"]} == {"completed"}

    def test_a_second_ctrl_c_stops_at_once(self, study: Path) -> None:
        driver = start(study, "--set", "sleep_s=60")
        assert driver.stdout is not None
        next(iter(driver.stdout))
        until = time.monotonic() + 60
        while len(list(study.parent.rglob("trial-0000[01].log"))) < 2 and time.monotonic() < until:
            time.sleep(0.2)  # until both of its processes train
        driver.send_signal(signal.SIGINT)
        time.sleep(1)
        began = time.monotonic()
        driver.send_signal(signal.SIGINT)
        out, _ = driver.communicate(timeout=120)
        assert driver.returncode == 130, out
        assert "stopped at once; go on with" in out
        assert time.monotonic() - began < 55  # the steps in progress take 60 s: nobody waited for them
