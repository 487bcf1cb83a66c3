"""Which node is named when what nodes say is compared."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.engine.findings import Seen, State, blamed, differences, judged, majority, rounds

NODES = st.integers(1, 9).map(lambda count: [f"node{index}" for index in range(count)])


@st.composite
def said(draw: st.DrawFn) -> dict[str, str]:
    """What each of a few nodes says."""
    return {node: draw(st.sampled_from(["a", "b", "c"])) for node in draw(NODES)}


class TestMajority:
    @given(said(), st.randoms())
    def test_does_not_depend_on_the_order_of_the_nodes(self, values: dict[str, str], shuffle: random.Random) -> None:
        turned = list(values.items())
        shuffle.shuffle(turned)
        assert majority(dict(turned), first="node0") == majority(values, first="node0")

    @given(said())
    def test_nobody_has_another_value_more_often(self, values: dict[str, str]) -> None:
        said = list(values.values())
        assert all(said.count(majority(values, first="node0")) >= said.count(value) for value in said)

    def test_the_first_is_believed_in_a_draw(self) -> None:
        assert majority({"driver": "b", "x": "a"}, first="driver") == "b"
        assert majority({"driver": "c", "w": "a", "x": "a", "y": "b", "z": "b"}, first="driver") == "a"
        with pytest.raises(ValueError, match="empty"):
            majority({}, first="driver")


class TestDifferences:
    @given(said())
    def test_exactly_those_are_named_that_say_something_else(self, values: dict[str, str]) -> None:
        expected = majority(values, first="node0")
        named = differences({node: {"torch": value} for node, value in values.items()}, first="node0")
        assert set(named) == {node for node, value in values.items() if value != expected}

    def test_a_sentence_for_each_name(self) -> None:
        facts = {"x": {"torch": "2.11", "ray": "2"}, "y": {"torch": "2.14", "ray": "2"}, "z": {"torch": "2.14"}}
        assert differences(facts, first="y") == {
            "x": {"torch 2.11": "torch is 2.11, but 2.14 on 2 of 3"},
            "z": {"ray missing": "ray is missing, but 2 on 2 of 3"},
        }


def test_a_problem_comes_before_a_difference_and_a_warning_last() -> None:
    found = judged(
        {
            "a": Seen({"torch": "2"}),
            "b": Seen({"torch": "2"}, shown="fine"),
            "c": Seen({"torch": "1"}),
            "d": Seen(problem="it is gone", short="gone"),
            "e": Seen({"torch": "2"}, shown="5 GB", warning="little is left"),
            "f": Seen(nothing=True, shown="none"),
        },
        first="a",
    )
    assert {node: finding.state for node, finding in found.items()} == {
        "a": State.PASSED,
        "b": State.PASSED,
        "c": State.FAILED,
        "d": State.FAILED,
        "e": State.WARNED,
        "f": State.NOTHING,
    }
    assert found["b"].short == "fine"
    assert (found["c"].short, found["c"].sentence) == ("torch 1", "torch is 1, but 2 on 3 of 4")
    assert (found["d"].short, found["d"].sentence) == ("gone", "it is gone")
    assert (found["e"].short, found["e"].sentence) == ("5 GB", "little is left")


class TestBlamed:
    @given(st.data())
    def test_whoever_is_named_explains_every_pair(self, data: st.DataObject) -> None:
        nodes = data.draw(NODES)
        pairs = [frozenset(pair) for pair in combinations(nodes, 2)]
        failed = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
        named = blamed(failed)
        assert all(set(named) & pair for pair in failed)
        assert all(frozenset((node, other)) in failed for node, others in named.items() for other in others)

    @given(st.integers(3, 9), st.data())
    def test_one_that_nobody_reaches_is_named_alone(self, count: int, data: st.DataObject) -> None:
        nodes = [f"node{index}" for index in range(count)]
        cut_off = data.draw(st.sampled_from(nodes))
        failed = [frozenset((cut_off, other)) for other in nodes if other != cut_off]
        assert blamed(failed) == {cut_off: [node for node in nodes if node != cut_off]}

    def test_of_a_single_pair_both_are_named(self) -> None:
        assert blamed([frozenset("xy")]) == {"x": ["y"], "y": ["x"]}
        assert blamed([]) == {}


@given(NODES)
def test_all_pairs_meet_once_and_nobody_is_at_two_places(nodes: list[str]) -> None:
    played = rounds(nodes)
    met = [frozenset(pair) for pairs in played for pair in pairs]
    assert len(met) == len(set(met)) == len(nodes) * (len(nodes) - 1) // 2
    for pairs in played:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
