"""Samples that lie on the device as tensors: batches are drawn on the host and computed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.errors import ExperimentError
from hpo.seeds import derive
from hpo.training.data.batches import to_device
from hpo.training.data.samples import Samples
from hpo.training.learning import Batch, Stream
from hpo.training.share import WHOLE, Share

Indices = NDArray[np.int64]


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
        self._blocks = _split(chosen, batch_size) if len(chosen) else ()

    def __iter__(self) -> Iterator[Batch]:
        return (self._rows.take(block, self._scaling) for block in self._blocks)


class RowBatches(Stream):
    """Training batches of rows, epoch after epoch, in an order that follows from seed and epoch alone.

    So its whole state is the number of epochs begun. Where there is at least one full batch, the samples that do not
    fill the last one sit out the epoch, others each time.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        indices: Indices,
        batch_size: int,
        seed: int,
        scaling: Scaling | None = None,
        share: Share = WHOLE,
    ) -> None:
        """Batches of the rows `indices`, or the `share` of each.

        Raises:
            ExperimentError: There are fewer samples than processes.
        """
        self._rows, self._seed, self._scaling, self._share = rows, seed, scaling, share
        self._indices = torch.from_numpy(np.ascontiguousarray(indices))
        self._batch_size = min(batch_size, max(len(indices), 1))
        if self._batch_size < share.size:
            raise ExperimentError(
                f"{len(indices)} samples to train on are too few for {share.size} processes",
                where="train_samples",
                remedy="train on more, or with fewer workers",
            )
        self._buffers = rows.buffers(share.num(self._batch_size))
        self._epoch = 0
        self._blocks: Iterator[Tensor] = iter(())
        self._ahead: tuple[int, Tensor] | None = None

    @property
    def place(self) -> object:
        return id(self._buffers)  # kept by the rows, so no other will have it

    @property
    def whole_batch(self) -> int | None:
        return None if self._share == WHOLE else self._batch_size

    @property
    def num_samples(self) -> int:
        return len(self._indices) // self._batch_size * self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        self.begin_epoch()
        while self.advance():
            yield self.batch()

    def begin_epoch(self) -> None:
        ahead, self._ahead = self._ahead, None
        _, order = ahead if ahead is not None and ahead[0] == self._epoch else self._drawn()
        self._epoch += 1
        self._blocks = iter(_split(to_device(order, self._rows.device), len(self._buffers.rows_B)))
        if self._buffers.scaling is not None and self._scaling is not None:
            self._buffers.scaling.take(self._scaling)

    def advance(self) -> bool:
        block = next(self._blocks, None)
        if block is not None:
            self._buffers.rows_B.copy_(block)
        return block is not None

    def batch(self) -> Batch:
        return self._rows.take(self._buffers.rows_B, self._buffers.scaling)

    def look_ahead(self) -> None:
        self._ahead = self._drawn()

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._epoch = state["epoch"]

    def _drawn(self) -> tuple[int, Tensor]:
        """The next epoch's number, and this process's share of its order, on the host."""
        generator = torch.Generator().manual_seed(derive(self._seed, "epoch", self._epoch))
        order = self._indices[torch.randperm(len(self._indices), generator=generator)[: self.num_samples]]
        own = order.view(-1, self._batch_size)[:, self._share.of(self._batch_size)]
        return self._epoch, own.flatten()


def _tensor(array: NDArray[Any]) -> Tensor:
    wanted = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
    return torch.from_numpy(np.array(array, dtype=wanted))


def _split(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = rows.split(size)  # type: ignore[no-untyped-call]
    return parts
