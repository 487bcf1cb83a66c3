from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.protocols import Judge, Policy
from hpo.scheduling import Patience
from hpo.trial import GO_ON, Ended, Report, Stop
from tests.scheduling.contract import PolicyContract
from tests.strategies import LAW

NAN, INF = math.nan, math.inf


class TestPatience(PolicyContract):
    policies = st.builds(Patience, st.integers(1, 6), min_delta=st.sampled_from([0.0, 0.25, 2]))

    def first_stop(self, policy: Policy) -> int:
        assert isinstance(policy, Patience)
        return policy.patience + 1  # the first finite score is a gain


# (patience, min_delta, scores of steps 1, 2, …, step at which it stops or None, best step, best score)
TABLE = [
    (1, 0.0, [0.5, 0.5], 2, "step 1 (0.5)"),  # an equal score is no gain
    (1, 0.0, [0.5, 0.6, 0.7, 0.6], 4, "step 3 (0.7)"),
    (2, 0.0, [0.5, 0.4, 0.6, 0.5, 0.5], 5, "step 3 (0.6)"),
    (2, 0.0, [0.5, 0.4, 0.6, 0.5, 0.7], None, ""),
    (3, 0.0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None, ""),
    (3, 0.0, [0.9, 0.1, 0.2, 0.3], 4, "step 1 (0.9)"),  # below the best, though rising
    (2, 0.25, [1.0, 1.25, 1.5], None, ""),  # 1.25 is no gain over 1.0, 1.5 is
    (2, 0.25, [1.0, 1.25, 1.25], 3, "step 1 (1)"),
    (2, 0.25, [1.0, 1.125, 1.25, 1.375], 3, "step 1 (1)"),  # small gains do not add up while they are not taken
    (2, 0.0, [-3.0, -2.0, -2.5, -2.0], 4, "step 2 (-2)"),
    (2, 0.0, [NAN, 0.1, NAN, NAN], 4, "step 2 (0.1)"),
    (2, 0.0, [0.1, NAN, 0.2, INF, -INF], 5, "step 3 (0.2)"),  # an infinite score is no gain
    (2, 5.0, [NAN, -100.0, -100.0], None, ""),  # the first finite score is a gain, whatever min_delta is
    (2, 0.0, [NAN, NAN], 2, "no finite score at all"),
    (3, 0.0, [NAN, INF, -INF], 3, "no finite score at all"),
]


@pytest.mark.parametrize(("patience", "min_delta", "scores", "stops_at", "said"), TABLE)
def test_stops_where_the_table_says(
    patience: int, min_delta: float, scores: list[float], stops_at: int | None, said: str
) -> None:
    judge = Patience(patience, min_delta=min_delta).begin()
    for step, score in enumerate(scores, start=1):
        decision = judge.on_report(Report(0, step, score))
        if step == stops_at:
            assert isinstance(decision, Stop)
            assert decision.by_itself
            assert said in decision.reason
            return
        assert decision == GO_ON
    assert stops_at is None


def stops_at(judge: Judge, trial: int, scores: list[float]) -> int | None:
    for step, score in enumerate(scores, start=1):
        if judge.on_report(Report(trial, step, score)) != GO_ON:
            return step
    return None


@pytest.mark.parametrize(
    ("own", "step"), [({}, 4), ({"patience": 1}, 2), ({"patience": 2, "lr": 0.1}, 3), ({"min_delta": 0.5}, 4)]
)
def test_a_trials_own_numbers_count(own: dict[str, Any], step: int) -> None:
    judge = Patience(3).begin()
    judge.on_begin(7, own)
    assert stops_at(judge, 7, [0.5, 0.5, 0.5, 0.5]) == step


