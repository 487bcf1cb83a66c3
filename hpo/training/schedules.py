"""The learning rate over a trial, by the name that the hyper-parameter `lr_schedule` has.

A schedule is a function of the moment: the rate of any update follows from the trial's numbers alone, so that a trial
that goes on, or takes another one's place over, needs no more than to know where it is. Where PyTorch has the schedule,
names, defaults and values are those of its class (`torch.optim.lr_scheduler`), but for the unit: lengths are epochs,
and may be fractions, however often the rate is set. Those that PyTorch lacks are TensorFlow's
(`tf.keras.optimizers.schedules`, `tf.compat.v1.train`).
"""

from __future__ import annotations

import inspect
import math
import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hpo.errors import ExperimentError
from hpo.seeds import derive
from hpo.training.rules import Rule, flag, integer, number, one_of, several


@dataclass(frozen=True)
class Moment:
    """An update of the weights, as a schedule sees it; warm-up and ending phase are not part of it.

    Attributes:
        step: Times that the rate was set before, from 0.
        per_epoch: Times that it is set in an epoch.
        epochs: That the schedule lasts; None: nobody knows.
        seed: For what is random.
    """

    step: int
    per_epoch: int
    epochs: float | None
    seed: int = 0

    @property
    def epoch(self) -> float:
        """Epochs since the schedule began."""
        return self.step / self.per_epoch

    @property
    def span(self) -> float:
        """Epochs that the schedule lasts.

        Raises:
            ExperimentError: Nobody knows.
        """
        if self.epochs is None:
            raise ExperimentError(
                "it has to know for how many epochs a trial trains",
                where="lr_schedule",
                remedy="give `epochs`, or a policy that ends trials, such as Asha(max_epochs=27)",
            )
        if self.epochs <= 0:
            raise ExperimentError(
                "warm-up and ending phase leave no epoch to it",
                where="lr_schedule",
                remedy="lower epochs_warmup or epochs_ending, or train for longer",
            )
        return self.epochs

    @property
    def done(self) -> float:
        """Share of the span that is over, in [0, 1]."""
        return min(self.epoch / self.span, 1.0)


def constant(lr: float, at: Moment) -> float:  # noqa: ARG001 - every schedule takes it
    """`lr`, always."""
    return lr


def piecewise(lr: float, at: Moment, *, boundaries: tuple[float, ...], values: tuple[float, ...]) -> float:
    """`lr` times the value of the piece: the first up to the first boundary (an epoch), and so on."""
    if len(values) != len(boundaries) + 1:
        raise ExperimentError(
            f"{len(values)} values for {len(boundaries)} boundaries",
            where="values",
            remedy="give one more value than boundaries: boundaries=(10, 20), values=(1, 0.1, 0.01)",
        )
    return lr * float(values[bisect_right(boundaries, at.epoch)])


def step(lr: float, at: Moment, *, step_size: float = 10.0, gamma: float = 0.1) -> float:
    """`StepLR`: times `gamma` every `step_size` epochs."""
    return lr * math.pow(gamma, math.floor(at.epoch / step_size + 1e-9))


def multistep(lr: float, at: Moment, *, milestones: tuple[float, ...], gamma: float = 0.1) -> float:
    """`MultiStepLR`: times `gamma` at each milestone (an epoch)."""
    return lr * math.pow(gamma, bisect_right(sorted(milestones), at.epoch))


def exponential(lr: float, at: Moment, *, gamma: float = 0.95) -> float:
    """`ExponentialLR`: times `gamma` every epoch, smoothly."""
    return lr * math.pow(gamma, at.epoch)


def natural_exponential(lr: float, at: Moment, *, decay_rate: float = 0.05) -> float:
    """TensorFlow's `natural_exp_decay`: exp(-decay_rate x epochs)."""
    return lr * math.exp(-decay_rate * at.epoch)


def inverse_time(lr: float, at: Moment, *, decay_rate: float = 0.1) -> float:
    """TensorFlow's `InverseTimeDecay`: 1 / (1 + decay_rate x epochs)."""
    return lr / (1 + decay_rate * at.epoch)


def polynomial(
    lr: float,
    at: Moment,
    *,
    total_iters: float | None = None,
    power: float = 1.0,
    end_lr: float = 0.0,
    cycle: bool = False,
) -> float:
    """`PolynomialLR`, with TensorFlow's end rate and cycles: from `lr` to `end_lr` in `total_iters` epochs (the span).

    A cycle begins where the last one ended, twice, three times, … as long as the first in all.
    """
    length = total_iters or at.span
    if cycle:
        length *= max(math.ceil(at.epoch / length - 1e-9), 1)
    return end_lr + (lr - end_lr) * math.pow(1 - min(at.epoch / length, 1.0), power)


