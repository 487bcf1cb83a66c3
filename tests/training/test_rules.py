from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.training.rules import BY_ANNOTATION, Rule, flag, integer, number, one_of, several, text

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.tuples(st.integers(), st.floats())
)


@given(anything)
def test_a_rule_judges_any_value_without_failing(value: object) -> None:
    for rule in (*BY_ANNOTATION.values(), one_of("a", 1), several(number(1), example=(1,)), integer(1).or_none()):
        assert rule.holds(value) in (True, False)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_numbers_lie_within_their_bounds(value: float) -> None:
    assert number(0.5, above=0, most=1).holds(value) == (0 < value <= 1)
    assert number(0.5, least=0, below=1).holds(value) == (0 <= value < 1)


@pytest.mark.parametrize("rule", [number(1.0), integer(1)])
def test_a_boolean_is_no_number(rule: Rule) -> None:
    assert not rule.holds(True)


def test_every_example_keeps_its_rule() -> None:
    rules = [flag(), text(), one_of(3, 4), integer(3, least=1, odd=True), several(integer(1), example=(1, 2), size=2)]
    assert all(rule.holds(rule.example) for rule in rules)


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        (number(0.5, above=0, most=1), 2, r"x: 2 is not a number above 0 and of at most 1\n  e\.g\. x=0\.5"),
        (number(0.5), "a", r"x: 'a' is not a number\n"),
        (number(0.5), float("inf"), r"x: inf is not a number"),
        (integer(3, least=1), 0, r"x: 0 is not an integer of at least 1\n  e\.g\. x=3"),
        (integer(3, least=1), 1.0, r"x: 1\.0 is not an integer"),
        (integer(3, least=1, odd=True), 2, r"x: 2 is not an odd integer of at least 1"),
        (integer(3, least=1).or_none(), 0, r"x: 0 is not an integer of at least 1, or None"),
        (one_of("a", "b"), "c", r"x: 'c' is not one of 'a', 'b'\n  e\.g\. x='a'"),
        (flag(), 0, r"x: 0 is not True or False"),
        (text(), 0, r"x: 0 is not a string"),
        (several(one_of("a"), example=("a",)), ("b",), r"x: \('b',\) is not a tuple, each one of 'a'"),
        (
            several(integer(1), example=(1,), least=1),
            (),
            r"x: \(\) is not a tuple of at least 1 parts, each an integer",
        ),
        (several(integer(1), example=(1, 1), size=2), (1,), r"x: \(1,\) is not a tuple of 2 parts"),
    ],
)
def test_a_broken_rule_names_value_rule_and_an_example(rule: Rule, value: object, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        rule.check(value, where="x")
