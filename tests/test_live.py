"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpo import NoStopping
from hpo.engine.checkpoints import CheckpointKeeper
from hpo.engine.desk import ATTEMPTS_IN_VAIN, Desk
from hpo.engine.progress import progress_of
from hpo.engine.study import Study
from hpo.engine.worker import Trained
from hpo.experiment_file import ExperimentFile
from hpo.live import LiveView, PlainView, seconds, view
from hpo.protocols import Dataset
from tests.engine.loose import LOOSE_FILES
from tests.engine.test_study import Notes, experiment, step


@dataclass
class Opened:
    """As much of a run as a view looks at."""

    file: ExperimentFile
    study: Study
    dataset: Dataset = field(default_factory=lambda: Dataset("toy", "f"))
    notes: list[str] = field(default_factory=lambda: ["look here"])
    resumed: bool = False
    paths: Any = field(default_factory=lambda: type("P", (), {"run_id": "run-1"}))


def begun(*, plain: bool, quick: bool = False) -> tuple[Any, Desk, io.StringIO]:
    made = experiment(policy=NoStopping(4), trials=3, quick={"trials": 1})
    notes = Notes()
    study = Study(made, notes)
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=not plain)
    seen = PlainView(console, every_s=0) if plain else LiveView(console, every_s=0)
    keeper = CheckpointKeeper(study, LOOSE_FILES, appended=lambda: 0, kept=lambda: 0)
    desk = Desk(study, keeper, seen, num_gpus=0, stop_request=Path("/nowhere"))
    seen.begins(Opened(ExperimentFile(Path("x.py"), "x.py", made, quick), study))
    return seen, desk, out


def train(desk: Desk, score: float, *, epochs: int = 4) -> None:
    lease = desk.lease()
    assert lease is not None
    desk.training.add((lease.trial, lease.attempt))
    for epoch in range(1, epochs + 1):
        if not desk.report(lease, Trained(epoch, step(score, epoch), 60.0, "node", 1)):
            desk.training.discard((lease.trial, lease.attempt))


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.2, "8 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 05 min"), (None, "?"), (math.inf, "?")],
)
def test_durations(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_plain_lines_where_the_output_is_no_terminal() -> None:
    seen, desk, out = begun(plain=True)
    train(desk, 0.5)
    seen.round(desk)
    text = out.getvalue()
    assert "run run-1 begins on toy" in text
    assert "! look here" in text
    assert "trial 0 completed: all 4 epochs trained" in text
    assert "1 completed, 2 waiting of 3" in text
    assert "0.5 (trial 0, step 1)  x=" in text
    assert "\x1b[" not in text


def test_without_a_gpu_the_whole_study_is_timed_and_quick_is_named() -> None:
    seen, desk, out = begun(plain=True)
    train(desk, 0.5)
    seen.round(desk)
    assert "likely to take 12 min 00 s (1 min 00 s an epoch, 1 at a time); --quick asks" in out.getvalue()


def test_a_quick_study_is_not_warned_about() -> None:
    seen, desk, out = begun(plain=True, quick=True)
    train(desk, 0.5)
    seen.round(desk)
    assert "--quick" not in out.getvalue()


def test_the_table_of_a_terminal() -> None:
    seen, desk, _ = begun(plain=False)
    train(desk, 0.5)
    train(desk, 0.7, epochs=2)
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(seen.picture(progress_of(desk, seen._plan, now=desk.began + 10)))
    text = console.export_text()
    assert "1 running, 1 completed, 1 waiting of 3" in text
    assert "6 of about 12, 0.6 epochs/s" in text
    assert "0.7 (trial 1, step 1)" in text
    assert "50% about 10 s left" in text
    assert "trial 0 completed" in text


def test_steps_that_are_parts_of_an_epoch_are_called_steps() -> None:
    seen, desk, out = begun(plain=True)
    lease = desk.lease()
    assert lease is not None
    desk.report(lease, Trained(1, replace(step(0.5, 1), num_epochs=0), 60.0, "node", 1))
    seen.round(desk)
    assert " steps/s" in out.getvalue()


def test_a_trial_without_a_place_waits() -> None:
    seen, desk, out = begun(plain=True)
    desk.lease()
    seen.round(desk)
    assert "3 waiting of 3" in out.getvalue()


def test_the_view_fits_the_output() -> None:
    assert isinstance(view(Console(file=io.StringIO())), PlainView)
    assert isinstance(view(Console(file=io.StringIO(), force_terminal=True)), LiveView)


def test_a_run_that_never_gets_through_a_step_gives_up() -> None:
    _, desk, out = begun(plain=True)
    for _ in range(ATTEMPTS_IN_VAIN):
        lease = desk.lease()
        assert lease is not None
        assert not desk.closing
        desk.failed(lease, cause="error", message="ImportError: no module", trace="")
    assert desk.closing
    assert "none of the first 6 attempts got through a step; that of trial 2: ImportError: no module" in out.getvalue()