def cosine(lr: float, at: Moment, *, T_max: float | None = None, eta_min: float = 0.0) -> float:
    """`CosineAnnealingLR`: from `lr` to `eta_min` in `T_max` epochs (the span), and back."""
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * at.epoch / (T_max or at.span))) / 2


def cosine_restarts(lr: float, at: Moment, *, T_0: float = 10.0, T_mult: int = 1, eta_min: float = 0.0) -> float:
    """`CosineAnnealingWarmRestarts`: a cosine of `T_0` epochs, then anew, each `T_mult` times as long."""
    left, length = at.epoch, T_0
    while left >= length - 1e-9:
        left, length = max(left - length, 0.0), length * T_mult
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * left / length)) / 2


def linear_cosine(lr: float, at: Moment, *, num_periods: float = 0.5, alpha: float = 0.0, beta: float = 0.001) -> float:
    """TensorFlow's `linear_cosine_decay` (Bello et al. 2017)."""
    return lr * _linear_cosine(at.done, 0.0, num_periods, alpha, beta)


def noisy_linear_cosine(
    lr: float,
    at: Moment,
    *,
    initial_variance: float = 1.0,
    variance_decay: float = 0.55,
    num_periods: float = 0.5,
    alpha: float = 0.0,
    beta: float = 0.001,
) -> float:
    """TensorFlow's `noisy_linear_cosine_decay` (Bello et al. 2017): other noise at each update, never below 0."""
    draw = random.Random(derive(at.seed, "lr", at.step)).gauss(0, 1)
    noise = draw * math.sqrt(initial_variance / (1 + at.step) ** variance_decay)
    return max(lr * _linear_cosine(at.done, noise, num_periods, alpha, beta), 0.0)


def _linear_cosine(done: float, noise: float, num_periods: float, alpha: float, beta: float) -> float:
    wave = (1 + math.cos(math.pi * 2 * num_periods * done)) / 2
    return (alpha + (1 - done) + noise) * wave + beta


def noam(lr: float, at: Moment, *, model_size: int = 512, warmup_steps: int = 4000) -> float:
    """As in "Attention is all you need" (Vaswani et al. 2017): up for `warmup_steps`, then by the root of steps."""
    num = at.step + 1
    return float(lr * model_size**-0.5 * min(num**-0.5, num * warmup_steps**-1.5))


def onecycle(
    lr: float,
    at: Moment,
    *,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> float:
    """`OneCycleLR` (Smith & Topin 2017), `lr` the highest rate; momentum is left alone."""
    total = round(at.span * at.per_epoch)
    up = pct_start * total - 1
    low, lowest = lr / div_factor, lr / div_factor / final_div_factor
    phases = [(up, low, lr), (total - 1, lr, lowest)]
    if three_phase:
        phases = [(up, low, lr), (2 * pct_start * total - 2, lr, low), (total - 1, low, lowest)]
    began = 0.0
    for end, first, last in phases:
        if at.step <= end or end == total - 1:
            done = min((at.step - began) / (end - began), 1.0) if end > began else 1.0
            share = (1 - math.cos(math.pi * done)) / 2 if anneal_strategy == "cos" else done
            return first + (last - first) * share
        began = end
    raise AssertionError(phases)


def cyclical(
    lr: float,
    at: Moment,
    *,
    max_lr: float,
    step_size_up: float = 2.0,
    step_size_down: float | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
) -> float:
    """`CyclicLR` (Smith 2017): up from `lr` to `max_lr` in `step_size_up` epochs, and down; momentum is left alone."""
    down = step_size_down or step_size_up
    length = step_size_up + down
    cycle = math.floor(at.epoch / length + 1e-9)
    within = max(at.epoch - cycle * length, 0.0)
    share = within / step_size_up if within <= step_size_up else (length - within) / down
    height = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": gamma**at.step}[mode]
    return lr + (max_lr - lr) * share * height


FORMULAS: Mapping[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        constant,
        piecewise,
        step,
        multistep,
        exponential,
        natural_exponential,
        inverse_time,
        polynomial,
        cosine,
        cosine_restarts,
        linear_cosine,
        noisy_linear_cosine,
        noam,
        onecycle,
        cyclical,
    )
}
_EPOCHS = number(10.0, above=0)
_SHARE = number(0.1, above=0, most=1)
RULES: Mapping[str, Rule] = {
    "boundaries": several(number(10.0, above=0), example=(10, 20)),
    "values": several(number(0.1, least=0), example=(1, 0.1, 0.01), least=1),
    "step_size": _EPOCHS,
    "gamma": _SHARE,
    "milestones": several(number(10.0, above=0), example=(10, 20), least=1),
    "decay_rate": number(0.05, least=0),
    "total_iters": _EPOCHS.or_none(),
    "power": number(1.0, above=0),
    "end_lr": number(0.0, least=0),
    "cycle": flag(),
    "T_max": _EPOCHS.or_none(),
    "T_0": _EPOCHS,
    "T_mult": integer(2, least=1),
    "eta_min": number(0.0, least=0),
    "num_periods": number(0.5, above=0),
    "alpha": number(0.0, least=0),
    "beta": number(0.001, least=0),
    "initial_variance": number(1.0, least=0),
    "variance_decay": number(0.55, least=0),
    "model_size": integer(512, least=1),
    "warmup_steps": integer(4000, least=1),
    "pct_start": number(0.3, above=0, below=1),
    "anneal_strategy": one_of("cos", "linear"),
    "div_factor": number(25.0, least=1),
    "final_div_factor": number(1e4, least=1),
    "three_phase": flag(),
    "max_lr": number(0.1, above=0),
    "step_size_up": _EPOCHS,
    "step_size_down": _EPOCHS.or_none(),
    "mode": one_of("triangular", "triangular2", "exp_range"),
    "scheduler_factor": number(0.1, above=0, below=1),
    "scheduler_patience": integer(10, least=0),
    "scheduler_cooldown": integer(0, least=0),
    "scheduler_threshold": number(1e-4, least=0),
    "min_lr": number(0.0, least=0),
}
"""What the hyper-parameters of schedules must be."""


