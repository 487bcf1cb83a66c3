from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.training.learning_rate import LearningRate
from hpo.training.schedules import FORMULAS, Formula, Plateau
from hpo.training.settings import ChunkSettings, LoopSettings


def rates(name: str = "constant", *, epochs: int = 4, batches: int = 5, lr: float = 1.0, **loop: Any) -> list[float]:
    rate = LearningRate(Formula(FORMULAS[name]), LoopSettings(**loop), epochs=epochs)
    return [value for epoch in range(epochs) for value in rate.of_epoch(lr, epoch, num_batches=batches)]


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
    seen = LearningRate(Formula(FORMULAS["exponential"], gamma=0.5), LoopSettings(schedule_every="epoch"), epochs=None)
    assert [seen.of_epoch(1.0, epoch, num_batches=9) for epoch in range(3)] == [[1.0], [0.5], [0.25]]


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
    rate = LearningRate(Formula(FORMULAS["constant"]), LoopSettings(epochs_ending=1.0), epochs=None)
    with pytest.raises(ExperimentError, match="how many epochs a trial trains"):
        rate.of_epoch(1.0, 0, num_batches=3)


def test_a_plateau_goes_on_from_its_state() -> None:
    def begun() -> LearningRate:
        schedule = Plateau("min", scheduler_factor=0.5, scheduler_patience=0)
        return LearningRate(schedule, LoopSettings(), epochs=None)

    first, second = begun(), begun()
    for value in (1.0, 1.0, 0.5, 0.5):
        first.measured(value)
    second.restore(first.state())
    assert first.of_epoch(1.0, 4, num_batches=1) == second.of_epoch(1.0, 4, num_batches=1) == [0.25]
    for rate in (first, second):
        rate.measured(0.5)
    assert first.of_epoch(1.0, 5, num_batches=1) == second.of_epoch(1.0, 5, num_batches=1) == [0.125]


def of_all_epochs(num_batches: list[int], **settings: Any) -> list[list[float]]:
    """Rates of a cosine with half an epoch of warm-up over chunks, whose epochs have so many batches."""
    chunks = ChunkSettings(**settings)
    rate = LearningRate(
        Formula(FORMULAS["cosine"]), LoopSettings(epochs_warmup=0.5), epochs=len(num_batches), chunks=chunks
    )
    return [rate.of_epoch(2.0, epoch, num_batches=num) for epoch, num in enumerate(num_batches)]


def cosine_after_warm_up(time: float, warmup: float, span: float, *, per_epoch: int) -> float:
    """By hand: the batch at `time`, in epochs, of a rise over `warmup` and half a cosine over the rest of `span`."""
    if time < warmup - 1e-9:
        return (round(time * per_epoch) + 1) / (round(warmup * per_epoch) + 1)
    return (1 + math.cos(math.pi * (time - warmup) / (span - warmup))) / 2


@given(decay=st.floats(0.1, 2), per_chunk=st.integers(1, 3), halves=st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_each_chunk_warms_up_anew_and_decays(decay: float, per_chunk: int, halves: list[int]) -> None:
    num_batches = [2 * half for half in halves for _ in range(per_chunk)]
    seen = of_all_epochs(num_batches, epochs_per_chunk=per_chunk, chunk_lr_decay=decay)
    for epoch, num in enumerate(num_batches):
        chunk, within = divmod(epoch, per_chunk)
        expected = [
            2.0 * decay**chunk * cosine_after_warm_up(within + batch / num, 0.5, per_chunk, per_epoch=num)
            for batch in range(num)
        ]
        assert seen[epoch] == pytest.approx(expected)


def test_without_rewarming_one_schedule_runs_over_chunks_of_any_size() -> None:
    num_batches = [4, 4, 10, 10, 2, 2]
    seen = of_all_epochs(num_batches, epochs_per_chunk=2, chunk_lr_decay=0.5, chunk_rewarm=False)
    for epoch, num in enumerate(num_batches):
        expected = [
            2.0 * 0.5 ** (epoch // 2) * cosine_after_warm_up(epoch + batch / num, 0.5, 6.0, per_epoch=num)
            for batch in range(num)
        ]
        assert seen[epoch] == pytest.approx(expected)


def test_the_rates_of_some_batches_are_those_of_the_epoch() -> None:
    rate = LearningRate(Formula(FORMULAS["cosine"]), LoopSettings(epochs_warmup=1.5, epochs_ending=1.0), epochs=4)
    for epoch in range(4):
        whole = rate.of_epoch(1.0, epoch, num_batches=7)
        parts = [rate.of_epoch(1.0, epoch, num_batches=7, batches=part) for part in (range(3), range(3, 7))]
        assert parts[0] + parts[1] == whole
