from __future__ import annotations

import pytest
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.search import GridSearch
from hpo.space import Domain, Space, choice, grid, loguniform
from tests.search.contract import ProposerContract
from tests.strategies import GRID_SPACES

SGD = {"optimizer": grid("adam", "sgd"), "momentum": grid(0.5, 0.9).when(optimizer="sgd")}


class TestGridSearch(ProposerContract):
    search = GridSearch()
    spaces = GRID_SPACES


class TestConditionalGrid(ProposerContract):
    search = GridSearch()
    spaces = st.just(SGD)


def proposed(domains: dict[str, Domain]) -> list[dict[str, object]]:
    proposer = GridSearch().begin(Space(domains), fixed={}, seed=0)
    return [config for trial in range(100) if (config := proposer.propose(trial)) is not None]


def test_last_named_parameter_turns_fastest() -> None:
    assert proposed({"a": grid(1, 2), "b": grid("x", "y")}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_conditional_grid_is_crossed_where_it_exists() -> None:
    assert proposed(SGD) == [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "momentum": 0.5},
        {"optimizer": "sgd", "momentum": 0.9},
    ]
    assert GridSearch().num_configurations(Space(SGD), {}) == 3


@pytest.mark.parametrize(("domain", "kind"), [(loguniform(1e-4, 1.0), "loguniform"), (choice(1, 2), "choice")])
def test_only_grids_can_be_crossed(domain: Domain, kind: str) -> None:
    with pytest.raises(ExperimentError, match=rf"^space.lr: {kind} cannot be crossed by GridSearch\n  write grid\("):
        GridSearch().check_space(Space({"a": grid(1), "lr": domain}), trials=None)
