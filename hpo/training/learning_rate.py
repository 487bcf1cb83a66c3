"""The learning rate of a trial, update by update: a schedule, with a warm-up before it and an ending after it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.training.schedules import Moment, Schedule
from hpo.training.settings import ChunkSettings, LoopSettings


class LearningRate:
    """The rates of a trial, which follow from the epoch and the batch.

    In the warm-up the rate rises in equal steps to the one that the schedule begins with, in the ending it falls in
    equal steps from the one that the schedule ends with; neither reaches 0. Where epochs have different numbers of
    batches, a batch stands where its share of its epoch puts it.

    Args:
        schedule: Of the trial.
        loop: How long the phases are, and how often the rate is set.
        epochs: That the trial trains at most; None: nobody knows.
        chunks: Of a trial whose data grow: its rate falls with each chunk, and may begin anew.
        seed: For what is random.
    """

    def __init__(
        self,
        schedule: Schedule,
        loop: LoopSettings,
        *,
        epochs: int | None,
        chunks: ChunkSettings | None = None,
        seed: int = 0,
    ) -> None:
        self._schedule, self._chunks, self._seed = schedule, chunks, seed
        self._every_batch = loop.schedule_every == "step"
        self._factor = scaling(loop)
        epochs = chunks.epochs_per_chunk if chunks is not None and chunks.chunk_rewarm else epochs
        self._phases = functools.lru_cache(2)(functools.partial(_Phases.of, loop, epochs, seed))

    def of_epoch(self, lr: float, epoch: int, *, num_batches: int, batches: range | None = None) -> list[float]:
        """The rate at each time that it is set in an epoch, for parameters whose hyper-parameter `lr` this is.

        Args:
            lr: Of these parameters.
            epoch: From 0.
            num_batches: Of this epoch.
            batches: For these of them alone; where the rate is set once an epoch, there is one in any case.

        Raises:
            ExperimentError: The schedule has to know for how many epochs the trial trains, or is left none.
        """
        per_epoch = max(num_batches, 1) if self._every_batch else 1
        lr *= self._factor
        if self._chunks is not None:
            chunk, within = divmod(epoch, self._chunks.epochs_per_chunk)
            lr *= self._chunks.chunk_lr_decay**chunk
            epoch = within if self._chunks.chunk_rewarm else epoch
        some = range(per_epoch) if batches is None or not self._every_batch else batches
        return [self._rate(lr, epoch * per_epoch + batch, per_epoch) for batch in some]

    def measured(self, value: float) -> None:
        """Learn what the goal metric was after a step."""
        self._schedule.measured(value)

    def state(self) -> dict[str, Any]:
        """Plain containers that later rates depend on, beside epoch and batch."""
        return self._schedule.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        if state:
            self._schedule.restore(state)

    def _rate(self, lr: float, step: int, per_epoch: int) -> float:
        at = self._phases(per_epoch)
        if step < at.warmup:
            return self._schedule.rate(lr, at.moment(0)) * (step + 1) / (at.warmup + 1)
        if at.ending and step >= at.last:
            reached = self._schedule.rate(lr, at.moment(at.last - at.warmup))
            return reached * max(at.ending - (step - at.last), 1) / (at.ending + 1)
        return self._schedule.rate(lr, at.moment(step - at.warmup))


@dataclass(frozen=True)
class _Phases:
    """When warm-up and ending are, in times that the rate is set."""

    warmup: int
    ending: int
    last: int
    per_epoch: int
    epochs: float | None
    seed: int

    @classmethod
    def of(cls, loop: LoopSettings, epochs: int | None, seed: int, per_epoch: int) -> _Phases:
        warmup, ending = round(loop.epochs_warmup * per_epoch), round(loop.epochs_ending * per_epoch)
        left = None if epochs is None else epochs - (warmup + ending) / per_epoch
        at = cls(warmup, ending, 0, per_epoch, left, seed)
        if ending or (warmup and left is not None):
            span = at.moment(0).span  # which there has to be
            return cls(warmup, ending, warmup + round(span * per_epoch), per_epoch, left, seed)
        return at

    def moment(self, step: int) -> Moment:
        return Moment(step, self.per_epoch, self.epochs, self.seed)


def scaling(loop: LoopSettings) -> float:
    """What `lr` is multiplied by for its batch size."""
    ratio = loop.batch_size / loop.base_batch_size
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[loop.lr_scaling]
