from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hpo.cli import main
from hpo.commands.plot_schedule import picture

STUDY = """
from hpo import *
from tests.training.line import LineFit
experiment = Experiment(
    task=LineFit(), space={"lr": loguniform(1e-3, 1e-1)}, fixed={"batch_size": 8, "lr_schedule": "cosine"},
    goal=Minimize("val_loss"), trials=3, policy=Asha(4),
)
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.py"
    path.write_text(STUDY)
    return path


def plot(study: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["plot-schedule", str(study), *options])


def test_it_draws_the_rate_of_a_trial(study: Path) -> None:
    shown = plot(study, "--trial", "1", "--set", "epochs_warmup=1")
    assert shown.exit_code == 0, shown.output
    first, *lines = shown.output.splitlines()
    assert first.startswith("trial 1: lr=0.0")
    assert first.endswith("lr_schedule=cosine  epochs_warmup=1")
    assert len(lines) == 16
    assert lines[-1].strip().startswith("0 … 4 epochs, the rate set ")


def test_trials_differ_as_the_search_draws_them(study: Path) -> None:
    assert plot(study, "--trial", "0").output != plot(study, "--trial", "1").output
    assert plot(study, "--trial", "2").output == plot(study, "--trial", "2").output


def test_the_rates_are_written(study: Path, tmp_path: Path) -> None:
    plot(study, "--csv", str(tmp_path / "rates.csv"), "--set", "lr=0.1", "--set", "schedule_every=epoch")
    with (tmp_path / "rates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("number", ["3", "-1"])
def test_a_trial_that_there_is_not(study: Path, number: str) -> None:
    shown = plot(study, "--trial", number)
    assert shown.exit_code == 2
    assert f"there is no trial {number}" in shown.output
    assert "give --trial 0 to 2" in shown.output


def test_a_column_is_as_high_as_its_rate() -> None:
    assert picture([1.0, 0.5, 0.25, 0.0], width=4, height=2).splitlines() == [
        " 1.00e+00 ┤█",
        " 5.00e-01 ┤██▄",
        "        0 ┼────",
    ]