class Schedule(ABC):
    """The rate of one trial."""

    @abstractmethod
    def rate(self, lr: float, at: Moment) -> float:
        """The rate at a moment, for a group of parameters whose hyper-parameter `lr` this is."""

    def measured(self, value: float) -> None:
        """Learn what the goal metric was after an epoch."""
        return

    def state(self) -> dict[str, Any]:
        """Plain containers that later rates depend on."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        return


class Formula(Schedule):
    """A function of the moment.

    Args:
        function: Of a learning rate and a moment, such as those of `FORMULAS`.
        settings: Its other arguments.
    """

    def __init__(self, function: Callable[..., float], **settings: Any) -> None:
        self._function, self._settings = function, settings

    def rate(self, lr: float, at: Moment) -> float:
        return self._function(lr, at, **self._settings)


class Plateau(Schedule):
    """`ReduceLROnPlateau` of the goal metric: times `scheduler_factor` when it has not improved for some epochs.

    Args:
        mode: "min" or "max", which values are better.
        scheduler_factor: By which the rate is multiplied.
        scheduler_patience: Epochs without improvement that are borne.
        scheduler_cooldown: Epochs after a reduction that do not count.
        scheduler_threshold: Relative improvement that counts as one.
        min_lr: The rate goes no lower.
    """

    def __init__(
        self,
        mode: str,
        *,
        scheduler_factor: float = 0.1,
        scheduler_patience: int = 10,
        scheduler_cooldown: int = 0,
        scheduler_threshold: float = 1e-4,
        min_lr: float = 0.0,
    ) -> None:
        self._min_lr = min_lr
        self._one = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # whose rate is the share of `lr`
        self._torchs = ReduceLROnPlateau(
            self._one,
            mode=mode,  # type: ignore[arg-type]
            factor=scheduler_factor,
            patience=scheduler_patience,
            cooldown=scheduler_cooldown,
            threshold=scheduler_threshold,
            eps=0.0,
        )

    def rate(self, lr: float, at: Moment) -> float:
        return max(lr * float(self._one.param_groups[0]["lr"]), min(self._min_lr, lr))

    def measured(self, value: float) -> None:
        self._torchs.step(value)

    def state(self) -> dict[str, Any]:
        counted = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        known = self._torchs.state_dict()
        return {"share": float(self._one.param_groups[0]["lr"]), **{name: known[name] for name in counted}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._one.param_groups[0]["lr"] = state["share"]
        self._torchs.load_state_dict({name: value for name, value in state.items() if name != "share"})


PLATEAU = "plateau"


def schedules(own: Mapping[str, Callable[..., float]]) -> dict[str, Callable[..., Any]]:
    """What makes a schedule's rates, by name: functions of FORMULAS and the user's own, and `Plateau`.

    Raises:
        ExperimentError: A function of the user's does not take what a schedule is given.
    """
    for name, function in own.items():
        positional = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        if name in FORMULAS or name == PLATEAU or len(positional) != 2:
            taken = name in FORMULAS or name == PLATEAU
            raise ExperimentError(
                "is the name of a schedule already" if taken else "it does not take a rate and a moment",
                where=f"lr_schedules.{name}",
                remedy="name it otherwise" if taken else "write it as: def mine(lr, at, *, knob=1.0): return lr * ...",
            )
    return {**FORMULAS, PLATEAU: Plateau, **own}


def begin(make: Callable[..., Any], settings: Mapping[str, Any], *, mode: str) -> Schedule:
    """The schedule of a trial, made by one of `schedules`; `mode` says which values of the goal are better."""
    return Plateau(mode, **settings) if make is Plateau else Formula(make, **settings)
