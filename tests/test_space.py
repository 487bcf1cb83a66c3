from __future__ import annotations

import json
import math
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.space import (
    Choice,
    Domain,
    QUniform,
    Space,
    choice,
    grid,
    is_value,
    lograndint,
    loguniform,
    quniform,
    randint,
    uniform,
)
from hpo.trial import Value
from tests.strategies import (
    CHOICES,
    DOMAINS,
    LAW,
    LOGRANDINTS,
    LOGUNIFORMS,
    NAMES,
    QUNIFORMS,
    RANDINTS,
    SEEDS,
    SPACES,
    UNIFORMS,
    VALUES,
)

NUM_DRAWS = 20_000


def draws(domain: Domain, number: int, *, seed: int = 0) -> list[Any]:
    generator = random.Random(seed)
    return [domain.draw(generator) for _ in range(number)]


# --- each domain ---


@LAW
@given(domain=st.one_of(UNIFORMS, LOGUNIFORMS, RANDINTS, LOGRANDINTS, QUNIFORMS), seed=SEEDS)
@example(domain=quniform(1 / 3, 1.0, 1 / 3), seed=0)  # 0.333333333333 would be below low
@example(domain=quniform(0.0, 1 - 1e-10, 0.1), seed=0)  # a tenth step would end above high
@example(domain=quniform(0.0, 9_999_999_999_999.0, 10.0), seed=0)
@example(domain=uniform(-1e299, 1e299), seed=0)
def test_draws_lie_in_the_range(domain: Domain, seed: int) -> None:
    low, high = vars(domain)["low"], vars(domain)["high"]
    assert domain.problem() is None
    for value in [*draws(domain, 10, seed=seed), *domain.examples()]:
        assert low <= value <= high
        assert is_value(value)


@LAW
@given(domain=st.one_of(RANDINTS, LOGRANDINTS), seed=SEEDS)
def test_integer_ranges_draw_integers(domain: Domain, seed: int) -> None:
    assert {type(value) for value in draws(domain, 10, seed=seed)} == {int}


@LAW
@given(domain=st.one_of(UNIFORMS, LOGUNIFORMS), seed=SEEDS)
def test_real_ranges_draw_floats(domain: Domain, seed: int) -> None:
    assert {type(value) for value in draws(domain, 10, seed=seed)} == {float}


@LAW
@given(domain=QUNIFORMS, seed=SEEDS)
def test_quniform_draws_multiples_counted_from_low(domain: QUniform, seed: int) -> None:
    low, q = Fraction(domain.low), Fraction(domain.q)
    for value in [*draws(domain, 10, seed=seed), *domain.examples()]:
        steps = (Fraction(value) - low) / q
        # Half a unit of the last digit of a double, counted in steps: the ranges drawn here reach 1e6.
        assert abs(steps - round(steps)) <= 1e-9 * abs(steps) + Fraction(math.ulp(2e6)) / q


@pytest.mark.parametrize(
    ("low", "high", "q", "values"),
    [
        (0.1, 0.5, 0.1, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (0.0, 0.3, 0.1, [0.0, 0.1, 0.2, 0.3]),  # 0.3 / 0.1 is 2.9999999999999996
        (0.0, 1.0, 0.3, [0.0, 0.3, 0.6, 0.9]),
        (0, 1, 0.25, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (16, 64, 16, [16, 32, 48, 64]),
        (1, 10, 4, [1, 5, 9]),
        (-0.2, 0.1, 0.1, [-0.2, -0.1, 0.0, 0.1]),
        (1e9, 1e9 + 0.0003, 0.0001, [1e9, 1e9 + 0.0001, 1e9 + 0.0002, 1e9 + 0.0003]),
        (0.0, 3e-9, 1e-9, [0.0, 1e-9, 2e-9, 3e-9]),
    ],
)
def test_quniform_draws_each_multiple_as_it_is_written(low: float, high: float, q: float, values: list[float]) -> None:
    drawn = set(draws(quniform(low, high, q), 500))  # one of five is missed with a chance of 5 * 0.8**500 < 1e-47
    assert sorted(drawn) == values
    assert {type(value) for value in drawn} == {type(values[0])}


@LAW
@given(domain=CHOICES, seed=SEEDS)
def test_choice_draws_its_values(domain: Choice, seed: int) -> None:
    assert domain.problem() is None
    assert all(any(value is given for given in domain.values) for value in draws(domain, 10, seed=seed))


def test_single_list_is_read_as_the_values() -> None:
    assert choice([1, 2]) == choice(1, 2)
    assert grid([1, 2]) == grid(1, 2)
    assert choice((1, 2)).values == ((1, 2),)
    assert choice(["adam"]).values == ("adam",)


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (None, True),
        (True, True),
        (3, True),
        (0.5, True),
        (float("inf"), False),
        (float("nan"), False),
        ("adam", True),
        ((), True),
        (("crop", ("flip", 2)), True),
        ([1], False),
        (([1],), False),
        ({}, False),
        (len, False),
        (b"x", False),
    ],
)
def test_is_value(value: object, *, holds: bool) -> None:
    assert is_value(value) is holds


