"""What property tests draw: stories of trials, names, domains and spaces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hpo.space import Choice, Domain, choice, grid, lograndint, loguniform, quniform, randint, uniform

# A contract's tests run once for each class that inherits them, which `differing_executors` warns of.
LAW = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)


class Fate(StrEnum):
    """What becomes of a trial in its turn."""

    REPORTS = "it reports"
    STOPPED = "it reports, and another policy stops it for what the others are"
    ALONE = "it reports, and another policy stops it for what it is itself"
    FAILS = "it fails instead of a report, and is not tried again"
    PLACE = "a place is free: a paused trial may be promoted"


@dataclass(frozen=True)
class Turn:
    """One thing that happens; whoever plays it leaves it out where it cannot happen to this trial any more."""

    trial: int
    score: float
    fate: Fate


# Few values, so that there are ties, and all that is special about floats.
_SCORES = (-1.0, -0.0, 0.0, 0.25, 0.5, 0.5, 0.75, 1.0, 1.25, 7.0, 0.1 + 0.2, 5e-324, 1e308, -1e308, 40.0, 41.0)
_NO_NUMBERS = (math.nan, math.inf, -math.inf)
_FATES = (*[Fate.REPORTS] * 12, Fate.STOPPED, Fate.ALONE, Fate.FAILS, Fate.PLACE, Fate.PLACE)
_TRIALS = range(7)
_ALL_TURNS = tuple(
    Turn(trial, score, fate) for fate in _FATES for score in (*_SCORES * 3, *_NO_NUMBERS) for trial in _TRIALS
)
_TURN = st.sampled_from(_ALL_TURNS)  # one draw a turn: three would take three times as long
# Short stories to shrink to, long ones to climb the rungs: lists drawn without a minimum hold six on average.
TURNS = st.lists(_TURN, min_size=1, max_size=12) | st.lists(_TURN, min_size=25, max_size=60)

SEEDS = st.integers(0, 2**63 - 1)
NAMES = st.text("abcdefgh_", min_size=1, max_size=4)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
)
VALUES = st.one_of(SCALARS, st.tuples(SCALARS, SCALARS))

Number = TypeVar("Number", int, float)

_REALS = st.floats(-1e299, 1e299)
_WHOLES = st.integers(-(10**6), 10**6)


@st.composite
def ordered(draw: st.DrawFn, ends: st.SearchStrategy[Number]) -> tuple[Number, Number]:
    """Two different numbers, the smaller first."""
    low, high = sorted(draw(st.lists(ends, min_size=2, max_size=2, unique=True)))
    return low, high


def _key(value: object) -> str:
    return f"{type(value).__name__}:{value!r}".replace("-0.0", "0.0")


@st.composite
def _quniforms(draw: st.DrawFn) -> Domain:
    numbers = st.one_of(_WHOLES, st.floats(-1e6, 1e6, allow_subnormal=False), st.sampled_from([0.1, 0.3, 1 / 3]))
    low, high = draw(ordered(numbers).filter(lambda ends: ends[1] - ends[0] > 1e-6))
    if isinstance(low, int) and isinstance(high, int):
        return quniform(low, high, draw(st.integers(1, high - low)))
    return quniform(low, high, draw(st.floats(1e-5, 1.0)) * (high - low))


UNIFORMS = ordered(_REALS).map(lambda ends: uniform(*ends))
LOGUNIFORMS = ordered(st.floats(1e-300, 1e299)).map(lambda ends: loguniform(*ends))
RANDINTS = ordered(_WHOLES).map(lambda ends: randint(*ends))
LOGRANDINTS = ordered(st.integers(1, 10**9)).map(lambda ends: lograndint(*ends))
QUNIFORMS = _quniforms()
CHOICES = st.lists(VALUES, min_size=1, max_size=5, unique_by=_key).map(lambda values: choice(*values))
DOMAINS = st.one_of(UNIFORMS, LOGUNIFORMS, RANDINTS, LOGRANDINTS, QUNIFORMS, CHOICES)


@st.composite
def _spaces(draw: st.DrawFn, domains: st.SearchStrategy[Domain]) -> dict[str, Domain]:
    """Up to five parameters; some wait for a value of an earlier choice; in any order."""
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    space: dict[str, Domain] = {}
    for name in names:
        domain = draw(domains)
        parents = [(parent, choices) for parent, choices in space.items() if isinstance(choices, Choice)]
        waits = draw(st.booleans())
        if parents and waits:
            parent, choices = draw(st.sampled_from(parents))
            domain = domain.when(**{parent: draw(st.lists(st.sampled_from(choices.values), min_size=1))})
        space[name] = domain
    return dict(draw(st.permutations(list(space.items()))))


GRIDS = st.lists(VALUES, min_size=1, max_size=3, unique_by=_key).map(lambda values: grid(*values))
SPACES = _spaces(st.one_of(DOMAINS, GRIDS))
GRID_SPACES = _spaces(GRIDS)
