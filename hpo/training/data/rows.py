"""Samples that lie on the device as tensors: batches are drawn on the host and computed there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.training.data.epochs import Drawn, EpochBatches, EpochPlan, Indices, split, to_device
from hpo.training.data.samples import Samples
from hpo.training.learning import Batch
from hpo.training.share import WHOLE, Share


@dataclass(frozen=True, eq=False)
class Scaling:
    """How inputs are normalised: (input - mean) * factor.

    Attributes:
        mean_F: (F,) float32.
        factor_F: (F,) float32.
    """

    mean_F: Tensor
    factor_F: Tensor

    @classmethod
    def none(cls, num_features: int, device: torch.device) -> Scaling:
        """One that changes nothing."""
        return cls(torch.zeros(num_features, device=device), torch.ones(num_features, device=device))

    def of(self, inputs_BF: Tensor) -> Tensor:
        """The inputs, normalised."""
        return (inputs_BF - self.mean_F) * self.factor_F

    def take(self, other: Scaling) -> None:
        """Become equal to the other one, in the same tensors."""
        self.mean_F.copy_(other.mean_F)
        self.factor_F.copy_(other.factor_F)


@dataclass(frozen=True, eq=False)
class Buffers:
    """Which batch is within reach, in tensors that a captured step reads again and again; kept for all trials.

    Attributes:
        rows_B: int64.
        scaling: None where inputs are taken as they are.
    """

    rows_B: Tensor
    scaling: Scaling | None


class Rows:
    """One part of some samples on a device, put there once in a process and shared by all of its trials.

    Args:
        samples: Floating-point numbers become float32, all others int64.
        device: Where.
        is_scaled: Whether the streams of it normalise inputs.
    """

    def __init__(self, samples: Samples, *, device: torch.device, is_scaled: bool = False) -> None:
        self.device, self.is_scaled = device, is_scaled
        self.inputs, self.targets = (_tensor(array).to(device) for array in (samples.inputs, samples.targets))
        self._buffers: dict[int, Buffers] = {}

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def nbytes(self) -> int:
        """What they take on the device."""
        return self.inputs.nbytes + self.targets.nbytes

    def buffers(self, batch_size: int) -> Buffers:
        """The one set of buffers for this many samples."""
        if batch_size not in self._buffers:
            self._buffers[batch_size] = Buffers(
                rows_B=torch.zeros(batch_size, dtype=torch.int64, device=self.device),
                scaling=Scaling.none(self.inputs.shape[1], self.device) if self.is_scaled else None,
            )
        return self._buffers[batch_size]

    def take(self, rows_B: Tensor, scaling: Scaling | None) -> Batch:
        """Inputs (B, …), normalised where that is asked for, and targets (B, …) of some rows."""
        inputs = self.inputs.index_select(0, rows_B)
        return inputs if scaling is None else scaling.of(inputs), self.targets.index_select(0, rows_B)

    def in_order(self, indices: Indices, *, batch_size: int, scaling: Scaling | None = None) -> RowsInOrder:
        """The rows `indices` in their order, the last batch as small as it comes."""
        return RowsInOrder(self, indices, batch_size, scaling)


class RowsInOrder:
    """Some rows, always in the same order; to be iterated over again and again."""

    def __init__(self, rows: Rows, indices: Indices, batch_size: int, scaling: Scaling | None) -> None:
        chosen = torch.from_numpy(np.ascontiguousarray(indices)).to(rows.device)
        self._rows, self._scaling = rows, scaling
        self._blocks = split(chosen, batch_size) if len(chosen) else ()

    def __iter__(self) -> Iterator[Batch]:
        return (self._rows.take(block, self._scaling) for block in self._blocks)


class RowBatches(EpochBatches):
    """Training batches of rows."""

    def __init__(
        self,
        rows: Rows,
        *,
        plan: EpochPlan | Indices,
        batch_size: int,
        seed: int,
        scaling: Scaling | None = None,
        share: Share = WHOLE,
    ) -> None:
        """Batches of the rows of `plan`, or the `share` of each.

        Raises:
            ExperimentError: As `EpochBatches`.
        """
        super().__init__(plan, batch_size=batch_size, seed=seed, share=share)
        self._rows, self._scaling = rows, scaling
        self._buffers = rows.buffers(self.own_size)

    @property
    def place(self) -> object:
        return id(self._buffers)  # kept by the rows, so no other will have it

    def batch(self) -> Batch:
        return self._rows.take(self._buffers.rows_B, self._buffers.scaling)

    def feed(self, drawn: Drawn) -> Iterator[bool]:
        if self._buffers.scaling is not None and self._scaling is not None:
            self._buffers.scaling.take(self._scaling)
        for rows in split(to_device(drawn.order_N, self._rows.device), self.own_size):
            self._buffers.rows_B.copy_(rows)
            yield True


def _tensor(array: NDArray[Any]) -> Tensor:
    wanted = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
    return torch.from_numpy(np.array(array, dtype=wanted))
