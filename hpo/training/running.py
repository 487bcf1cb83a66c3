"""One trial while a process trains it: all that belongs to it and not to the process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpo.training.capturable import INITIAL_LR
from hpo.training.distributed import Team
from hpo.training.fine_tuning import FineTuning, hold_frozen_norms
from hpo.training.learning import Recipe, Stream
from hpo.training.learning_rate import LearningRate
from hpo.training.measuring import HeldOut
from hpo.training.step import TrainStep
from hpo.training.update import Average
from hpo.training.watch import ActivationWatch
from hpo.trial import Config

_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable", "decoupled_weight_decay")


@dataclass
class Best:
    """The best step so far; of data that grow, of the newest chunk, since more is held out with each.

    `weights` is None while the model still holds them: most trials end on their best.
    """

    step: int = 0
    score: float | None = None
    weights: dict[str, Tensor] | None = None
    chunk: int | None = None

    def see(self, step: int, score: float, chunk: int | None) -> None:
        if math.isfinite(score) and (self.score is None or chunk != self.chunk or score > self.score):
            self.step, self.score, self.weights, self.chunk = step, score, None, chunk

    def before_training(self, shown: Callable[[], Mapping[str, Tensor]]) -> None:
        """Copy the weights that were measured, which are about to change."""
        if self.score is not None and self.weights is None:
            self.weights = {name: value.detach().clone() for name, value in shown().items()}


@dataclass
class Running:
    """All that belongs to one trial and not to the process.

    Attributes:
        epoch: Epochs completed.
        num_steps: Times that it was measured.
        is_under_way: Whether an epoch has been begun, and is not over.
    """

    config: Config
    seed: int
    recipe: Recipe
    model: nn.Module
    optimizer: Optimizer
    average: Average | None
    learning_rate: LearningRate
    stream: Stream
    held_out: HeldOut
    tuning: FineTuning | None = None
    activations: ActivationWatch | None = None
    train_step: TrainStep | None = None
    notes: dict[str, str] = field(default_factory=dict)
    epoch: int = 0
    num_steps: int = 0
    is_under_way: bool = False
    best: Best = field(default_factory=Best)

    @property
    def lr(self) -> float:
        """The learning rate, the largest where groups of parameters have rates of their own."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def to_training(self) -> None:
        """Have the model as it trains in this epoch: batch norms that are frozen stay in evaluation."""
        self.model.train()
        if self.tuning is not None:
            hold_frozen_norms(self.model, self.tuning.frozen_norms(self.epoch))

    @property
    def last_epoch(self) -> int | None:
        """Epochs after which the trial is finished by its own configuration, where that says so."""
        return self.recipe.loop.epochs or self.stream.num_epochs

    @property
    def num_chunks(self) -> int | None:
        """Chunks completed; None where the data do not grow."""
        chunks = self.recipe.chunks
        return None if chunks is None else self.epoch // chunks.epochs_per_chunk

    def begin_epoch(self) -> None:
        """Begin the next epoch, or go on with the one under way."""
        if not self.is_under_way:
            self.stream.begin_epoch()
            self.is_under_way = True

    def advance(self, until: int | None) -> bool:
        """Bring the next batch within reach, up to this many of the epoch; False where there is none."""
        if self.stream.position == until:
            return False
        self.is_under_way = self.stream.advance()
        return self.is_under_way

    @property
    def until(self) -> int | None:
        """Batches of the epoch under way that were had when the step is over; None: all of them."""
        every = self.recipe.loop.val_check_interval
        end = self.num_batches if every is None else self.stream.position + every
        return None if end >= self.num_batches else end

    def rates(self, until: int | None) -> Iterator[bool]:
        """Sets the rate for the next batch of this epoch, each time: whether it is another one.

        It begins with the batch after those that were had when it is asked for.
        """
        num = self.num_batches
        batches = range(self.stream.position, num if until is None else until)
        by_group = [
            self.learning_rate.of_epoch(group[INITIAL_LR], self.epoch, num_batches=num, batches=batches)
            for group in self.optimizer.param_groups
        ]
        return self._set(list(zip(*by_group, strict=True)))

    def _set(self, rates: list[tuple[float, ...]]) -> Iterator[bool]:
        groups = self.optimizer.param_groups
        for now in rates:
            changed = [group["lr"] for group in groups] != list(now)
            for group, rate in zip(groups, now, strict=True):
                group["lr"] = rate
            yield changed

    @property
    def num_batches(self) -> int:
        """Of the epoch under way, or, between two, of the next one."""
        return -(-self.stream.num_samples // self._samples_of_a_batch)

    def num_samples(self, first: int, until: int | None) -> int:
        """Samples of the batches `first` up to `until` of the epoch under way."""
        num, size = self.stream.num_samples, self._samples_of_a_batch
        return (num if until is None else min(until * size, num)) - min(first * size, num)

    @property
    def share_of_epoch(self) -> float:
        """Which part of the epoch under way the next step trains on."""
        num = self.num_samples(self.stream.position, self.until)
        return num / self.stream.num_samples if num else 1.0

    @property
    def _samples_of_a_batch(self) -> int:
        return max(min(self.stream.batch_size or self.recipe.loop.batch_size, self.stream.num_samples), 1)

    def watched(self, team: Team, trained: Mapping[str, Tensor], validated: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What was asked to be watched in an epoch whose measures these are; see `hpo.training.watch`."""
        found: dict[str, Tensor] = {}
        if self.train_step is not None and self.train_step.work.watch is not None:
            found |= self.train_step.work.watch.result()
        if self.activations is not None:
            found |= self.activations.result(team)
        if "gap" in self.recipe.loop.watched and "loss" in trained and "loss" in validated:
            found["gap"] = validated["loss"] - trained["loss"]
        return found

    def halve(self) -> bool:
        """Have half as many samples go through the model at a time; False where it was one already."""
        loop = self.recipe.loop
        before = min(loop.micro_batch_size or loop.batch_size, loop.batch_size, max(self.stream.num_samples, 1))
        if before <= 1:
            return False
        after = (before + 1) // 2
        self.recipe = replace(self.recipe, loop=replace(loop, micro_batch_size=after))
        self.train_step = None
        self.notes["micro_batch_size"] = f"{after}: out of memory with {before}"
        return True

    def shown(self) -> dict[str, Tensor]:
        """The weights that are measured."""
        return {**self.model.state_dict(), **(self.average.weights() if self.average else {})}

    def state(self) -> dict[str, Any]:
        return {
            "chunk": self.stream.chunk,
            "epoch": self.epoch,
            "position": self.stream.position,
            "step": self.num_steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state(),
            "learning_rate": self.learning_rate.state(),
            "stream": self.stream.state(),
            "best": {
                "step": self.best.step,
                "score": self.best.score,
                "model": self.best.weights,
                "chunk": self.best.chunk,
            },
        }

    def restore(self, state: Mapping[str, Any], device: torch.device, *, own_numbers: bool = False) -> None:
        best, weights = state["best"], state["best"]["model"]
        if weights is not None:
            weights = {name: value.to(device) for name, value in weights.items()}
        self.best = Best() if own_numbers else Best(best["step"], best["score"], weights, best.get("chunk"))
        self.model.load_state_dict(state["model"])
        _restore_optimizer(self.optimizer, state["optimizer"], own_numbers=own_numbers)
        if self.average is not None:
            self.average.begin() if state["average"] is None else self.average.restore(state["average"])
        if not own_numbers:
            self.learning_rate.restore(state["learning_rate"])
        self.stream.restore(state["stream"])
        self.epoch = state["epoch"]
        self.num_steps = state.get("step", self.epoch)
        self.is_under_way = False


def _restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], *, own_numbers: bool) -> None:
    """Take state and, unless the optimizer keeps its own, numbers; which implementation computes is its own to say."""
    own = optimizer.state_dict()["param_groups"]
    groups = [
        {**ours, **{name: value for name, value in theirs.items() if name not in _IMPLEMENTATION and not own_numbers}}
        for ours, theirs in zip(own, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