# --- how often each value is drawn; seeded, so these cannot fail by chance: the stated chance is that of a new seed ---


def farthest(sample: list[float]) -> float:
    """Largest distance between the distribution of `sample` and the uniform one on [0, 1] (Kolmogorov, Smirnov)."""
    number = len(sample)
    return max(max((k + 1) / number - u, u - k / number) for k, u in enumerate(sorted(sample)))


@pytest.mark.parametrize(
    ("domain", "position"),
    [
        (uniform(-2.0, 6.0), lambda value: (value + 2) / 8),
        (loguniform(1e-5, 1e-1), lambda value: math.log10(value) / 4 + 5 / 4),
        (loguniform(3, 3000), lambda value: math.log10(value / 3) / 3),
    ],
)
def test_real_ranges_are_uniform_on_their_scale(domain: Domain, position: Any) -> None:
    """Chance of a false failure below 2 exp(-2 n 0.02**2) = 2.3e-7 (Dvoretzky, Kiefer, Wolfowitz, Massart)."""
    assert farthest([position(value) for value in draws(domain, NUM_DRAWS)]) < 0.02


def _log_shares(low: int, high: int) -> dict[int, float]:
    width = math.log((high + 0.5) / (low - 0.5))
    return {n: math.log((n + 0.5) / (n - 0.5)) / width for n in range(low, high + 1)}


@pytest.mark.parametrize(
    ("domain", "shares"),
    [
        (randint(1, 4), dict.fromkeys(range(1, 5), 1 / 4)),
        (lograndint(1, 4), _log_shares(1, 4)),
        (lograndint(8, 16), _log_shares(8, 16)),
        (quniform(0, 9, 3), dict.fromkeys((0, 3, 6, 9), 1 / 4)),
        (choice("a", "b", "c"), dict.fromkeys("abc", 1 / 3)),
        (grid("a", "b"), dict.fromkeys("ab", 1 / 2)),
    ],
)
def test_each_value_gets_its_share(domain: Domain, shares: dict[Any, float]) -> None:
    """Both ends included. Chance of a false failure below 2 exp(-2 n 0.02**2) = 2.3e-7 a value (Hoeffding)."""
    counts = Counter(draws(domain, NUM_DRAWS))
    assert counts.keys() == shares.keys()
    for value, share in shares.items():
        assert counts[value] / NUM_DRAWS == pytest.approx(share, abs=0.02)


# --- errors of domains ---

