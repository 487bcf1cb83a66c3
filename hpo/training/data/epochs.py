"""Epochs: which samples each of them trains on, and their batches, drawn from seed and epoch alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.errors import ExperimentError
from hpo.seeds import derive
from hpo.training.learning import Batch, Stream
from hpo.training.share import WHOLE, Share

Indices = NDArray[np.int64]


class EpochPlan(ABC):
    """Which samples each epoch of a trial trains on; pure, so a trial that goes on needs no more than the number.

    Epochs count from 0; nothing is asked of those from `num_epochs` on.
    """

    @abstractmethod
    def indices(self, epoch: int) -> Indices:
        """(N_e,) int64: rows of the stored data that an epoch trains on, all different."""

    @abstractmethod
    def num_samples(self, epoch: int) -> int:
        """N_e, without drawing the rows."""

    @property
    @abstractmethod
    def least(self) -> int:
        """Samples of the smallest epoch: no batch is larger."""

    def chunk(self, epoch: int) -> int | None:
        """Piece of growing data that an epoch belongs to, from 1; None: the data do not grow."""
        return None

    @property
    def num_epochs(self) -> int | None:
        """Epochs after which all pieces have been had; None: there is no such number."""
        return None


class Always(EpochPlan):
    """The same samples in every epoch.

    Args:
        indices: (N,) int64.
    """

    def __init__(self, indices: Indices) -> None:
        self._indices = np.ascontiguousarray(indices)

    def indices(self, epoch: int) -> Indices:
        return self._indices

    def num_samples(self, epoch: int) -> int:
        return len(self._indices)

    @property
    def least(self) -> int:
        return len(self._indices)


class Drawn(NamedTuple):
    """An epoch on the host, this process's share of it.

    Attributes:
        epoch: From 0.
        order_N: int64, rows of the stored data, batch after batch.
        draws: (N, ...) each, what else was drawn for each of these samples, by name.
    """

    epoch: int
    order_N: Tensor
    draws: Mapping[str, Tensor]


class EpochBatches(Stream):
    """Training batches, epoch after epoch, in an order that follows from seed and epoch alone.

    So its state is seed, epoch and the place in it, and the order is the same on a CPU and on a GPU, for one process
    and for several. Where there is at least one full batch, the samples that do not fill the last one sit out the
    epoch, others each time. All batches of all epochs have the same size.

    A subclass says what brings a batch within reach.

    Args:
        plan: Which samples each epoch trains on; rows stand for the same ones in every epoch.
        batch_size: At least 1.
        seed: Of the order, and of what else is drawn.
        share: This process's part of each batch.

    Attributes:
        batch_size: Samples of each batch, those of other processes included.
        own_size: Samples of this process's part of it.

    Raises:
        ExperimentError: `batch_size` is below 1, or there are fewer samples than processes.
    """

    batch_size: int

    def __init__(self, plan: EpochPlan | Indices, *, batch_size: int, seed: int, share: Share = WHOLE) -> None:
        if batch_size < 1:
            raise ExperimentError(f"{batch_size} is not at least 1", where="batch_size", remedy="e.g. 128")
        self.plan = plan if isinstance(plan, EpochPlan) else Always(plan)
        self.batch_size = min(batch_size, max(self.plan.least, 1))
        if self.batch_size < share.size:
            raise ExperimentError(
                f"{self.plan.least} samples to train on are too few for {share.size} processes",
                where="train_samples",
                remedy="train on more, or with fewer workers",
            )
        self._seed, self.share = seed, share
        self.own_size = share.num(self.batch_size)
        self._seed_under_way = seed
        self._epoch = self.position = 0
        self._is_begun = False
        self._feed: Iterator[bool] = iter(())
        self._ahead: Drawn | None = None

    @abstractmethod
    def feed(self, drawn: Drawn) -> Iterator[bool]:
        """Each True brings the next batch of what was drawn within reach."""

    def draw(self, num: int, generator: torch.Generator, *, seed: int) -> Mapping[str, Tensor]:
        """This process's share of what else is drawn for `num` samples, (N, ...) each.

        Args:
            num: Samples, a whole number of batches, those of other processes included.
            generator: That has drawn the order.
            seed: For streams of random numbers of one's own.
        """
        return {}

    @property
    def whole_batch(self) -> int | None:
        return None if self.share == WHOLE else self.batch_size

    @property
    def num_samples(self) -> int:
        return self._num_samples(self._within(self._epoch))

    @property
    def chunk(self) -> int | None:
        return self.plan.chunk(self._within(self._epoch))

    @property
    def num_epochs(self) -> int | None:
        return self.plan.num_epochs

    def __iter__(self) -> Iterator[Batch]:
        """The next epoch, batch by batch."""
        self.begin_epoch()
        while self.advance():
            yield self.batch()

    def begin_epoch(self) -> None:
        if self._is_begun:
            self._complete()
        ahead, self._ahead = self._ahead, None
        drawn = ahead if ahead is not None and ahead.epoch == self._epoch else self._drawn(self._epoch)
        had = self.position * self.own_size
        if had:
            drawn = Drawn(drawn.epoch, drawn.order_N[had:], {name: part[had:] for name, part in drawn.draws.items()})
        self._feed = self.feed(drawn)
        self._is_begun = True

    def advance(self) -> bool:
        if not self._is_begun:
            return False
        if not next(self._feed, False):
            self._complete()
            return False
        self.position += 1
        return True

    def look_ahead(self) -> None:
        epoch = self._epoch + self._is_begun
        if self.num_epochs is None or epoch < self.num_epochs:
            self._ahead = self._drawn(epoch)

    def state(self) -> dict[str, Any]:
        """JSON from which `restore` goes on with the next batch."""
        epoch, position = self._epoch, self.position
        if position * self.batch_size >= self.num_samples:
            epoch, position = epoch + self._is_begun, 0
        return {
            "seed": self._seed_under_way if position else self._seed,
            "epoch": epoch,
            "position": position,
            "batch_size": self.batch_size,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken; one of another stream gives the place, and the order of that epoch.

        Where that one's batches are of another size, the samples that it has had count in whole batches of one's own.
        """
        had = state.get("position", 0) * state.get("batch_size", self.batch_size)
        self._epoch = state["epoch"]
        num_batches = self.num_samples // self.batch_size
        self.position = max(min(had // self.batch_size, num_batches - 1), 0)
        self._seed_under_way = state["seed"] if self.position else self._seed
        self._is_begun, self._ahead = False, None

    def _complete(self) -> None:
        self._epoch, self.position, self._is_begun = self._epoch + 1, 0, False
        self._seed_under_way = self._seed

    def _within(self, epoch: int) -> int:
        """The epoch, or the last one after it."""
        return epoch if self.num_epochs is None else min(epoch, self.num_epochs - 1)

    def _num_samples(self, epoch: int) -> int:
        return self.plan.num_samples(epoch) // self.batch_size * self.batch_size

    def _drawn(self, epoch: int) -> Drawn:
        seed = derive(self._seed_under_way, "epoch", epoch)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.from_numpy(self.plan.indices(self._within(epoch)))
        num = len(rows) // self.batch_size * self.batch_size
        order = rows[torch.randperm(len(rows), generator=generator)[:num]]
        return Drawn(epoch, self.own(order), self.draw(num, generator, seed=seed))

    def own(self, values: Tensor) -> Tensor:
        """This process's share of each batch, of values (N, ...) of whole batches."""
        if self.share == WHOLE or not len(values):
            return values
        by_batch = values.view(-1, self.batch_size, *values.shape[1:])
        return by_batch[:, self.share.of(self.batch_size)].flatten(0, 1)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values there, without the host waiting for it."""
    return values.to(device) if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def split(values: Tensor, size: int) -> tuple[Tensor, ...]:
    """Parts of `size` along the first dimension, the last as small as it comes."""
    parts: tuple[Tensor, ...] = values.split(size)  # type: ignore[no-untyped-call]
    return parts
