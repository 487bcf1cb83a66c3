from __future__ import annotations

from hypothesis import given

from hpo.search import RandomSearch
from hpo.space import Domain, Space, choice, grid, loguniform, uniform
from tests.search.contract import ProposerContract
from tests.strategies import LAW, SEEDS, SPACES


class TestRandomSearch(ProposerContract):
    search = RandomSearch()
    spaces = SPACES


@LAW
@given(seed=SEEDS)
def test_trials_differ_and_so_do_seeds(seed: int) -> None:
    """Two equal doubles among 40 have a chance below 1e-12."""
    space = Space({"lr": loguniform(1e-5, 1.0)})
    drawn = [
        RandomSearch().begin(space, fixed={}, seed=other).propose(trial)
        for other in (seed, seed + 1)
        for trial in range(20)
    ]
    assert len({config["lr"] for config in drawn if config}) == 40


def test_grids_are_taken_in_turn_and_the_rest_is_drawn() -> None:
    domains: dict[str, Domain] = {"x": uniform(0, 1), "a": grid(1, 2), "b": grid("p", "q", "r")}
    proposer = RandomSearch().begin(Space(domains), fixed={}, seed=0)
    configs = [config for trial in range(12) if (config := proposer.propose(trial))]
    crossings = [(a, b) for a in (1, 2) for b in ("p", "q", "r")]
    assert [(config["a"], config["b"]) for config in configs] == crossings * 2
    assert len({config["x"] for config in configs}) == 12


def test_any_number_of_configurations() -> None:
    assert RandomSearch().num_configurations(Space({"a": choice(1)}), {}) is None


def test_empty_space_proposes_the_fixed_values() -> None:
    assert RandomSearch().begin(Space({}), fixed={"lr": 0.1}, seed=0).propose(3) == {"lr": 0.1}