NAN, INF = math.nan, math.inf
WRONG = [
    (uniform(0.6, 0.1), r"low=0\.6 is not below high=0\.1\n  swap the two, or fix the value in `fixed`"),
    (uniform(0.5, 0.5), r"low=0\.5 is not below high=0\.5"),
    (uniform(NAN, 1), r"low=nan is not a finite number\n  give two numbers, low below high"),
    (uniform(0, INF), r"high=inf is not a finite number"),
    (uniform(0, 10**400), r"high=10+ is not a finite number"),
    (uniform(-1.7e308, 1.7e308), r"low=-1\.7e\+308 is not a finite number"),
    (uniform("0", 1), r"low='0' is not a finite number"),  # type: ignore[arg-type]
    (uniform(0, True), r"high=True is not a finite number"),
    (uniform(0, 1j), r"high=1j is not a finite number"),  # type: ignore[arg-type]
    (loguniform(0, 1), r"low=0 is not above 0\n  a logarithmic range starts above 0, e\.g\. at 1e-5"),
    (loguniform(-1e-3, 1), r"low=-0\.001 is not above 0"),
    (loguniform(1.0, 0.1), r"low=1\.0 is not below high=0\.1"),
    (loguniform(None, 1), r"low=None is not a finite number"),  # type: ignore[arg-type]
    (randint(0.5, 3), r"low=0\.5 is not an integer\n  give integers, or use uniform / loguniform"),  # type: ignore[arg-type]
    (randint(0, 3.0), r"high=3\.0 is not an integer"),  # type: ignore[arg-type]
    (randint(False, 3), r"low=False is not an integer"),
    (randint(3, 3), r"low=3 is not below high=3"),
    (lograndint(0, 8), r"low=0 is not above 0"),
    (lograndint(1, 8.5), r"high=8\.5 is not an integer"),  # type: ignore[arg-type]
    (lograndint(8, 1), r"low=8 is not below high=1"),
    (quniform(1, 0, 0.1), r"low=1 is not below high=0"),
    (quniform(0, 1, 0), r"q=0 is not a number above 0\n  q is the distance between two values"),
    (quniform(0, 1, -0.1), r"q=-0\.1 is not a number above 0"),
    (quniform(0, 1, NAN), r"q=nan is not a number above 0"),
    (quniform(0, 1, "x"), r"q='x' is not a number above 0"),  # type: ignore[arg-type]
    (quniform(0, 10, True), r"q=True is not a number above 0"),
    (quniform(0, 1, 2), r"q=2 is larger than the range 0 to 1\n  make q smaller"),
    (quniform(0, 1, INF), r"q=inf is larger than the range"),
    (quniform(0, 1, 1e-320), r"q=1e-320 cuts the range 0 to 1 into more than 1e\+12 steps\n  make q larger"),
    (choice(), r"no values are given\n  name at least one value"),
    (choice([]), r"no values are given"),
    (
        choice(1, len),  # type: ignore[arg-type]
        r"<built-in function len> is a builtin_function_or_method, which the store cannot hold\n  use num",
    ),
    (choice([1], [2]), r"\[1\] is a list, which the store cannot hold"),
    (choice(({"a": 1},), 2), r"\(\{'a': 1\},\) is a tuple, which the store cannot hold\n  use numbers"),  # type: ignore[arg-type]
    (choice(("crop", ["flip"]), ("crop",)), r"\('crop', \['flip'\]\) is a tuple, which the store cannot hold"),  # type: ignore[arg-type]
    (choice("a", "b", "a"), r"'a' is named twice\n  name each value once"),
    (grid(1, 1), r"1 is named twice"),
    (grid(), r"no values are given"),
]


@pytest.mark.parametrize(("domain", "said"), WRONG)
def test_wrong_domain(domain: Domain, said: str) -> None:
    with pytest.raises(ExperimentError, match=rf"^space\.lr: {said}"):
        Space({"lr": domain})


@pytest.mark.parametrize("wrong", [0.1, "adam", [1, 2], None])
def test_space_holds_domains_alone(wrong: object) -> None:
    with pytest.raises(
        ExperimentError, match=r"^space\.lr: .* is not a domain\n  use uniform, .*; or move it to fixed"
    ):
        Space({"lr": wrong})  # type: ignore[dict-item]


def test_one_and_true_are_two_values() -> None:
    assert choice(1, True, 1.0, "1").problem() is None


# --- descriptions ---


