"""What nodes say, compared: which of them differs from the others, which cannot reach the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True)
class Seen:
    """What one node saw in one check.

    Attributes:
        facts: What all nodes have to say alike, by name.
        shown: A figure for people where all is well.
        problem: What is wrong there, in a sentence; empty where nothing is.
        short: The same in a word or two.
        warning: What a run can live with, in a sentence.
        nothing: Whether there was nothing to look at.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    shown: str = ""
    problem: str = ""
    short: str = ""
    warning: str = ""
    nothing: bool = False


class State(Enum):
    """How a check ended on a node."""

    PASSED = "passed"
    WARNED = "warned"
    FAILED = "failed"
    NOTHING = "nothing to look at"


@dataclass(frozen=True)
class Finding:
    """How one check ended on one node: a word or two for a table, a sentence where it did not pass."""

    state: State
    short: str = ""
    sentence: str = ""


def judged(seen: Mapping[str, Seen], *, first: str) -> dict[str, Finding]:
    """A finding for each node: what it saw itself, or wherein it differs from most of the others.

    Args:
        seen: What each node saw.
        first: The node that is believed where two answers are equally frequent.
    """
    differing = differences({node: what.facts for node, what in seen.items() if what.facts}, first=first)
    return {node: _finding(what, differing.get(node, {})) for node, what in seen.items()}


def _finding(seen: Seen, differing: Mapping[str, str]) -> Finding:
    if seen.problem:
        return Finding(State.FAILED, seen.short or "failed", seen.problem)
    if differing:
        return Finding(State.FAILED, ", ".join(differing), "; ".join(differing.values()))
    if seen.warning:
        return Finding(State.WARNED, seen.short or seen.shown, seen.warning)
    return Finding(State.NOTHING if seen.nothing else State.PASSED, seen.shown)


def differences(facts: Mapping[str, Mapping[str, str]], *, first: str) -> dict[str, dict[str, str]]:
    """For each node that differs from most others: what it says, and a sentence on it."""
    found: dict[str, dict[str, str]] = {}
    for name in sorted({name for said in facts.values() for name in said}):
        values = {node: said.get(name, "missing") for node, said in facts.items()}
        expected = majority(values, first=first)
        count = sum(value == expected for value in values.values())
        for node, value in values.items():
            if value != expected:
                sentence = f"{name} is {value}, but {expected} on {count} of {len(values)}"
                found.setdefault(node, {})[f"{name} {value}"] = sentence
    return found


def majority(values: Mapping[str, str], *, first: str) -> str:
    """The value that most nodes have; of equally frequent ones that of `first`, else the smallest.

    Raises:
        ValueError: There are no values.
    """
    counts = Counter(values.values())
    most = max(counts.values(), default=0)
    tied = [value for value, count in counts.items() if count == most]
    return values[first] if values.get(first) in tied else min(tied)


def blamed(failed: Iterable[frozenset[str]]) -> dict[str, list[str]]:
    """The nodes that explain why these pairs cannot reach each other, with the nodes that each of them does not reach.

    Whoever is in most of the pairs is named first, then whoever is in most of those that this does not explain; of a
    pair that stands alone both are named, since nobody can tell which of them it is.
    """
    left = {pair for pair in failed if len(pair) == 2}
    named: dict[str, list[str]] = {}
    while left:
        counts = Counter(node for pair in left for node in pair)
        worst = min(counts, key=lambda node: (-counts[node], node))
        mine = {pair for pair in left if worst in pair}
        named[worst] = sorted(other for pair in mine for other in pair - {worst})
        if counts[worst] == 1:
            named[named[worst][0]] = [worst]
        left -= mine
    return named


def rounds(nodes: list[str]) -> list[list[tuple[str, str]]]:
    """Every pair of nodes once, in rounds in which no node is in two pairs: all pairs of a round can meet at a time."""
    ring: list[str | None] = [*nodes, None] if len(nodes) % 2 else [*nodes]
    half = len(ring) // 2
    played = []
    for _ in range(len(ring) - 1):
        meetings = zip(ring[:half], reversed(ring[half:]), strict=True)
        played.append([(one, other) for one, other in meetings if one is not None and other is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]  # the circle method: one stays, the others move on
    return played
