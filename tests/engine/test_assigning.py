"""What a process is told of the weights that its trial begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpo import Best
from hpo.engine.assigning import Assigning
from hpo.engine.origins import Origin
from hpo.engine.trials import Checkpoint, Lease
from hpo.errors import ExperimentError
from tests.engine.test_final_test import SETTING
from tests.engine.test_origins import opened, run, starting  # noqa: F401 - a fixture
from tests.engine.test_study import step


@pytest.fixture
def told(run: Callable[..., str], tmp_path: Path) -> Callable[..., object]:  # noqa: F811
    """What the process of a trial with that value of `start_from` is told."""
    run("a", 0.5)
    begun = opened(tmp_path, starting(None, Best("a"), "trial:0"))
    begun.store.close()
    begun.study.record = lambda *_, **__: None
    lease = begun.study.lease()
    assert lease is not None
    begun.study.report(0, 1, step(0.5))
    begun.study.checkpointed(0, Checkpoint("checkpoints/a.pt", 1, 1, 7))
    assigning = Assigning(begun, tmp_path / "child.py", SETTING)

    def tell(value: str | None, *, trial: int = 1, checkpoint: Checkpoint | None = None) -> object:
        config = {"x": 0.5, "start_from": value}
        told: Lease = replace(lease, trial=trial, config=config, checkpoint=checkpoint)
        return assigning(told)["assignment"].start

    return tell


def test_the_file_and_whose_it_is(told: Callable[..., object], tmp_path: Path) -> None:
    of_another = told(Best("a"))
    assert isinstance(of_another, Origin)
    assert Path(of_another.weights).is_file()
    of_this = told("trial:0")
    assert isinstance(of_this, Origin)
    assert of_this.trial == 0
    assert of_this.weights.endswith("/checkpoints/a.pt")
    assert told(None) is None


def test_nothing_where_it_goes_on_from_a_checkpoint(told: Callable[..., object]) -> None:
    assert told(Best("a"), checkpoint=Checkpoint("b.pt", 1, 1, 7)) is None


def test_why_there_are_none(told: Callable[..., object]) -> None:
    for value, trial, problem in (
        ("trial:0", 0, "which is not an earlier one"),
        ("trial:3", 5, "which has no checkpoint"),
        (Best("b"), 1, "there is no run of an experiment 'b'"),  # a search of one's own may propose what it likes
    ):
        error = told(value, trial=trial)
        assert isinstance(error, ExperimentError)
        assert problem in error.problem