def test_own_numbers_outlive_a_restart_and_change_with_the_configuration() -> None:
    judge, again = Patience(3).begin(), Patience(3).begin()
    judge.on_begin(0, {"patience": 1})
    judge.on_begin(1, {"min_delta": 0.25})
    again.restore(json.loads(json.dumps(judge.state())))
    assert again.state() == judge.state()
    assert stops_at(again, 0, [0.5, 0.5]) == 2
    assert stops_at(again, 1, [0.5, 0.7, 0.9, 0.9, 0.9]) is None
    judge.on_begin(0, {})
    assert stops_at(judge, 0, [0.5, 0.5, 0.5, 0.5]) == 4
    judge.on_end(Ended(0, 4, 0.5))
    judge.on_end(Ended(1, 0, None))
    assert judge.state() == {"best": {}, "own": {}, "chunks": {}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patience": 0}, r"patience: 0 is not an integer of at least 1"),
        ({"min_delta": -1.0}, r"min_delta: -1\.0 is not a number of at least 0"),
    ],
)
def test_values_of_a_configuration_that_cannot_be(config: dict[str, Any], message: str) -> None:
    Patience(3).check_config({"lr": 0.1})
    with pytest.raises(ExperimentError, match=message):
        Patience(3).check_config(config)


def test_reason_holds_the_numbers() -> None:
    judge = Patience(2, min_delta=0.01).begin()
    for step, score in enumerate([0.5, 0.505], start=1):
        assert judge.on_report(Report(0, step, score)) == GO_ON
    assert judge.on_report(Report(0, 3, 0.4)) == Stop(
        "no gain above 0.01 in 2 steps, since step 1 (0.5)", by_itself=True, policy="patience"
    )


@LAW
@given(
    scores=st.lists(st.one_of(st.integers(0, 5).map(float), st.just(NAN)), max_size=12),
    others=st.lists(st.integers(0, 5).map(float), max_size=12),
)
def test_other_trials_do_not_matter(scores: list[float], others: list[float]) -> None:
    alone, among = Patience(2).begin(), Patience(2).begin()
    for step, score in enumerate(scores, start=1):
        for other in others[:step]:
            among.on_report(Report(7 + step, 1, other))
        decision = alone.on_report(Report(0, step, score))
        assert among.on_report(Report(0, step, score)) == decision
        if isinstance(decision, Stop):
            return


def test_each_chunk_of_growing_data_is_borne_with_anew() -> None:
    judge = Patience(2).begin()
    told = [(0.9, 0), (0.8, 0), (0.7, 1), (0.5, 1), (0.4, 1), (0.3, 1)]  # a chunk of three steps, and the next one
    for step, (score, num_chunks) in enumerate(told[:5], start=1):
        assert judge.on_report(Report(0, step, score, num_chunks=num_chunks)) == GO_ON
    again = Patience(2).begin()
    again.restore(json.loads(json.dumps(judge.state())))
    for one in (judge, again):
        assert one.on_report(Report(0, 6, 0.3, num_chunks=1)) == Stop(
            "no gain above 0 in 2 steps, since step 4 (0.5)", by_itself=True, policy="patience"
        )
        one.on_end(Ended(0, 6, 0.5))
        assert one.state() == {"best": {}, "own": {}, "chunks": {}}


def test_ended_trials_leave_nothing_in_the_state() -> None:
    judge = Patience(2).begin()
    judge.on_report(Report(0, 1, 0.5))
    judge.on_report(Report(1, 1, 0.5))
    judge.on_end(Ended(0, 1, 0.5))
    judge.on_end(Ended(9, 0, None, failed=True))
    assert judge.state() == {"best": {"1": [1, 0.5]}, "own": {}, "chunks": {}}


def test_keeps_the_best_weights_and_trains_without_end() -> None:
    assert Patience(2).keeps_best
    assert Patience(2).max_steps is None


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "9"])
def test_patience_has_to_be_a_positive_integer(wrong: object) -> None:
    with pytest.raises(ExperimentError, match=r"^patience: .* is not an integer of at least 1\n"):
        Patience(wrong).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-0.1, NAN, INF, True, "0"])
def test_min_delta_has_to_be_a_number_of_at_least_0(wrong: object) -> None:
    with pytest.raises(ExperimentError, match=r"^min_delta: .* is not a number of at least 0\n  0 counts every gain"):
        Patience(2, min_delta=wrong).check()  # type: ignore[arg-type]
