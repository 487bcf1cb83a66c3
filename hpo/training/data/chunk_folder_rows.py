"""Shards of tables: read block by block, normalised, and given to a trial from the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.training.data.chunk_folder_files import TableShard
from hpo.training.data.chunk_folder_held import HeldShards
from hpo.training.data.epochs import Drawn, EpochBatches, Indices
from hpo.training.data.rows import Scaling
from hpo.training.learning import Batch

Numbers = NDArray[np.float64]


class Statistics:
    """Mean and standard deviation (F,) of the features, over some rows of a shard.

    Args:
        shard: The shard, of which a block at a time is read.
        num_samples: Rows in it.
        rows: (M,) which rows; None: all.
    """

    def __init__(self, shard: TableShard, *, num_samples: int, rows: Indices | None = None) -> None:
        num_features = shard.num_features
        chosen = np.ones(num_samples, np.bool_)
        if rows is not None:
            chosen[:] = False
            chosen[rows] = True
        count, self.mean, squares = (np.zeros(num_features) for _ in range(3))
        for block in shard.blocks():
            values, columns = block.values[chosen[block.rows]], block.columns
            if not len(values):
                continue
            # T. Chan, G. Golub, R. LeVeque, Updating Formulae, 1979: means and squares of two sets make those of both.
            mean, total = values.mean(0), count[columns] + len(values)
            apart = mean - self.mean[columns]
            squares[columns] += np.square(values - mean).sum(0) + apart**2 * count[columns] * len(values) / total
            self.mean[columns] += apart * len(values) / total
            count[columns] = total
        self.std: Numbers = np.sqrt(squares / np.maximum(count, 1))

    @property
    def unit(self) -> Numbers:
        """The deviation, and 1 where all values are equal but for rounding."""
        return np.where(self.std > 1e-12 * np.abs(self.mean), self.std, 1.0)


def stored(shard: TableShard, *, num_samples: int, over: Statistics) -> NDArray[np.float32]:
    """(N, F): what lies on the device: near 0 and 1, where float32 is fine enough for years and for prices."""
    inputs = np.empty((num_samples, shard.num_features), np.float32)
    unit = over.unit
    for block in shard.blocks():
        columns = block.columns
        inputs[block.rows, columns] = (block.values - over.mean[columns]) / unit[columns]
    return inputs


@dataclass(frozen=True, eq=False)
class RowBuffers:
    """The batch within reach, in tensors that a captured step reads again and again; kept for all trials.

    Attributes:
        inputs_BF: float32, not yet normalised for the trial.
        targets: (B,) int64 or (B, K) float32.
        scaling: How they are.
    """

    inputs_BF: Tensor
    targets: Tensor
    scaling: Scaling


class ShardRows:
    """The rows of one shard, and what is kept of those before.

    Args:
        held: Inputs (N, F) float32, and targets (N,) int64 or (N, K) float32, on the device.
        num_features: F.
        no_targets: No targets, of the others' shape and type.
        device: Where.
    """

    def __init__(self, held: HeldShards, num_features: int, no_targets: NDArray[Any], *, device: torch.device) -> None:
        self.held, self.device, self._num_features = held, device, num_features
        self._no_targets = torch.from_numpy(no_targets)
        self._buffers: dict[int, RowBuffers] = {}

    def buffers(self, batch_size: int) -> RowBuffers:
        """The one set of buffers for this many samples."""
        if batch_size not in self._buffers:
            targets = self._no_targets
            self._buffers[batch_size] = RowBuffers(
                inputs_BF=torch.zeros((batch_size, self._num_features), device=self.device),
                targets=torch.zeros((batch_size, *targets.shape[1:]), dtype=targets.dtype, device=self.device),
                scaling=Scaling.none(self._num_features, self.device),
            )
        return self._buffers[batch_size]

    def in_order(self, rows: Indices, *, batch_size: int, scaling: Scaling) -> Iterable[Batch]:
        """These rows, which are there, in their order, the last batch as small as it comes."""
        for inputs, targets in self.held.batches(rows, batch_size):
            yield scaling.of(inputs), targets


class ShardRowBatches(EpochBatches):
    """Training batches of rows that come in shards.

    Args:
        data: The rows.
        kept: What is kept with each shard (from 0) of those before.
        scaling: How inputs are normalised.
        how: As `EpochBatches` has it.
    """

    def __init__(self, data: ShardRows, *, kept: Callable[[int], Indices], scaling: Scaling, **how: Any) -> None:
        super().__init__(**how)
        self._data, self._kept, self._scaling = data, kept, scaling
        self._buffers = data.buffers(self.own_size)

    @property
    def place(self) -> object:
        return id(self._buffers)  # kept by the rows, so no other will have it

    def batch(self) -> Batch:
        return self._buffers.scaling.of(self._buffers.inputs_BF), self._buffers.targets

    def feed(self, drawn: Drawn) -> Iterator[bool]:
        index = (self.chunk or 1) - 1
        self._data.held.bring(index, self._kept(index))
        self._buffers.scaling.take(self._scaling)
        for inputs, targets in self._data.held.batches(drawn.order_N.numpy(), self.own_size):
            self._buffers.inputs_BF.copy_(inputs)
            self._buffers.targets.copy_(targets)
            yield True