@LAW
@given(space=SPACES)
def test_description_is_json_and_the_same_for_equal_spaces(space: dict[str, Domain]) -> None:
    described = Space(space).describe()
    text = json.dumps(described)
    assert json.dumps(json.loads(text)) == text
    assert Space(dict(space)).describe() == described


@LAW
@given(first=DOMAINS, second=DOMAINS)
def test_descriptions_tell_domains_apart(first: Domain, second: Domain) -> None:
    def told(domain: Domain) -> str:
        return json.dumps(domain.describe())

    assert (told(first) == told(second)) == (repr(first) == repr(second))
    assert told(first.when(optimizer="sgd")) != told(first)


def test_description_of_a_conditional_domain() -> None:
    assert uniform(0.5, 0.9).when(optimizer=["sgd", "rms"], nesterov=True).describe() == {
        "domain": "uniform",
        "low": 0.5,
        "high": 0.9,
        "when": {"optimizer": ["sgd", "rms"], "nesterov": [True]},
    }


# --- conditions ---

OPTIMIZER = choice("adam", "sgd")
MOMENTUM = uniform(0.5, 0.9).when(optimizer="sgd")
NESTEROV = choice(True, False).when(optimizer="sgd", momentum_kind="heavy")


def configs(space: Space, number: int = 40, *, seed: int = 0, **fixed: Value) -> list[dict[str, Value]]:
    return [space.draw(fixed, seed=seed, trial=trial) for trial in range(number)]


@LAW
@given(space=SPACES, data=st.data())
def test_parents_come_before_their_children_in_whatever_order_they_are_named(
    space: dict[str, Domain], data: st.DataObject
) -> None:
    shuffled = dict(data.draw(st.permutations(list(space.items()))))
    ordered = list(Space(shuffled).domains)
    assert sorted(ordered) == sorted(space)
    for name, domain in space.items():
        assert all(ordered.index(parent) < ordered.index(name) for parent, _ in domain.condition)
    assert configs(Space(shuffled), 5) == configs(Space(space), 5)


def test_parameter_is_left_out_where_its_condition_does_not_hold() -> None:
    """Both kinds come up: neither does with a chance of 2 * 0.5**40 < 2e-12."""
    drawn = configs(Space({"momentum": MOMENTUM, "optimizer": OPTIMIZER}))
    assert {("momentum" in config, config["optimizer"]) for config in drawn} == {(True, "sgd"), (False, "adam")}


def test_condition_on_a_parameter_that_is_itself_left_out() -> None:
    space = Space(
        {"nesterov": choice(1, 2).when(kind=["a", "b"]), "kind": choice("a", "b").when(on=True), "on": OPTIMIZER}
    )
    assert all(config.keys() == {"on"} for config in configs(space))


def test_condition_on_a_fixed_value() -> None:
    space = Space({"momentum": MOMENTUM})
    space.check_conditions({"optimizer": "sgd"})
    assert all("momentum" in config for config in configs(space, optimizer="sgd"))
    assert all("momentum" not in config for config in configs(space, optimizer="adam"))


def test_all_conditions_have_to_hold() -> None:
    assert NESTEROV.active({"optimizer": "sgd", "momentum_kind": "heavy"})
    assert not NESTEROV.active({"optimizer": "adam", "momentum_kind": "heavy"})
    assert not NESTEROV.active({"optimizer": "sgd"})
    assert uniform(0, 1).when(a=1).when(b=2).condition == (("a", (1,)), ("b", (2,)))


def test_condition_takes_a_list_of_values_and_a_tuple_as_one_value() -> None:
    assert uniform(0, 1).when(a=["x", "y"]).active({"a": "y"})
    domain = uniform(0, 1).when(augment=("crop", "flip"))
    assert domain.active({"augment": ("crop", "flip")})
    assert not domain.active({"augment": "crop"})


def test_conditions_in_a_circle() -> None:
    circle = {"b": choice(1, 2).when(a=1), "a": choice(1, 2).when(b=1), "c": choice(1)}
    with pytest.raises(
        ExperimentError, match=r"^space: the conditions of a, b depend on each other in a circle\n  let"
    ):
        Space(circle)
    with pytest.raises(ExperimentError, match=r"the conditions of a depend on each other in a circle"):
        Space({"a": choice(1, 2).when(a=1)})


