from __future__ import annotations

import math

import pytest
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.protocols import Policy
from hpo.scheduling import NoStopping
from hpo.trial import GO_ON, Report, Stop
from tests.scheduling.contract import PolicyContract


class TestNoStopping(PolicyContract):
    policies = st.builds(NoStopping, st.integers(1, 12))

    def first_stop(self, policy: Policy) -> int:
        assert policy.max_steps is not None
        return policy.max_steps


@pytest.mark.parametrize("score", [0.5, -math.inf, math.nan])
def test_score_does_not_matter(score: float) -> None:
    judge = NoStopping(3).begin()
    assert judge.on_report(Report(0, 2, score)) == GO_ON
    assert judge.on_report(Report(0, 3, score)) == Stop("all 3 epochs trained", completed=True, policy="nostopping")


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "9", None])
def test_max_epochs_has_to_be_a_positive_integer(wrong: object) -> None:
    with pytest.raises(ExperimentError, match=r"^max_epochs: .* is not an integer of at least 1\n"):
        NoStopping(wrong).check()  # type: ignore[arg-type]
