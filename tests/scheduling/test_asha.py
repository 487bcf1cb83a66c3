from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.protocols import Judge, Policy
from hpo.scheduling import Asha
from hpo.scheduling.asha import rung_levels
from hpo.trial import GO_ON, Decision, Ended, Report, Stop
from tests.scheduling.contract import PolicyContract, reports
from tests.strategies import LAW, TURNS, Turn


@st.composite
def ashas(draw: st.DrawFn) -> Asha:
    """Any Asha, `max_epochs` below `reduction_factor` and grace at `max_epochs` included."""
    max_epochs = draw(st.integers(1, 16))
    return Asha(
        max_epochs,
        grace=draw(st.integers(1, min(4, max_epochs))),
        reduction_factor=draw(st.sampled_from([2, 3, 4, 20])),
    )


class AshaContract(PolicyContract):
    def first_stop(self, policy: Policy) -> int:
        assert isinstance(policy, Asha)
        return policy.grace

    @LAW
    @given(data=st.data(), turns=TURNS)
    def test_score_that_is_no_number_stops_and_says_so(self, data: st.DataObject, turns: list[Turn]) -> None:
        for report, decision in reports(data.draw(self.policies), turns):
            assert report.finite == (not isinstance(decision, Stop) or not decision.diverged)
            if not report.finite:
                assert isinstance(decision, Stop)
                assert decision.reason == f"diverged: the score at step {report.step} is {report.score}"
                assert not decision.completed

    @LAW
    @given(data=st.data(), turns=TURNS)
    def test_finite_scores_stop_at_rungs_alone(self, data: st.DataObject, turns: list[Turn]) -> None:
        policy = data.draw(self.policies)
        for report, decision in reports(policy, turns):
            assert decision == GO_ON or report.had(policy.resource) in policy.rungs or not report.finite


class TestAnyAsha(AshaContract):
    policies = ashas()


class TestAshaOfThirds(AshaContract):
    """Rungs 1, 3, 9: powers, and early enough for a story to climb them all."""

    policies = st.just(Asha(9))


class TestAshaWithoutPowers(AshaContract):
    """Rungs 2, 4, 8, 11."""

    policies = st.just(Asha(11, grace=2, reduction_factor=2))


class TestAshaBelowItsFactor(AshaContract):
    """Rungs 1, 3: `max_epochs` is below `reduction_factor`."""

    policies = st.just(Asha(3, reduction_factor=4))


class TestAshaOfChunks(AshaContract):
    """Rungs 1, 2, 4 chunks, of four steps each: most reports are in the middle of an epoch or a chunk."""

    policies = st.just(Asha(4, reduction_factor=2, resource="chunk"))


class TestAshaOfSteps(AshaContract):
    policies = st.just(Asha(9, resource="step"))


# --- rungs ---


@pytest.mark.parametrize(
    ("grace", "factor", "max_steps", "levels"),
    [
        (1, 3, 27, (1, 3, 9, 27)),
        (1, 3, 28, (1, 3, 9, 27, 28)),
        (1, 3, 26, (1, 3, 9, 26)),
        (2, 4, 100, (2, 8, 32, 100)),
        (1, 4, 3, (1, 3)),
        (5, 2, 5, (5,)),
        (1, 2, 1, (1,)),
        (1, 10, 1000, (1, 10, 100, 1000)),  # math.log(1000, 10) is 2.9999999999999996
        (1, 3, 243, (1, 3, 9, 27, 81, 243)),  # math.log(243, 3) is 4.999999999999999
        (1, 5, 125, (1, 5, 25, 125)),  # math.log(125, 5) is 3.0000000000000004
    ],
)
def test_rung_levels(grace: int, factor: int, max_steps: int, levels: tuple[int, ...]) -> None:
    assert rung_levels(grace, factor, max_steps) == levels


@LAW
@given(grace=st.integers(1, 50), factor=st.integers(2, 10), above=st.integers(0, 10**20))
def test_rung_levels_are_the_powers_below_the_last(grace: int, factor: int, above: int) -> None:
    max_steps = grace + above
    powers = tuple(grace * factor**k for k in range(70) if grace * factor**k < max_steps)
    levels = rung_levels(grace, factor, max_steps)
    assert levels == (*powers, max_steps)
    assert all(type(level) is int for level in levels)


def test_rungs_follow_from_the_declaration() -> None:
    assert Asha(20, grace=2, reduction_factor=3).rungs == (2, 6, 18, 20)
    assert Asha(20).max_steps == 20


# --- the count rule ---


