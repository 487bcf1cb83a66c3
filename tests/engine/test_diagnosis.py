"""Each diagnosis on curves drawn for it, beside ones that are close to it; and that a course names each once."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.engine.diagnosis import EXPLODED, WINDOW, Course, Diagnosis

LOSSES = st.one_of(st.floats(-10, 10), st.sampled_from([math.nan, math.inf, 0.0, 1e30]))
CURVES = st.lists(st.tuples(LOSSES, LOSSES, LOSSES, LOSSES), max_size=30)


def named(
    train: Sequence[float] = (),
    val: Sequence[float] = (),
    scores: Sequence[float] | None = None,
    **metrics: Sequence[float],
) -> dict[str, tuple[int, Diagnosis]]:
    """The step at which each name was given; the score is the validation loss turned round if none is told."""
    told = {"train_loss": train, "val_loss": val, **{name.replace("__", "."): curve for name, curve in metrics.items()}}
    course, found = Course(), dict[str, tuple[int, Diagnosis]]()
    for index in range(max(map(len, (*told.values(), scores or ())))):
        point = {name: curve[index] for name, curve in told.items() if curve}
        score = scores[index] if scores else -point.get("val_loss", point.get("train_loss", 0.0))
        for one in course.report(index + 1, score, point):
            assert one.name not in found
            found[one.name] = (index + 1, one)
    return found


def falling(num: int, *, to: float = 0.1, half: float = 4.0) -> list[float]:
    return [to + 2.3 * 0.5 ** (step / half) for step in range(num)]


@pytest.mark.parametrize("seed", range(5))
def test_a_training_that_goes_well_has_no_name(seed: int) -> None:
    dice = random.Random(seed)
    train = [loss * dice.uniform(0.95, 1.05) for loss in falling(16)]
    val = [(loss + 0.1) * dice.uniform(0.97, 1.03) for loss in falling(16)]
    norms = [dice.uniform(0.5, 2.0) for _ in train]
    assert not named(train, val, grad_norm=norms, grad_norm__first=[norm / 100 for norm in norms])


class TestDiverging:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["train_loss", "val_loss"])
    def test_is_what_is_not_finite(self, name: str, value: float) -> None:
        curves = {"train_loss": [2.0, 1.0], "val_loss": [2.0, 1.1]}
        curves[name][1] = value
        found = named(curves["train_loss"], curves["val_loss"], scores=[0.1, 0.2])
        step, diagnosis = found["diverges"]
        assert step == 2
        assert diagnosis.sentence == f"{name} is {value} at step 2"
        assert list(diagnosis.numbers) == [name]

    def test_is_a_score_that_is_no_number_where_nothing_else_is_reported(self) -> None:
        assert named(scores=[0.5, math.nan])["diverges"][1].sentence == "score is nan at step 2"

    def test_is_a_loss_far_above_its_best_and_its_first_three_times(self) -> None:
        step, diagnosis = named([1.0, 0.5, 0.4, 1.7, 1.7, 1.7])["diverges"]
        assert step == 6
        assert diagnosis.numbers == {"train_loss": 1.7, "best": 0.4, "first": 1.0}
        assert diagnosis.of(3) == "trial 3 diverges: train_loss is 1.7, after 1 at first and 0.4 at its best"

    @pytest.mark.parametrize(
        "curve",
        [
            [1.0, 0.5, 0.4, 1.7, 1.7, 0.4],  # a spike
            [1.0, 0.5, 0.4, 1.5, 1.5, 1.5],  # not four times its best
            [1.0, 0.5, 0.01, 0.9, 0.9, 0.9],  # never as bad as at first
            [-1.0, -2.0, -3.0, -2.5, -2.5, -2.5],  # of a likelihood, say
        ],
    )
    def test_is_not_less_than_that(self, curve: list[float]) -> None:
        assert "diverges" not in named(curve)


class TestOscillating:
    def test_is_a_loss_that_jumps_to_and_fro(self) -> None:
        step, diagnosis = named([2.0, 1.5] + [1.2, 1.6] * 6)["oscillates"]
        assert step == WINDOW
        assert diagnosis.numbers["turns"] >= 6
        assert "train_loss turned 7 times in 10 steps" in diagnosis.sentence

    def test_is_seen_in_the_score_where_no_training_loss_is_reported(self) -> None:
        assert named(scores=[0.3, 0.6] * 6)["oscillates"][1].sentence.startswith("the score turned 8 times")

    def test_is_not_a_step_that_is_small_beside_what_was_learnt(self) -> None:
        assert "oscillates" not in named([20.0] + [1.2, 1.6] * 6)

    def test_is_not_a_step_that_is_small_beside_the_level(self) -> None:
        assert "oscillates" not in named([100.0, 101.0] * 6)

    def test_is_not_a_fall_by_leaps(self) -> None:
        assert "oscillates" not in named([2.0, 1.9, 1.1, 1.1, 1.0, 0.5, 0.5, 0.4, 0.1, 0.1, 0.1])


class TestAPlateau:
    def test_is_ten_steps_in_which_the_score_hardly_moves(self) -> None:
        step, diagnosis = named(scores=[0.1, 0.5, 0.8, 0.9] + [0.902, 0.901] * 6)["plateaus"]
        assert step == 14  # the ten steps after that in which it got to 0.9
        assert diagnosis.numbers["best_score"] == 0.902

    def test_is_a_score_that_never_moves(self) -> None:
        assert named(scores=[0.1] * 11)["plateaus"][0] == 11

    def test_is_not_where_it_still_gets_better(self) -> None:
        assert "plateaus" not in named(scores=[step / 40 for step in range(40)])

    def test_is_not_where_it_gets_worse(self) -> None:
        assert "plateaus" not in named(scores=[0.1, 0.9] + [0.9 - step / 50 for step in range(12)])


class TestOverfitting:
    def test_is_a_validation_loss_that_rises_while_the_training_loss_falls(self) -> None:
        train = [1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2]
        step, diagnosis = named(train, [1.0, 0.9, 0.8, 0.85, 0.9, 0.95, 1.0])["overfits"]
        assert step == 7
        assert diagnosis.numbers == {
            "val_loss": 1.0,
            "best_val_loss": 0.8,
            "best_step": 3,
            "train_loss": 0.2,
            "train_loss_then": 0.6,
        }
        assert "val_loss rose from 0.8 at step 3 to 1, while train_loss fell from 0.6 to 0.2" in diagnosis.sentence

    def test_is_not_where_both_rise(self) -> None:
        assert "overfits" not in named([1.0, 0.6, 0.7, 0.8, 0.9], [1.0, 0.8, 0.95, 1.0, 1.1])

    def test_is_not_a_rise_of_less_than_a_tenth(self) -> None:
        assert "overfits" not in named([1.0, 0.6, 0.5, 0.4, 0.3], [1.0, 0.8, 0.86, 0.87, 0.87])

    def test_needs_both_losses(self) -> None:
        assert "overfits" not in named(val=[1.0, 0.8, 1.2, 1.2, 1.2])


class TestUnderfitting:
    def test_is_a_loss_that_stays_where_it_began(self) -> None:
        step, diagnosis = named([2.31, 2.303] * 6, [2.303, 2.304] * 6)["underfits"]
        assert step == 10
        assert diagnosis.numbers == {
            "train_loss": 2.303,
            "first_train_loss": 2.31,
            "val_loss": 2.303,
            "first_val_loss": 2.303,
        }

    def test_is_not_where_only_the_training_loss_stays_as_with_heavy_augmentation(self) -> None:
        assert "underfits" not in named([2.3] * 12, falling(12))

    def test_is_not_where_the_loss_has_risen(self) -> None:
        assert "underfits" not in named([0.7] + [2.5] * 12, [0.7] + [2.5] * 12)


class TestGradients:
    def test_vanish_where_a_layer_gets_next_to_nothing(self) -> None:
        step, diagnosis = named([2.0] * 3, grad_norm=[0.5] * 3, grad_norm__a=[1e-6] * 3, grad_norm__b=[0.5] * 3)[
            "vanishing_gradients"
        ]
        assert step == 3
        assert diagnosis.numbers == {"grad_norm": 0.5, "grad_norm.a": 1e-6}
        assert diagnosis.of(7) == (
            "trial 7 has vanishing gradients: the gradient of a has the norm 1e-06, the model's 0.5"
        )

    def test_vanish_where_there_are_none(self) -> None:
        assert "vanishing_gradients" in named([2.0] * 3, grad_norm=[0.0] * 3, grad_norm__a=[0.0] * 3)

    def test_do_not_vanish_where_all_of_them_get_smaller(self) -> None:
        norms = [10.0**-step for step in range(9)]
        assert "vanishing_gradients" not in named(falling(9), grad_norm=norms, grad_norm__a=[n / 99 for n in norms])

    def test_nothing_is_said_where_they_are_not_watched(self) -> None:
        assert not named(falling(9))

    def test_explode_where_they_are_ten_times_as_long_as_before(self) -> None:
        step, diagnosis = named([2.0, 1.9, 1.8, 2.5], grad_norm=[1.0, 2.0, 3.0, 21.0])["exploding_gradients"]
        assert step == 4
        assert diagnosis.numbers == {"grad_norm": 21.0, "mean": 2.0}
        assert "exploding_gradients" in named([2.0, 1.9, 1.8, 2.5], grad_norm=[1.0, 2.0, 3.0, math.inf])

    def test_do_not_explode_where_the_loss_still_falls(self) -> None:
        assert not named([2.0, 1.9, 1.8, 1.7], grad_norm=[1.0, 2.0, 3.0, 2 * EXPLODED + 1])


class TestACourse:
    @given(CURVES, st.integers(0, 30))
    def test_names_each_thing_once_and_follows_from_its_reports(
        self, curve: list[tuple[float, float, float, float]], cut: int
    ) -> None:
        def told(course: Course, start: int, end: int) -> list[tuple[int, str]]:
            return [
                (step + 1, str(one))
                for step in range(start, min(end, len(curve)))
                for one in course.report(
                    step + 1,
                    curve[step][0],
                    dict(zip(("train_loss", "val_loss", "grad_norm", "grad_norm.a"), curve[step], strict=True)),
                )
            ]

        whole, pieces = Course(), Course()
        first = told(whole, 0, len(curve))
        assert told(pieces, 0, cut) + told(pieces, cut, len(curve)) == first
        assert repr(pieces) == repr(whole)
        names = [one.name for one in whole.named]
        assert len(names) == len(set(names)) == len(first)

    def test_from_other_weights_on_begins_anew_and_names_nothing_twice(self) -> None:
        course = Course()
        for step in range(3):
            course.report(step + 1, 0.0, {"train_loss": math.nan if step == 0 else 1.0, "val_loss": 1.0})
        course.begin_anew()
        for step, loss in enumerate((9.0, 8.0, 7.0), 4):  # far above the 1.0 of before
            assert course.report(step, 0.0, {"train_loss": loss, "val_loss": loss}) == []
        assert course.report(7, math.nan, {"train_loss": math.nan}) == []
        assert [one.name for one in course.named] == ["diverges"]
