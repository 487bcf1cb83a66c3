from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import (
    CheckpointError,
    DataError,
    ExperimentError,
    HpoError,
    ReplayError,
    RunLocked,
    StoreError,
    UnknownRun,
)
from tests.strategies import LAW

KINDS = [HpoError, ExperimentError, DataError, StoreError, UnknownRun, RunLocked, CheckpointError, ReplayError]


@pytest.mark.parametrize(
    ("where", "remedy", "text"),
    [
        ("", "", "low=0.1 is not below high=0.01"),
        ("space.lr", "", "space.lr: low=0.1 is not below high=0.01"),
        ("", "swap the two", "low=0.1 is not below high=0.01\n  swap the two"),
        ("space.lr", "swap the two", "space.lr: low=0.1 is not below high=0.01\n  swap the two"),
    ],
)
def test_text_is_place_problem_and_remedy(where: str, remedy: str, text: str) -> None:
    assert str(HpoError("low=0.1 is not below high=0.01", where=where, remedy=remedy)) == text


def test_inside_names_the_place_from_further_out() -> None:
    error = ExperimentError("too low", where="space.lr", remedy="raise it").inside("x.py")
    assert str(error) == "x.py: space.lr: too low\n  raise it"
    assert type(error) is ExperimentError
    assert str(error.inside("--set")) == "--set: x.py: space.lr: too low\n  raise it"


def test_inside_of_an_error_without_a_place() -> None:
    assert DataError("empty").inside("x.py").where == "x.py"


@pytest.mark.parametrize("kind", KINDS)
@LAW
@given(problem=st.text(), where=st.text(), remedy=st.text())
def test_pickled_error_is_the_same(kind: type[HpoError], problem: str, where: str, remedy: str) -> None:
    """It has to come back whole from a worker's process."""
    error = kind(problem, where=where, remedy=remedy)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is kind
    assert (again.problem, again.where, again.remedy, str(again)) == (problem, where, remedy, str(error))


def test_exit_codes_tell_a_wrong_request_from_a_failure() -> None:
    codes = {kind.__name__: kind.exit_code for kind in KINDS}
    assert {name for name, code in codes.items() if code == 2} == {"ExperimentError", "DataError", "UnknownRun"}
    assert set(codes.values()) == {1, 2}


def test_every_kind_can_be_caught_as_one() -> None:
    assert all(issubclass(kind, HpoError) for kind in KINDS)
    assert issubclass(UnknownRun, StoreError)
    assert issubclass(RunLocked, StoreError)