def arrive(judge: Judge, scores: Sequence[float], *, step: int = 1) -> list[Decision]:
    """The decisions for trials 0, 1, … that reach the rung in this order."""
    return [judge.on_report(Report(trial, step, score)) for trial, score in enumerate(scores)]


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
@LAW
@given(scores=st.lists(st.integers(-1000, 1000), min_size=1, max_size=40, unique=True))
def test_goes_on_where_the_quantile_rule_does(factor: int, scores: list[int]) -> None:
    """Syne Tune goes on where the score is at least the quantile 1 - 1/r of all scores at the rung, its own included.

    Of n different scores, NumPy puts that quantile at the position h = (n - 1)(1 - 1/r) from the worst. Between two
    scores it interpolates to something strictly between, so a score passes where its position n - 1 - better is at
    least h, that is where better * r is at most n - 1: the count rule. The two part in two cases, which are left out
    here: equal scores, which the quantile treats alike and we order by trial number; and a whole h that 1 - 1/r
    misses by a rounding, where the quantile falls a hair above the score that it should equal. Hence the 1e-6, a
    millionth of the smallest difference.
    """
    decisions = arrive(Asha(9, reduction_factor=factor).begin(), scores)
    for number, (score, decision) in enumerate(zip(scores, decisions, strict=True), start=1):
        threshold = np.quantile(np.array(scores[:number], dtype=float), 1 - 1 / factor)
        assert (decision == GO_ON) == (score >= threshold - 1e-6)


@LAW
@given(scores=st.lists(st.integers(0, 5), min_size=1, max_size=30), factor=st.integers(2, 5))
def test_goes_on_where_few_enough_of_the_others_are_better(scores: list[int], factor: int) -> None:
    decisions = arrive(Asha(9, reduction_factor=factor).begin(), scores)
    for trial, decision in enumerate(decisions):
        better = sum(other >= scores[trial] for other in scores[:trial])
        assert (decision == GO_ON) == (better <= trial / factor)


def test_decisions_of_one_rung_by_hand() -> None:
    # One third of 0, 1, 2, 3, 4, 5, 6 others: 0, 0, 0, 1, 1, 1, 2 may be better.
    decisions = arrive(Asha(9).begin(), [0.5, 0.4, 0.6, 0.55, 0.52, 0.9, 0.6])
    assert [decision == GO_ON for decision in decisions] == [True, False, True, True, False, True, True]
    assert decisions[1] == Stop("rung 1: 1 of 1 others are better than 0.4", policy="asha")
    assert decisions[4] == Stop("rung 1: 2 of 4 others are better than 0.52", policy="asha")


def test_equal_scores_are_ordered_by_trial_number_not_by_arrival() -> None:
    judge = Asha(9).begin()
    assert judge.on_report(Report(5, 1, 0.5)) == GO_ON
    assert judge.on_report(Report(2, 1, 0.5)) == GO_ON
    assert judge.on_report(Report(7, 1, 0.5)) == Stop("rung 1: 2 of 2 others are better than 0.5", policy="asha")


def test_rungs_do_not_mix() -> None:
    judge = Asha(9).begin()
    assert judge.on_report(Report(0, 1, 0.9)) == GO_ON
    assert judge.on_report(Report(0, 2, 0.9)) == GO_ON
    assert judge.on_report(Report(0, 3, 0.1)) == GO_ON  # the first at rung 3, whatever rung 1 has seen
    assert isinstance(judge.on_report(Report(1, 1, 0.2)), Stop)


def test_between_rungs_nothing_is_compared() -> None:
    judge = Asha(9).begin()
    arrive(judge, [0.9])
    assert judge.on_report(Report(0, 2, 0.1)) == GO_ON
    assert judge.state() == {"1": {"0": 0.9}, "3": {}, "9": {}}


def test_completes_at_max_epochs_even_as_the_worst() -> None:
    judge = Asha(2).begin()
    decisions = arrive(judge, [0.9, 0.1], step=2)
    assert decisions == [Stop("all 2 epochs trained", completed=True, policy="asha")] * 2


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_diverged_score_is_left_out_of_the_rung(score: float) -> None:
    judge = Asha(9).begin()
    decision = judge.on_report(Report(0, 1, score))
    assert decision == Stop(f"diverged: the score at step 1 is {score}", diverged=True, policy="asha")
    judge.on_end(Ended(0, 1, None))
    assert judge.state() == {"1": {}, "3": {}, "9": {}}


# --- what is counted ---


