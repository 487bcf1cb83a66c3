"""One shard in memory, and what is kept of those before; any other is read again, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.training.data.epochs import Indices, split, to_device
from hpo.training.learning import Batch

_AT_ONCE = 1024
"""Samples that are copied at a time, so that what is kept is in memory once."""


class HeldShards:
    """Inputs and targets of one shard, and of some samples of the shards before.

    Samples have one number each over all shards (`ShardPlan`). To go on to the next shard, only that one is read; for
    what was thinned out before, as when another trial begins, or one goes on in the midst of its shards, the shards
    that it is of are read again, each let go before the next.

    Args:
        starts: Number of the first sample of each shard, and one more: of all samples.
        read: Gives the inputs (N, …) and targets (N, …) of a shard, from 0, where they are to be kept.
    """

    def __init__(self, starts: Sequence[int], read: Callable[[int], Batch]) -> None:
        self._starts, self._read = np.asarray(starts, np.int64), read
        self._index: int | None = None
        self._shard: Batch | None = None
        self._kept_rows: Indices = np.empty(0, np.int64)
        self._kept: Batch | None = None

    @property
    def num_samples(self) -> int:
        """Of all shards."""
        return int(self._starts[-1])

    def bring(self, index: int, kept: Indices) -> None:
        """Have the shard `index` (from 0), and of those before it the samples `kept` (ascending), no others.

        Raises:
            DataError: A shard cannot be read.
        """
        if not np.array_equal(kept, self._kept_rows):
            self._keep(kept)
        if self._index != index:
            self._take_up(index)

    def batches(self, rows: Indices, batch_size: int) -> Iterator[Batch]:
        """Samples that are here, in this order, where they are kept; the last batch as small as it comes."""
        places_N = torch.from_numpy(self._places(rows))
        if self._shard is not None:
            places_N = to_device(places_N, self._shard[0].device)
        yield from map(self._at, split(places_N, batch_size) if len(rows) else ())

    def _take_up(self, index: int) -> None:
        self._index, self._shard = None, None  # its memory is free before the next one needs it
        self._shard = self._read(index)
        self._index = index

    def _keep(self, rows: Indices) -> None:
        """Collect samples from what is here, and the others from their shards."""
        here = self._is_here(rows)
        kept = self._copied(None, rows, np.flatnonzero(here))
        self._kept_rows, self._kept = np.empty(0, np.int64), None
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(shards[~here]):
            self._take_up(int(index))
            kept = self._copied(kept, rows, np.flatnonzero(~here & (shards == index)))
        self._kept_rows, self._kept = rows, kept

    def _copied(self, into: Batch | None, rows: Indices, chosen: Indices) -> Batch | None:
        """Room for samples, with those that are chosen of them filled in; they are here."""
        for start in range(0, len(chosen), _AT_ONCE):
            own = chosen[start : start + _AT_ONCE]
            parts = self._at(torch.from_numpy(self._places(rows[own])))
            if into is None:
                inputs, targets = (part.new_empty((len(rows), *part.shape[1:])) for part in parts)
                into = inputs, targets
            for room, part in zip(into, parts, strict=True):
                room.index_copy_(0, torch.from_numpy(own).to(room.device), part)
        return into

    def _is_here(self, rows: Indices) -> NDArray[np.bool_]:
        if self._index is None:
            return np.zeros(len(rows), np.bool_)
        first, end = self._starts[self._index : self._index + 2]
        here: NDArray[np.bool_] = np.isin(rows, self._kept_rows) | ((rows >= first) & (rows < end))
        return here

    def _places(self, rows: Indices) -> Indices:
        """Places within the shard, and after its end within what is kept."""
        first, end = self._starts[self._index : self._index + 2] if self._index is not None else (0, 0)
        kept = (end - first) + np.searchsorted(self._kept_rows, rows)
        return np.where((rows >= first) & (rows < end), rows - first, kept)

    def _at(self, places_B: Tensor) -> Batch:
        if self._shard is None:
            raise RuntimeError("bring() comes before batches()")
        (inputs, targets), kept = self._shard, self._kept
        places_B = places_B.to(inputs.device)
        if kept is None:
            return inputs.index_select(0, places_B), targets.index_select(0, places_B)
        return _gathered(inputs, kept[0], places_B), _gathered(targets, kept[1], places_B)


def _gathered(shard: Tensor, kept: Tensor, places_B: Tensor) -> Tensor:
    """Rows of the two as if the second followed the first; the host does not wait for the device."""
    own = shard.index_select(0, places_B.clamp(max=len(shard) - 1))
    old = kept.index_select(0, (places_B - len(shard)).clamp(min=0, max=len(kept) - 1))
    return torch.where((places_B >= len(shard)).view(-1, *[1] * (own.dim() - 1)), old, own)
