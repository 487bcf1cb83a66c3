from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.training.learning_rate import LearningRate
from hpo.training.schedules import FORMULAS, Formula, Plateau
from hpo.training.settings import LoopSettings


def rates(name: str = "constant", *, epochs: int = 4, batches: int = 5, lr: float = 1.0, **loop: Any) -> list[float]:
    rate = LearningRate(Formula(FORMULAS[name]), LoopSettings(**loop), epochs=epochs, num_batches=batches)
    return [value for epoch in range(epochs) for value in rate.of_epoch(lr, epoch)]


def test_constant_without_phases() -> None:
    assert rates() == [1.0] * 20


def test_the_warm_up_rises_in_equal_steps_to_where_the_schedule_begins() -> None:
    seen = rates("cosine", epochs_warmup=0.8)
    assert seen[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert seen[5] < 1.0


def test_the_ending_falls_from_where_the_schedule_ended() -> None:
    seen = rates(epochs_ending=0.8)
    assert seen[:16] == [1.0] * 16
    assert seen[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_the_schedule_has_what_the_phases_leave() -> None:
    seen = rates("cosine", epochs_warmup=1.0, epochs_ending=1.0)
    without = rates("cosine", epochs=2)
    assert seen[5:15] == pytest.approx(without)
    assert seen[15:] == pytest.approx([0.0] * 5, abs=1e-9)


def test_a_rate_for_each_epoch() -> None:
    seen = LearningRate(
        Formula(FORMULAS["exponential"], gamma=0.5), LoopSettings(schedule_every="epoch"), epochs=None, num_batches=9
    )
    assert [seen.of_epoch(1.0, epoch) for epoch in range(3)] == [[1.0], [0.5], [0.25]]


@pytest.mark.parametrize(("how", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_follows_the_batch_size(how: str, factor: float) -> None:
    assert rates(lr_scaling=how, batch_size=1024, base_batch_size=256, lr=0.1)[0] == pytest.approx(0.1 * factor)


@given(
    warmup=st.floats(0, 2),
    ending=st.floats(0, 1.9),
    name=st.sampled_from(["constant", "cosine", "polynomial", "onecycle", "exponential"]),
    batches=st.integers(1, 9),
)
def test_rates_are_positive_up_to_lr(warmup: float, ending: float, name: str, batches: int) -> None:
    seen = rates(name, batches=batches, epochs_warmup=warmup, epochs_ending=ending)
    assert len(seen) == 4 * batches
    assert all(0 <= rate <= 1 + 1e-9 for rate in seen)


def test_phases_longer_than_the_trial_are_refused() -> None:
    with pytest.raises(ExperimentError, match="leave no epoch to it"):
        rates(epochs_warmup=3.0, epochs_ending=1.0)


def test_an_ending_has_to_know_when() -> None:
    with pytest.raises(ExperimentError, match="how many epochs a trial trains"):
        LearningRate(Formula(FORMULAS["constant"]), LoopSettings(epochs_ending=1.0), epochs=None, num_batches=3)


def test_a_plateau_goes_on_from_its_state() -> None:
    def begun() -> LearningRate:
        schedule = Plateau("min", scheduler_factor=0.5, scheduler_patience=0)
        return LearningRate(schedule, LoopSettings(), epochs=None, num_batches=1)

    first, second = begun(), begun()
    for value in (1.0, 1.0, 0.5, 0.5):
        first.measured(value)
    second.restore(first.state())
    assert first.of_epoch(1.0, 4) == second.of_epoch(1.0, 4) == [0.25]
    for rate in (first, second):
        rate.measured(0.5)
    assert first.of_epoch(1.0, 5) == second.of_epoch(1.0, 5) == [0.125]