def within(judge: Judge, trial: int, scores: Sequence[float], *, per_epoch: int, per_chunk: int) -> list[Decision]:
    """The decisions on a trial's steps, so many of which are an epoch, and so many epochs a chunk."""
    return [
        judge.on_report(
            Report(trial, step, score, num_epochs=step // per_epoch, num_chunks=step // per_epoch // per_chunk)
        )
        for step, score in enumerate(scores, start=1)
    ]


def test_epochs_are_judged_where_they_are_complete_and_once() -> None:
    judge = Asha(3).begin()
    scores = [0.1, 0.2, 0.9, 0.4, 0.5, 0.6, 0.7, 0.8]
    first = within(judge, 0, scores, per_epoch=2, per_chunk=1)
    # Epochs end with the steps 2, 4, 6: rung 1 holds what step 2 said, rung 3 what step 6 did.
    assert judge.state() == {"1": {"0": 0.2}, "3": {"0": 0.6}}
    assert first[:5] == [GO_ON] * 5
    assert first[5] == Stop("all 3 epochs trained", completed=True, policy="asha")
    second = within(judge, 1, [0.9, 0.1, 0.9], per_epoch=2, per_chunk=1)
    assert second == [GO_ON, Stop("rung 1: 1 of 1 others are better than 0.1", policy="asha"), GO_ON]


def test_chunks_are_judged_where_they_are_complete_and_once() -> None:
    judge = Asha(2, reduction_factor=2, resource="chunk").begin()
    assert within(judge, 0, [0.9, 0.8, 0.2], per_epoch=1, per_chunk=2) == [GO_ON] * 3
    assert judge.state() == {"1": {"0": 0.8}, "2": {}}  # the fall with the second chunk counts for nothing yet
    assert within(judge, 1, [0.1, 0.7], per_epoch=1, per_chunk=2)[1] == Stop(
        "rung 1: 1 of 1 others are better than 0.7", policy="asha"
    )
    judge.on_end(Ended(2, 3, 0.85, by_itself=True, num_epochs=3, num_chunks=1))
    assert judge.state() == {"1": {"0": 0.8, "1": 0.7}, "2": {"2": 0.85}}
    assert within(judge, 3, [0.9, 0.9, 0.9, 0.3], per_epoch=1, per_chunk=2)[3] == Stop(
        "all 2 chunks trained", completed=True, policy="asha"
    )


def test_steps_are_judged_whatever_they_are_of() -> None:
    judge = Asha(3, resource="step").begin()
    assert within(judge, 0, [0.9, 0.8], per_epoch=10, per_chunk=1) == [GO_ON] * 2
    assert within(judge, 1, [0.1], per_epoch=10, per_chunk=1) == [
        Stop("rung 1: 1 of 1 others are better than 0.1", policy="asha")
    ]


def test_only_where_a_unit_is_a_step_are_its_steps_known() -> None:
    assert [Asha(9, resource=resource).max_steps for resource in ("step", "epoch", "chunk")] == [9, 9, None]


def test_counting_epochs_describes_the_policy_as_ever() -> None:
    assert Asha(9).describe() == {"class": "asha", "max_epochs": 9, "grace": 1, "reduction_factor": 3}
    assert Asha(9, resource="chunk").describe()["resource"] == "chunk"


def test_an_unknown_resource() -> None:
    with pytest.raises(ExperimentError, match=r"^resource: 'batch' is not one of 'step', 'epoch', 'chunk'\n  count"):
        Asha(9, resource="batch").check()


# --- ends ---


def test_trial_that_ended_by_itself_counts_in_later_rungs_with_its_best() -> None:
    judge = Asha(9).begin()
    judge.on_report(Report(0, 1, 0.7))
    judge.on_end(Ended(0, 2, 0.8, by_itself=True))
    assert judge.state() == {"1": {"0": 0.7}, "3": {"0": 0.8}, "9": {"0": 0.8}}
    assert judge.on_report(Report(1, 1, 0.75)) == GO_ON  # rung 1 holds what was reported there
    assert judge.on_report(Report(1, 3, 0.75)) == Stop("rung 3: 1 of 1 others are better than 0.75", policy="asha")


def test_trial_that_ended_by_itself_at_a_rung_keeps_its_score_there() -> None:
    judge = Asha(9).begin()
    judge.on_report(Report(0, 3, 0.2))
    judge.on_end(Ended(0, 3, 0.9, by_itself=True))
    assert judge.state() == {"1": {}, "3": {"0": 0.2}, "9": {"0": 0.9}}


@pytest.mark.parametrize(
    "ended",
    [
        Ended(0, 2, 0.8),  # stopped for what others were
        Ended(0, 2, 0.8, failed=True),
        Ended(0, 2, None, by_itself=True),  # never a finite score
    ],
)
def test_other_ends_do_not_count_in_later_rungs(ended: Ended) -> None:
    judge = Asha(9).begin()
    judge.on_report(Report(0, 1, 0.7))
    judge.on_end(ended)
    assert judge.state() == {"1": {"0": 0.7}, "3": {}, "9": {}}
    assert judge.on_report(Report(1, 3, 0.1)) == GO_ON


# --- settings ---


@pytest.mark.parametrize("setting", ["max_epochs", "grace", "reduction_factor"])
@pytest.mark.parametrize("wrong", [0, -3, 1.5, True, "9"])
def test_settings_have_to_be_positive_integers(setting: str, wrong: object) -> None:
    settings = {"max_epochs": 9, setting: wrong}
    with pytest.raises(
        ExperimentError, match=rf"^{setting}: {wrong!r} is not an integer of at least 1\n  give a whole"
    ):
        Asha(**settings).check()  # type: ignore[arg-type]


def test_grace_above_max_epochs() -> None:
    with pytest.raises(ExperimentError, match=r"^grace: 10 is above max_epochs=9\n  nothing would ever be stopped"):
        Asha(9, grace=10).check()


def test_reduction_factor_of_one() -> None:
    with pytest.raises(ExperimentError, match=r"^reduction_factor: 1 is below 2\n  use 3 or 4"):
        Asha(9, reduction_factor=1).check()
