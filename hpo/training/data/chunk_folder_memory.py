"""What is kept of shards that are gone: which samples, from a seed and the shards' sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from hpo.seeds import derive
from hpo.training.data.chunks import InChunks, shuffled
from hpo.training.data.epochs import Indices
from hpo.training.settings import ChunkSettings, DataSettings


class ShardPlan:
    """Which samples of shards are trained on, held out, and kept when the next shard comes.

    Samples have one number each over all shards: those of the first shard come first. The samples of each are put into
    a random order, of which the first part trains and the rest is held out; of either, the first ones are kept.

    Laws: what is kept of a shard with the next one is among what was kept with the one before; it depends on no later
    shard; and it is never more than `replay` times the train samples, and once the held-out samples, of the largest
    shard so far.

    Args:
        sizes: Samples of each shard, at least 2.
        settings: How many of each train and are held out; the seed is `split_seed`.
        replay: In [0, 1].
    """

    def __init__(self, sizes: Sequence[int], settings: DataSettings, *, replay: float) -> None:
        self.sizes, self.replay = tuple(sizes), replay
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self._seed = settings.split_seed
        self._first_held_out = [min(max(round(settings.train_ratio * size), 1), size - 1) for size in self.sizes]
        parts = zip(self.sizes, self._first_held_out, strict=True)
        self._num_held_out = [min(settings.val_samples or size, size - first) for size, first in parts]
        self._num_train = [min(settings.train_samples or first, first) for first in self._first_held_out]
        self._beginnings: dict[int, tuple[Indices, Indices]] = {}

    def train(self, index: int) -> Indices:
        """(N,) int64, ascending: the samples of a shard (from 0) that are trained on."""
        return np.sort(self._order(index)[: self._num_train[index]])

    def held_out(self, index: int) -> Indices:
        """(M,) int64, ascending: the samples of a shard that are held out."""
        first = self._first_held_out[index]
        return np.sort(self._order(index)[first : first + self._num_held_out[index]])

    def kept(self, index: int) -> Indices:
        """(K,) int64, ascending: the samples of earlier shards that are there together with a shard."""
        return np.sort(np.concatenate(self._kept(index)))

    def measured(self, chunk: int) -> dict[str, Indices]:
        """What is held out, as `Source.parts` has it, with chunks from 1."""
        old = {"old": self._kept(chunk - 1)[1]} if chunk > 1 else {}
        return {**old, "new": self.held_out(chunk - 1)}

    def epochs(self, settings: ChunkSettings, *, seed: int) -> InChunks:
        """Which samples each epoch of a trial trains on."""
        return InChunks(
            self._num_train,
            self.train,
            num_old=[sum(numbers) for numbers in self._num_kept[0]],
            old=lambda index: self._kept(index)[0],
            epochs_per_chunk=settings.epochs_per_chunk,
            replay=self.replay,
            seed=seed,
        )

    def _order(self, index: int) -> Indices:
        own = np.arange(self.starts[index], self.starts[index + 1])
        return shuffled(own, derive(self._seed, "shard", index))

    def _kept(self, index: int) -> tuple[Indices, Indices]:
        """The train and the held-out samples, each ascending, that are there together with a shard.

        Their orders are not drawn again while a trial goes on to the next shard.
        """
        numbers = [*zip(self._num_kept[0][index], self._num_kept[1][index], strict=True)]
        begun, self._beginnings = self._beginnings, {}
        for shard, (num_train, num_held_out) in enumerate(numbers):
            train, held_out = begun.get(shard, (np.empty(0, np.int64),) * 2)
            if len(train) < num_train or len(held_out) < num_held_out:
                order = self._order(shard)
                train, held_out = order, order[self._first_held_out[shard] :]
            self._beginnings[shard] = train[:num_train].copy(), held_out[:num_held_out].copy()
        found = [*self._beginnings.values()]
        none = np.empty(0, np.int64)
        return (
            np.sort(np.concatenate([none, *(train for train, _ in found)])),
            np.sort(np.concatenate([none, *(held_out for _, held_out in found)])),
        )

    @cached_property
    def _num_kept(self) -> tuple[list[list[int]], list[list[int]]]:
        """Train and held-out samples of each earlier shard that are there together with each."""
        return _thinned(self._num_train, self.replay), _thinned(self._num_held_out, 1.0)


def _thinned(sizes: Sequence[int], ratio: float) -> list[list[int]]:
    kept: list[list[int]] = [[]]
    for index in range(1, len(sizes)):
        room = round(ratio * max(sizes[: index + 1]))
        kept.append(evenly([*kept[-1], sizes[index - 1]], room))
    return kept


def evenly(most: Sequence[int], room: int) -> list[int]:
    """How many of each, as even as can be, with at most `most` of each and `room` of all together."""
    given = [0] * len(most)
    for place, index in enumerate(sorted(range(len(most)), key=lambda index: most[index])):
        given[index] = min(most[index], room // (len(most) - place))
        room -= given[index]
    return given
