"""Independent draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpo.protocols import Proposer, Search
from hpo.space import Space
from hpo.trial import Config


@dataclass(frozen=True)
class RandomSearch(Search):
    """Draws every configuration by itself, from a stream of the trial's number.

    So the proposals of a seed do not depend on how many workers ask, and trial 17 is the same configuration
    whether 20 or 200 trials are run. A `grid` in the space is taken in turn (see `GridSearch`).
    """

    def begin(self, space: Space, *, fixed: Config, seed: int) -> RandomProposer:
        return RandomProposer(space, fixed=fixed, seed=seed)


class RandomProposer(Proposer):
    """Draws from the space; grids are taken in turn, over and over."""

    def __init__(self, space: Space, *, fixed: Config, seed: int) -> None:
        self._space, self._fixed, self._seed = space, fixed, seed
        self._cells = space.cells(fixed) if space.grids else None

    def propose(self, trial: int) -> dict[str, Any] | None:
        cell = self._cells[trial % len(self._cells)] if self._cells else None
        return self._space.draw(self._fixed, seed=self._seed, trial=trial, cell=cell)
