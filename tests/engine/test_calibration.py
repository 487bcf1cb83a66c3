"""How many trials a GPU bears: the measurement, the choice, and its words; no Ray, no clock."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.engine.calibration import (
    LEAST_GAIN,
    LEAST_S,
    Calibration,
    Choice,
    Measured,
    Window,
    repays,
    why_no_more,
)
from hpo.protocols import Step

PLACES = {1: 1, 2: 2, 4: 4, 8: 8}


def step(*, samples: int = 100, memory_mb: float | None = None, total_mb: float | None = None) -> Step:
    return Step({"score": 0.0}, 1, samples, device_memory_mb=memory_mb, device_memory_total_mb=total_mb)


def measured(number: int, rate: float, **settings: Any) -> Measured:
    fields = {"epochs_per_s": rate / 100, "memory_mb": None, "memory_total_mb": None, "start_s": 1.0}
    return Measured(number, rate, **{**fields, **settings})


def train(calibration: Calibration, rates: Mapping[int, float], *, start_s: float = 1.0, **kind: Any) -> float:
    """Train steps of 100 samples at the total rates until the calibration has settled; returns when it has."""
    now, begun = 0.0, 0
    while not calibration.settled:
        number, places = calibration.trials_per_gpu, calibration.slots
        step_s = 100 * places / rates[number]
        ends = [(now + start_s * (1 + 0.1 * place) + step_s, place) for place in range(places)]
        heapq.heapify(ends)
        while not calibration.moving and not calibration.settled:
            now, place = heapq.heappop(ends)
            calibration.stepped((begun, place), step(**kind), at=now)
            heapq.heappush(ends, (now + step_s, place))
        begun += 1
        if calibration.moving:
            calibration.move(at=now)
    return now


class TestWindow:
    def test_the_first_step_of_each_process_does_not_count_nor_what_ran_while_others_started(self) -> None:
        window = Window(places=2)
        window.stepped("a", at=1.0, samples=10)
        window.stepped("a", at=2.0, samples=10)  # alone, and so faster
        window.stepped("b", at=5.0, samples=10)
        window.stepped("a", at=6.0, samples=10)  # begun while it was alone
        window.stepped("a", at=8.0, samples=20)
        window.stepped("b", at=7.0, samples=10)
        assert window.warm_at == 5.0
        assert window.whole
        assert window.samples_per_s == pytest.approx(20 / 2 + 10 / 2)
        assert window.epochs_per_s == pytest.approx(1 / 2 + 1 / 2)

    def test_short_steps_are_gathered_until_they_are_long_enough(self) -> None:
        window = Window(places=1)
        for tick in range(20):
            assert not window.whole
            window.stepped("a", at=tick / 10, samples=1)
        window.stepped("a", at=LEAST_S, samples=1)
        assert window.whole
        assert window.samples_per_s == pytest.approx(10)

    def test_time_between_steps_counts(self) -> None:
        window = Window(places=1)
        for at in (0.0, 1.0, 5.0):
            window.stepped("a", at=at, samples=10)
        assert window.samples_per_s == pytest.approx(20 / 5)

    def test_a_process_that_was_replaced_is_not_counted_twice(self) -> None:
        window = Window(places=2)
        for at in (0.0, 1.0, 3.0):
            window.stepped("a", at=at, samples=30)
            window.stepped("old", at=at, samples=30)
        window.stepped("new", at=4.0, samples=30)
        window.stepped("new", at=5.0, samples=30)
        window.stepped("new", at=8.0, samples=60)
        assert window.samples_per_s == pytest.approx(2 * (15 + 20 + 20) / 3)


class TestNoMore:
    def test_after_a_small_gain(self) -> None:
        why = why_no_more([measured(1, 100), measured(2, 105)], (1, 2, 4), epochs_left=1e9)
        assert why == "2 train 105% of what 1 do"

    def test_after_the_last_number(self) -> None:
        assert "cores or trials for more are not there" in why_no_more([measured(4, 100)], (4,), epochs_left=1e9)

    def test_that_do_not_fit_into_memory(self) -> None:
        full = measured(1, 100, memory_mb=50_000, memory_total_mb=100_000)
        assert why_no_more([full], (1, 2), epochs_left=1e9) == "2 would need 98.6 of its 97.7 GiB"
        small = measured(1, 100, memory_mb=40_000, memory_total_mb=100_000)
        assert not why_no_more([small], (1, 2), epochs_left=1e9)

    def test_when_too_little_is_left(self) -> None:
        # One epoch a second: 10 % of 22 s are the two starts of 1 s.
        assert not why_no_more([measured(1, 100)], (1, 2), epochs_left=23)
        why = why_no_more([measured(1, 100)], (1, 2), epochs_left=21)
        assert why == "about 21 s are left, too few to repay the start of 2"

    @given(st.floats(0.1, 1e3), st.floats(1.01, 10), st.integers(1, 3), st.floats(0, 1e6))
    def test_repaying_is_the_time_saved(self, start_s: float, gain: float, starts: int, left: float) -> None:
        now = measured(1, 100, start_s=start_s)
        saved = left - left / gain - starts * start_s
        assert repays(now, gain=gain, starts=starts, epochs_left=left) == (saved > 0) or abs(saved) < 1e-6 * left


class TestCalibration:
    def test_tries_twice_as_many_until_the_gain_is_small(self) -> None:
        calibration = Calibration(PLACES, epochs_left=lambda: 1e6, at=0.0)
        train(calibration, {1: 100, 2: 190, 4: 300, 8: 310}, memory_mb=100, total_mb=1e5)
        assert calibration.choice is not None
        assert [one.trials_per_gpu for one in calibration.choice.measured] == [1, 2, 4, 8]
        rates = [one.samples_per_s for one in calibration.choice.measured]
        assert rates == pytest.approx([100, 190, 300, 310])
        assert calibration.choice.trials_per_gpu == calibration.trials_per_gpu == 8

    def test_goes_back_where_more_are_slower(self) -> None:
        calibration = Calibration(PLACES, epochs_left=lambda: 1e6, at=0.0)
        train(calibration, {1: 100, 2: 190, 4: 100})
        assert calibration.choice is not None
        assert calibration.choice.trials_per_gpu == calibration.trials_per_gpu == 2

    def test_does_not_go_back_where_that_does_not_repay(self) -> None:
        left = iter([1e6, 1e6, 2.0])
        calibration = Calibration(PLACES, epochs_left=lambda: next(left), at=0.0)
        train(calibration, {1: 100, 2: 190, 4: 180})
        assert calibration.choice is not None
        assert calibration.choice.trials_per_gpu == 4

    def test_a_short_study_keeps_what_it_began_with(self) -> None:
        calibration = Calibration(PLACES, epochs_left=lambda: 3.0, at=0.0)
        train(calibration, {1: 100})
        assert calibration.choice is not None
        assert calibration.choice.sentence() == (
            "1 trial a GPU: 100 samples/s (about 3 s are left, too few to repay the start of 2)"
        )

    def test_replacing_processes_costs_their_start_and_a_step(self) -> None:
        calibration = Calibration(PLACES, epochs_left=lambda: 0.0, at=0.0)
        train(calibration, {1: 1}, start_s=3.0)  # steps of 100 s
        assert calibration.choice is not None
        assert calibration.choice.measured[0].start_s == pytest.approx(103.0)

    def test_epochs_are_compared_where_samples_are_not_counted(self) -> None:
        calibration = Calibration({1: 1}, epochs_left=lambda: 1e6, at=0.0)
        train(calibration, {1: 200}, samples=0)
        assert calibration.choice is not None
        assert calibration.choice.sentence().startswith("1 trial a GPU: 2 epochs/s")

    @given(
        rates=st.lists(st.floats(10, 1000), min_size=4, max_size=4),
        memory=st.floats(10, 5_000),
        left=st.floats(0, 1e5),
        start_s=st.floats(0.1, 30),
    )
    def test_laws(self, rates: list[float], memory: float, left: float, start_s: float) -> None:
        """Numbers are tried in their order, each after a gain that was large enough and within the memory; what is
        kept is the fastest, or what there is where going back costs more than it gains."""
        total = 10_000.0
        calibration = Calibration(PLACES, epochs_left=lambda: left, at=0.0)
        train(calibration, dict(zip(PLACES, rates, strict=True)), start_s=start_s, memory_mb=memory, total_mb=total)
        choice = calibration.choice
        assert choice is not None
        tried = [one.trials_per_gpu for one in choice.measured]
        assert tried == list(PLACES)[: len(tried)]
        for before, after in zip(choice.measured[:-1], choice.measured[1:-1], strict=False):
            assert after.rate >= LEAST_GAIN * before.rate
        assert len(tried) == 1 or tried[-1] * (memory + 500) <= 0.9 * total
        best, last = max(choice.measured, key=lambda one: one.rate), choice.measured[-1]
        assert choice.trials_per_gpu in (best.trials_per_gpu, last.trials_per_gpu)
        if choice.trials_per_gpu != best.trials_per_gpu:
            assert not repays(last, gain=best.rate / last.rate, starts=1, epochs_left=left)


class TestFailures:
    def two(self) -> Calibration:
        """A calibration that has just gone from one trial to two."""
        calibration = Calibration(PLACES, epochs_left=lambda: 1e6, at=0.0)
        now = 0.0
        while not calibration.moving:
            now += 1.0
            calibration.stepped("a", step(), at=now)
        calibration.move(at=now)
        return calibration

    def test_out_of_memory_ends_the_search_at_the_number_below(self) -> None:
        calibration = self.two()
        assert calibration.failed(out_of_memory=True)
        assert calibration.choice is not None
        assert calibration.choice.trials_per_gpu == 1
        assert calibration.choice.why == "2 do not fit into its memory"
        assert calibration.moving
        assert calibration.failed(out_of_memory=True)  # the neighbour, before it is put off
        calibration.move(at=9.0)
        assert calibration.settled
        assert not calibration.failed(out_of_memory=True)  # from now on it is the trial's own

    def test_of_a_trial_that_is_alone_on_its_gpu_are_its_own(self) -> None:
        calibration = Calibration(PLACES, epochs_left=lambda: 1e6, at=0.0)
        assert not calibration.failed(out_of_memory=True)
        assert calibration.choice is None

    def test_out_of_memory_while_the_next_number_is_waited_for(self) -> None:
        calibration = self.two()
        for at in range(10):
            calibration.stepped("a", step(), at=10.0 + at)
            calibration.stepped("b", step(), at=10.0 + at)
        assert calibration.next_number == 4
        assert calibration.failed(out_of_memory=True)
        assert calibration.next_number == 1

    def test_any_other_starts_the_measurement_over(self) -> None:
        calibration = Calibration(PLACES, epochs_left=lambda: 1e6, at=0.0)
        calibration.stepped("a", step(), at=0.0)
        assert not calibration.failed(out_of_memory=False)
        calibration.stepped("b", step(), at=10.0)
        assert not calibration.moving
        calibration.stepped("b", step(), at=10.0 + LEAST_S)
        assert calibration.moving


class TestWords:
    def test_say_what_was_compared(self) -> None:
        many = measured(4, 36_600, memory_mb=3277, memory_total_mb=139 * 1024)
        choice = Choice(4, "8 train 103% of what 4 do", (measured(1, 21_600), many))
        assert choice.sentence() == (
            "4 trials a GPU: 36,600 samples/s against 21,600 with 1; 3.2 of 139 GiB each (8 train 103% of what 4 do)"
        )

    def test_detail_is_json(self) -> None:
        choice = Choice(1, "because", (measured(1, 5.0),))
        assert json.loads(json.dumps(choice.detail()))["measured"][0]["samples_per_s"] == 5.0