def test_condition_on_nobody() -> None:
    space = Space({"momentum": MOMENTUM, "lr": uniform(0, 1)})
    with pytest.raises(
        ExperimentError,
        match=r"^space\.momentum: its condition names 'optimizer', which is neither in space nor in fixed\n"
        r"  valid names: batch_size, lr$",
    ):
        space.check_conditions({"batch_size": 128})


@pytest.mark.parametrize(
    ("domains", "fixed"), [({"optimizer": choice("adam", "rms")}, {}), ({}, {"optimizer": "adam"})]
)
def test_condition_on_a_value_that_never_happens(domains: dict[str, Domain], fixed: dict[str, Value]) -> None:
    space = Space({**domains, "momentum": MOMENTUM})
    with pytest.raises(
        ExperimentError,
        match=r"^space\.momentum: its condition waits for optimizer='sgd', which never happens\n"
        r"  optimizer is one of: 'adam'",
    ):
        space.check_conditions(fixed)


def test_condition_on_no_value() -> None:
    space = Space({"optimizer": OPTIMIZER, "momentum": uniform(0, 1).when(optimizer=[])})
    with pytest.raises(
        ExperimentError,
        match=r"^space\.momentum: its condition names no value of optimizer, so it would never exist\n  name a value: ",
    ):
        space.check_conditions({})


def test_condition_on_a_range_is_not_checked() -> None:
    Space({"width": randint(1, 9), "bias": choice(1, 2).when(width=3)}).check_conditions({})


# --- draws ---


@LAW
@given(space=SPACES, name=NAMES, domain=DOMAINS, seed=SEEDS)
def test_another_parameter_changes_nothing_for_the_others(
    space: dict[str, Domain], name: str, domain: Domain, seed: int
) -> None:
    others = {other: kept for other, kept in space.items() if other != name}
    if any(parent == name for kept in others.values() for parent, _ in kept.condition):
        return
    before = configs(Space(others), 5, seed=seed)
    after = configs(Space({name: domain, **others}), 5, seed=seed)
    assert [{key: config[key] for key in config if key != name} for config in after] == before


@LAW
@given(space=SPACES, seed=SEEDS, order=st.permutations(range(12)))
def test_draws_do_not_depend_on_the_order_of_the_trials(space: dict[str, Domain], seed: int, order: list[int]) -> None:
    asked = {trial: Space(space).draw({}, seed=seed, trial=trial) for trial in order}
    assert [asked[trial] for trial in range(12)] == configs(Space(space), 12, seed=seed)


@LAW
@given(seed=SEEDS)
def test_trials_names_and_seeds_differ(seed: int) -> None:
    """Two equal doubles among 40 have a chance below 1e-12."""
    space = Space({"a": uniform(0, 1), "b": uniform(0, 1)})
    drawn = [value for s in (seed, seed + 1) for config in configs(space, 10, seed=s) for value in config.values()]
    assert len(set(drawn)) == 40


def test_draw_keeps_fixed_values_and_the_cell() -> None:
    space = Space({"a": grid(1, 2), "b": uniform(0, 1)})
    assert space.draw({"c": 3}, seed=0, trial=0, cell={"a": 2, "b": 0.5}) == {"c": 3, "a": 2, "b": 0.5}


def test_draw_leaves_out_a_cell_value_whose_condition_does_not_hold() -> None:
    space = Space({"optimizer": OPTIMIZER, "momentum": MOMENTUM})
    assert space.draw({}, seed=0, trial=0, cell={"optimizer": "adam", "momentum": 0.7}) == {"optimizer": "adam"}


