"""The learning rate of a trial, update by update: a schedule, with a warm-up before it and an ending after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hpo.training.schedules import Moment, Schedule
from hpo.training.settings import LoopSettings


class LearningRate:
    """The rates of a trial, which follow from the epoch and the batch.

    In the warm-up the rate rises in equal steps to the one that the schedule begins with, in the ending it falls in
    equal steps from the one that the schedule ends with; neither reaches 0.

    Args:
        schedule: Of the trial.
        loop: How long the phases are, and how often the rate is set.
        epochs: That the trial trains at most; None: nobody knows.
        num_batches: Of an epoch.
        seed: For what is random.
    """

    def __init__(
        self, schedule: Schedule, loop: LoopSettings, *, epochs: int | None, num_batches: int, seed: int = 0
    ) -> None:
        self._schedule, self._seed = schedule, seed
        self._per_epoch = max(num_batches, 1) if loop.schedule_every == "step" else 1
        self._factor = scaling(loop)
        self._warmup = round(loop.epochs_warmup * self._per_epoch)
        self._ending = round(loop.epochs_ending * self._per_epoch)
        self._epochs = None if epochs is None else epochs - (self._warmup + self._ending) / self._per_epoch
        if self._epochs is not None and (self._warmup or self._ending):
            self._moment(0).span  # noqa: B018 - which there has to be
        if self._ending:
            self._last = self._warmup + round(self._moment(0).span * self._per_epoch)

    def of_epoch(self, lr: float, epoch: int) -> list[float]:
        """The rate at each time that it is set in an epoch, for parameters whose hyper-parameter `lr` this is."""
        first = epoch * self._per_epoch
        return [self._rate(lr * self._factor, step) for step in range(first, first + self._per_epoch)]

    def measured(self, value: float) -> None:
        """Learn what the goal metric was after an epoch."""
        self._schedule.measured(value)

    def state(self) -> dict[str, Any]:
        """Plain containers that later rates depend on, beside the epoch."""
        return self._schedule.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        if state:
            self._schedule.restore(state)

    def _rate(self, lr: float, step: int) -> float:
        if step < self._warmup:
            return self._schedule.rate(lr, self._moment(0)) * (step + 1) / (self._warmup + 1)
        if self._ending and step >= self._last:
            reached = self._schedule.rate(lr, self._moment(self._last - self._warmup))
            return reached * max(self._ending - (step - self._last), 1) / (self._ending + 1)
        return self._schedule.rate(lr, self._moment(step - self._warmup))

    def _moment(self, step: int) -> Moment:
        return Moment(step, self._per_epoch, self._epochs, self._seed)


def scaling(loop: LoopSettings) -> float:
    """What `lr` is multiplied by for its batch size."""
    ratio = loop.batch_size / loop.base_batch_size
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[loop.lr_scaling]
