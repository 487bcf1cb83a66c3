"""Every crossing once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpo.errors import ExperimentError
from hpo.protocols import Proposer, Search
from hpo.search.random_search import RandomProposer
from hpo.space import Choice, Space
from hpo.trial import Config


@dataclass(frozen=True)
class GridSearch(Search):
    """Tries every crossing of the space's grids once, the last-named parameter turning fastest.

    Every domain has to be a `grid`; to cross some and draw the others, leave `search` out.
    """

    def check_space(self, space: Space, *, trials: int | None) -> None:
        for name, domain in space.domains.items():
            if not isinstance(domain, Choice) or name not in space.grids:
                raise ExperimentError(
                    f"{type(domain).__name__.lower()} cannot be crossed by GridSearch",
                    where=f"space.{name}",
                    remedy="write grid(…), or leave `search` out to cross the grids and draw the rest",
                )

    def num_configurations(self, space: Space, fixed: Config) -> int:
        return len(space.cells(fixed))

    def begin(self, space: Space, *, fixed: Config, seed: int) -> GridProposer:
        return GridProposer(space, fixed=fixed, seed=seed)


class GridProposer(Proposer):
    """Goes through the cells once."""

    def __init__(self, space: Space, *, fixed: Config, seed: int) -> None:
        self._size = len(space.cells(fixed))
        self._draws = RandomProposer(space, fixed=fixed, seed=seed)

    def propose(self, trial: int) -> dict[str, Any] | None:
        return self._draws.propose(trial) if trial < self._size else None
