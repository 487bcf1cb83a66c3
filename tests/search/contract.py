"""The laws of every search whose proposals depend on the trial's number alone, as a class to inherit."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.protocols import Proposer, Search
from hpo.space import Domain, Space
from hpo.trial import Ended, Report, Value
from tests.strategies import LAW, SEEDS

NUM_TRIALS = 24
SPACES = st.runner().flatmap(lambda contract: contract.spaces)


class ProposerContract:
    """Laws of a search and of the proposer that it begins.

    Attributes:
        search: The search.
        spaces: Draws a space that it serves; no name of it may be in `fixed`.
    """

    search: Search
    spaces: st.SearchStrategy[dict[str, Domain]]
    fixed: ClassVar[Mapping[str, Value]] = {"batch_size": 128, "augment": ("crop", "flip"), "clip": None}

    def begin(self, domains: Mapping[str, Domain], seed: int) -> Proposer:
        return self.search.begin(Space(domains), fixed=self.fixed, seed=seed)

    def proposals(self, domains: Mapping[str, Domain], seed: int) -> list[dict[str, Any] | None]:
        proposer = self.begin(domains, seed)
        return [proposer.propose(trial) for trial in range(NUM_TRIALS)]

    @LAW
    @given(domains=SPACES, seed=SEEDS)
    def test_space_passes_the_check(self, domains: dict[str, Domain], seed: int) -> None:
        self.search.check()
        self.search.check_space(Space(domains), trials=NUM_TRIALS)

    @LAW
    @given(domains=SPACES, seed=SEEDS)
    def test_fixed_values_are_in_every_proposal(self, domains: dict[str, Domain], seed: int) -> None:
        for config in filter(None, self.proposals(domains, seed)):
            assert self.fixed.items() <= config.items()
            assert config.keys() <= self.fixed.keys() | domains.keys()

    @LAW
    @given(domains=SPACES, seed=SEEDS)
    def test_parameter_is_there_where_its_condition_holds(self, domains: dict[str, Domain], seed: int) -> None:
        for config in filter(None, self.proposals(domains, seed)):
            assert {name for name, domain in domains.items() if domain.active(config)} == config.keys() - self.fixed

    @LAW
    @given(domains=SPACES, seed=SEEDS)
    def test_proposals_are_json(self, domains: dict[str, Domain], seed: int) -> None:
        for config in self.proposals(domains, seed):
            again = json.loads(json.dumps(config))
            assert again is config is None or json.dumps(again) == json.dumps(config)

    @pytest.mark.parametrize("num_workers", [1, 2, 8])
    @LAW
    @given(domains=SPACES, seed=SEEDS, order=st.randoms(use_true_random=False))
    def test_proposals_do_not_depend_on_the_number_of_workers(
        self, num_workers: int, domains: dict[str, Domain], seed: int, order: random.Random
    ) -> None:
        """Workers finish in any order, and each trial may be asked for by a proposer of its own."""
        proposers = [self.begin(domains, seed) for _ in range(num_workers)]
        running: list[int] = []
        found: dict[int, Any] = {}
        for trial in range(NUM_TRIALS):
            running.append(trial)
            if len(running) == num_workers:
                found_now = running.pop(order.randrange(len(running)))
                found[found_now] = order.choice(proposers).propose(found_now)
        found |= {trial: order.choice(proposers).propose(trial) for trial in running}
        assert [found[trial] for trial in range(NUM_TRIALS)] == self.proposals(domains, seed)

    @LAW
    @given(domains=SPACES, seed=SEEDS)
    def test_reports_and_ends_do_not_matter(self, domains: dict[str, Domain], seed: int) -> None:
        proposer, proposed = self.begin(domains, seed), []
        for trial in range(NUM_TRIALS):
            proposed.append(proposer.propose(trial))
            proposer.on_report(Report(trial, 1, float(trial)))
            proposer.on_end(Ended(trial, 1, float(trial)))
        assert proposed == self.proposals(domains, seed)

    @LAW
    @given(domains=SPACES, seed=SEEDS)
    def test_asking_twice_gives_equal_values_of_ones_own(self, domains: dict[str, Domain], seed: int) -> None:
        proposer = self.begin(domains, seed)
        first = proposer.propose(0)
        assert first is not None
        kept = dict(first)
        first["batch_size"] = -1  # what a caller does to its configuration is no concern of the next one
        assert proposer.propose(0) == kept

    @LAW
    @given(domains=SPACES, seed=SEEDS)
    def test_number_of_configurations_is_where_it_ends(self, domains: dict[str, Domain], seed: int) -> None:
        number = self.search.num_configurations(Space(domains), self.fixed)
        proposer = self.begin(domains, seed)
        if number is None:
            assert proposer.propose(10**6) is not None
        else:
            assert [proposer.propose(trial) is not None for trial in (0, number - 1)] == [True, True]
            assert [proposer.propose(trial) for trial in (number, number + 1, 10**6)] == [None, None, None]

    def test_description_is_json(self) -> None:
        described = self.search.describe()
        assert json.loads(json.dumps(described)) == described
        assert dataclasses.replace(self.search).describe() == described  # type: ignore[type-var]
        assert described["class"] == type(self.search).__name__.lower()