def test_draws_stay_what_they_are() -> None:
    """Stored runs are resumed by drawing again: other values here would change what was tried."""
    space = Space(
        {
            "lr": loguniform(1e-4, 1e-1),
            "dropout": uniform(0.0, 0.6),
            "width": randint(8, 64),
            "depth": lograndint(1, 64),
            "decay": quniform(0.0, 1.0, 0.1),
            "optimizer": choice("adam", "sgd"),
        }
    )
    assert space.draw({}, seed=0, trial=17) == {
        "lr": 0.0015167347825736414,
        "dropout": 0.24844209412481602,
        "width": 55,
        "depth": 34,
        "decay": 0.8,
        "optimizer": "adam",
    }


# --- cells ---


def test_cells_cross_the_grids_alone() -> None:
    space = Space({"a": grid(1, 2), "x": uniform(0, 1), "b": grid("p", "q")})
    assert list(space.grids) == ["a", "b"]
    crossed = [{"a": 1, "b": "p"}, {"a": 1, "b": "q"}, {"a": 2, "b": "p"}, {"a": 2, "b": "q"}]
    assert space.cells({}) == crossed


def test_no_grid_is_one_empty_cell() -> None:
    assert Space({"x": uniform(0, 1)}).cells({}) == [{}]


def test_conditional_grid_is_crossed_where_it_exists() -> None:
    space = Space({"momentum": grid(0.5, 0.9).when(optimizer="sgd"), "optimizer": grid("adam", "sgd")})
    assert space.cells({}) == [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "momentum": 0.5},
        {"optimizer": "sgd", "momentum": 0.9},
    ]


@pytest.mark.parametrize(("optimizer", "cells"), [("adam", [{}]), ("sgd", [{"momentum": 0.5}, {"momentum": 0.9}])])
def test_grid_that_waits_for_a_fixed_value(optimizer: str, cells: list[dict[str, Value]]) -> None:
    assert Space({"momentum": grid(0.5, 0.9).when(optimizer="sgd")}).cells({"optimizer": optimizer}) == cells


def test_grid_that_waits_for_a_drawn_value_is_crossed_throughout() -> None:
    space = Space({"optimizer": OPTIMIZER, "momentum": grid(0.5, 0.9).when(optimizer="sgd")})
    assert space.cells({}) == [{"momentum": 0.5}, {"momentum": 0.9}]


def test_grid_that_waits_for_a_grid_and_a_drawn_value() -> None:
    space = Space(
        {
            "optimizer": grid("adam", "sgd"),
            "kind": choice("heavy", "light"),
            "momentum": grid(0.5, 0.9).when(optimizer="sgd", kind="heavy"),
        }
    )
    assert space.cells({}) == [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "momentum": 0.5},
        {"optimizer": "sgd", "momentum": 0.9},
    ]


def test_grid_below_a_drawn_parameter_that_a_grid_rules_out() -> None:
    space = Space(
        {
            "optimizer": grid("adam", "sgd"),
            "kind": choice("heavy", "light").when(optimizer="sgd"),
            "momentum": grid(0.5, 0.9).when(kind="heavy"),
        }
    )
    assert space.cells({}) == [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "momentum": 0.5},
        {"optimizer": "sgd", "momentum": 0.9},
    ]


@LAW
@given(space=SPACES)
def test_cells_are_different_and_every_value_is_in_one(space: dict[str, Domain]) -> None:
    made = Space(space)
    cells = made.cells({})
    assert len({repr(cell) for cell in cells}) == len(cells)
    for name, domain in made.grids.items():
        if not domain.condition:
            assert {repr(cell[name]) for cell in cells} == {repr(value) for value in domain.values}


@LAW
@given(value=VALUES, others=st.lists(VALUES, max_size=2))
def test_json_of_a_drawn_value_keeps_it(value: Value, others: list[Value]) -> None:
    assert json.loads(json.dumps(Choice((value, *others)).describe()))["values"][0] == _listed(value)


def _listed(value: Value) -> Any:
    return [_listed(part) for part in value] if isinstance(value, tuple) else value


def test_examples_are_what_has_to_be_checked_before_a_run() -> None:
    assert uniform(0.0, 1.0).examples() == (0.0, 1.0)
    assert choice("a", "b", "c").examples() == ("a", "b", "c")
    assert quniform(0, 10, 4).examples() == (0, 8)
