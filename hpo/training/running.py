"""One trial while a process trains it: all that belongs to it and not to the process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpo.training.capturable import INITIAL_LR
from hpo.training.distributed import Team
from hpo.training.fine_tuning import FineTuning, hold_frozen_norms
from hpo.training.learning import Batch, Recipe, Stream
from hpo.training.learning_rate import LearningRate
from hpo.training.step import TrainStep
from hpo.training.update import Average
from hpo.training.watch import ActivationWatch
from hpo.trial import Config

_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable", "decoupled_weight_decay")


@dataclass
class Best:
    """The best step so far. `weights` is None while the model still holds them: most trials end on their best."""

    step: int = 0
    score: float | None = None
    weights: dict[str, Tensor] | None = None

    def see(self, step: int, score: float) -> None:
        if math.isfinite(score) and (self.score is None or score > self.score):
            self.step, self.score, self.weights = step, score, None

    def before_training(self, shown: Callable[[], Mapping[str, Tensor]]) -> None:
        """Copy the weights that were measured, which are about to change."""
        if self.score is not None and self.weights is None:
            self.weights = {name: value.detach().clone() for name, value in shown().items()}


@dataclass
class Running:
    """All that belongs to one trial and not to the process."""

    config: Config
    seed: int
    recipe: Recipe
    model: nn.Module
    optimizer: Optimizer
    average: Average | None
    learning_rate: LearningRate
    stream: Stream
    validation: Iterable[Batch]
    tuning: FineTuning | None = None
    activations: ActivationWatch | None = None
    train_step: TrainStep | None = None
    notes: dict[str, str] = field(default_factory=dict)
    epoch: int = 0
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

    def rates(self) -> Iterator[bool]:
        """Sets the rate for the next batch of this epoch, each time: whether it is another one."""
        groups = self.optimizer.param_groups
        by_group = [self.learning_rate.of_epoch(group[INITIAL_LR], self.epoch) for group in groups]
        for now in zip(*by_group, strict=True):
            changed = [group["lr"] for group in groups] != list(now)
            for group, rate in zip(groups, now, strict=True):
                group["lr"] = rate
            yield changed

    @property
    def num_batches(self) -> int:
        """Of an epoch."""
        num_samples = self.stream.num_samples
        return -(-num_samples // max(min(self.recipe.loop.batch_size, num_samples), 1))

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
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state(),
            "learning_rate": self.learning_rate.state(),
            "stream": self.stream.state(),
            "best": {"step": self.best.step, "score": self.best.score, "model": self.best.weights},
        }

    def restore(self, state: Mapping[str, Any], device: torch.device, *, own_numbers: bool = False) -> None:
        best, weights = state["best"], state["best"]["model"]
        if weights is not None:
            weights = {name: value.to(device) for name, value in weights.items()}
        self.best = Best() if own_numbers else Best(best["step"], best["score"], weights)
        self.model.load_state_dict(state["model"])
        _restore_optimizer(self.optimizer, state["optimizer"], own_numbers=own_numbers)
        if self.average is not None:
            self.average.begin() if state["average"] is None else self.average.restore(state["average"])
        if not own_numbers:
            self.learning_rate.restore(state["learning_rate"])
        self.stream.restore(state["stream"])
        self.epoch = state["epoch"]


def _restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], *, own_numbers: bool) -> None:
    """Take state and, unless the optimizer keeps its own, numbers; which implementation computes is its own to say."""
    own = optimizer.state_dict()["param_groups"]
    groups = [
        {**ours, **{name: value for name, value in theirs.items() if name not in _IMPLEMENTATION and not own_numbers}}
        for ours, theirs in zip(own, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
