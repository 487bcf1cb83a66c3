"""Optimizers whose numbers lie on the device, so that a captured step need not be captured again for other ones.

They compute what `torch.optim` computes, and their states are laid out as its states are: either continues from a
checkpoint of the other. PyTorch's own take one of these numbers as a tensor, the learning rate; the rest it reads on
the host, once and for all while a step is captured.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpo.training.lean import lean
from hpo.training.optimizers import OPTIMIZERS

INITIAL_LR = "initial_lr"
"""Where PyTorch's schedules keep the rate that a group began with."""


class Uncapturable(Exception):  # noqa: N818
    """Why a step cannot be captured, in words that complete "not captured: …"."""


class Capturable(Optimizer):
    """An optimizer that can be captured.

    `param_groups` hold Python numbers, as everywhere in PyTorch; `push` brings them to the device. Its state is there
    from the beginning, and stays where it is.

    Args:
        parameters: All of one type and on one device.
        defaults: Settings, by PyTorch's names.

    Raises:
        Uncapturable: The parameters are of several types.
    """

    on_device: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    """Numbers of a group that may change without capturing anew; zero and not zero are two different steps, for all
    but the learning rate."""

    def __init__(self, parameters: Iterable[Tensor], defaults: dict[str, Any]) -> None:
        super().__init__(parameters, {**defaults, "capturable": True})
        kinds = {(p.dtype, p.device) for group in self.param_groups for p in group["params"]}
        if len(kinds) > 1:
            raise Uncapturable(f"the parameters are of several types: {', '.join(sorted(str(kind) for kind in kinds))}")
        self._device = next(iter(kinds))[1]
        self._pushed: list[dict[str, float]] = [{} for _ in self.param_groups]
        self.numbers = [
            {name: torch.zeros((), device=self._device) for name in self.on_device if name in group}
            for group in self.param_groups
        ]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._first_state(parameter, group)
        self.push()

    @abstractmethod
    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """State before the first step."""

    @abstractmethod
    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor]) -> None:
        """One step of a group's parameters."""

    def push(self) -> None:
        """Bring the groups' numbers to the device; waits for nothing."""
        for group, numbers, pushed in zip(self.param_groups, self.numbers, self._pushed, strict=True):
            for name, tensor in numbers.items():
                if pushed.get(name) != group[name]:
                    tensor.fill_(group[name])
                    pushed[name] = group[name]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step, with the numbers of the last `push`."""
        assert closure is None  # noqa: S101 - nothing here has one
        for group, numbers in zip(self.param_groups, self.numbers, strict=True):
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                grads: list[Any] = [p.grad for p in parameters]
                self._update(parameters, grads, group, numbers)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state of this optimizer, or of PyTorch's own of that name, into the tensors that are there.

        Raises:
            ValueError: It is of other parameters.
        """
        theirs = state_dict["param_groups"]
        if [len(group["params"]) for group in theirs] != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("the optimizer's state is of other parameters")
        for group, saved in zip(self.param_groups, theirs, strict=True):
            group.update({name: saved[name] for name in self.on_device if name in group and name in saved})
            for parameter, index in zip(group["params"], saved["params"], strict=True):
                taken = state_dict["state"].get(index, {})
                first = self._first_state(parameter, group)
                for name, tensor in self.state[parameter].items():
                    tensor.copy_(first[name] if taken.get(name) is None else taken[name])
        self.push()

    def form(self) -> dict[str, object]:
        """What a captured step has built in: everything but values of tensors and of numbers on the device."""
        return {
            f"optimizer.{index}.{name}": self._built_in(name, value)
            for index, group in enumerate(self.param_groups)
            for name, value in {**group, "class": type(self).__name__, "params": len(group["params"])}.items()
            if name != INITIAL_LR
        }

    def _built_in(self, name: str, value: object) -> object:
        if name not in self.on_device:
            return value
        return "a number" if name == "lr" or value else 0

    def take(self, other: Capturable) -> None:
        """Take the numbers and the state of one of the same form."""
        for ours, theirs in zip(self.param_groups, other.param_groups, strict=True):
            ours.update({name: value for name, value in theirs.items() if name != "params"})
            for parameter, its in zip(ours["params"], theirs["params"], strict=True):
                for name, tensor in self.state[parameter].items():
                    tensor.copy_(other.state[its][name])
        self.push()

    def _kept(self, name: str, parameters: list[Tensor]) -> list[Tensor]:
        """What the state of each parameter has under the name."""
        return [self.state[parameter][name] for parameter in parameters]

    def _steps(self, parameters: list[Tensor]) -> Tensor:
        """(P,) float64: the number of this step to each of the parameters, which is counted here.

        Double, for 1 - 0.999 has three digits less than 0.999.
        """
        steps = self._kept("step", parameters)
        torch._foreach_add_(steps, 1)
        return torch.stack(steps).double()


def _begun(parameter: Tensor, *names: str) -> dict[str, Tensor]:
    """A count of steps, and tensors of zeros like the parameter."""
    return {
        "step": torch.zeros((), device=parameter.device),
        **{name: torch.zeros_like(parameter) for name in names},
    }


def _decayed(
    parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor], *, decoupled: bool = False
) -> list[Tensor]:
    """The gradients, with that of the weight decay, unless that is decoupled: then the parameters shrink."""
    if not group["weight_decay"]:
        return grads
    if decoupled:
        torch._foreach_mul_(parameters, 1 - numbers["lr"] * numbers["weight_decay"])
        return grads
    return list(torch._foreach_add(grads, torch._foreach_mul(parameters, numbers["weight_decay"])))


def _mean(means: list[Tensor], values: list[Tensor], decay: float) -> list[Tensor]:
    """The running means, moved towards the values."""
    torch._foreach_lerp_(means, values, 1 - decay)
    return means


def _mean_square(means: list[Tensor], values: list[Tensor], decay: float) -> list[Tensor]:
    """The running means, moved towards the squares of the values."""
    torch._foreach_mul_(means, decay)
    torch._foreach_addcmul_(means, values, values, value=1 - decay)
    return means


def _each(factors_P: Tensor) -> list[Tensor]:
    """Float32 factors (), one for each parameter."""
    return list(factors_P.float().unbind())


class _CapturableAdam(Capturable):
    decoupled: ClassVar[bool]

    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        return _begun(parameter, "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))

    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor]) -> None:
        grads = _decayed(parameters, grads, group, numbers, decoupled=self.decoupled)
        steps = self._kept("step", parameters)
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters,
            grads,
            self._kept("exp_avg", parameters),
            self._kept("exp_avg_sq", parameters),
            self._kept("max_exp_avg_sq", parameters) if group["amsgrad"] else [],
            steps,
            lr=numbers["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=False,
        )


class _Adam(_CapturableAdam):
    decoupled = False


class _AdamW(_CapturableAdam):
    decoupled = True


class _Sgd(Capturable):
    on_device = ("lr", "weight_decay", "momentum")

    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(parameter)} if group["momentum"] else {}

    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor]) -> None:
        grads = _decayed(parameters, grads, group, numbers)
        if group["momentum"]:
            velocities = self._kept("momentum_buffer", parameters)
            torch._foreach_mul_(velocities, numbers["momentum"])
            torch._foreach_add_(velocities, grads)
            ahead = torch._foreach_mul(velocities, numbers["momentum"]) if group["nesterov"] else None
            grads = velocities if ahead is None else list(torch._foreach_add(grads, ahead))
        torch._foreach_add_(parameters, torch._foreach_mul(grads, -numbers["lr"]))


class _RmsProp(Capturable):
    on_device = ("lr", "weight_decay", "momentum")

    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        more = {"momentum_buffer": group["momentum"], "grad_avg": group["centered"]}
        return _begun(parameter, "square_avg", *(name for name, is_kept in more.items() if is_kept))

    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor]) -> None:
        grads = _decayed(parameters, grads, group, numbers)
        torch._foreach_add_(self._kept("step", parameters), 1)  # for PyTorch's own, which counts and does not look
        size = _mean_square(self._kept("square_avg", parameters), grads, group["alpha"])
        if group["centered"]:
            means = _mean(self._kept("grad_avg", parameters), grads, group["alpha"])
            size = list(torch._foreach_addcmul(size, means, means, value=-1))
        size = list(torch._foreach_sqrt(size))
        torch._foreach_add_(size, group["eps"])
        moves = list(torch._foreach_div(grads, size))
        if group["momentum"]:
            velocities = self._kept("momentum_buffer", parameters)
            torch._foreach_mul_(velocities, numbers["momentum"])
            torch._foreach_add_(velocities, moves)
            moves = velocities
        torch._foreach_add_(parameters, torch._foreach_mul(moves, -numbers["lr"]))


class _Adagrad(Capturable):
    on_device = ("lr", "weight_decay", "lr_decay")

    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        return {**_begun(parameter), "sum": torch.full_like(parameter, group["initial_accumulator_value"])}

    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor]) -> None:
        grads = _decayed(parameters, grads, group, numbers)
        rates = _each(-numbers["lr"] / (1 + (self._steps(parameters) - 1) * numbers["lr_decay"]))
        sums = self._kept("sum", parameters)
        torch._foreach_addcmul_(sums, grads, grads)
        size = torch._foreach_sqrt(sums)
        torch._foreach_add_(size, group["eps"])
        torch._foreach_addcdiv_(parameters, torch._foreach_mul(grads, rates), size)


class _Adadelta(Capturable):
    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        return _begun(parameter, "square_avg", "acc_delta")

    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor]) -> None:
        grads = _decayed(parameters, grads, group, numbers)
        torch._foreach_add_(self._kept("step", parameters), 1)  # for PyTorch's own, which counts and does not look
        moved = self._kept("acc_delta", parameters)
        size = torch._foreach_add(_mean_square(self._kept("square_avg", parameters), grads, group["rho"]), group["eps"])
        torch._foreach_sqrt_(size)
        moves = torch._foreach_add(moved, group["eps"])
        torch._foreach_sqrt_(moves)
        torch._foreach_div_(moves, size)
        torch._foreach_mul_(moves, grads)
        _mean_square(moved, list(moves), group["rho"])
        torch._foreach_add_(parameters, torch._foreach_mul(moves, -numbers["lr"]))


class _NAdam(Capturable):
    on_device = ("lr", "weight_decay", "momentum_decay")

    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        product = torch.ones((), device=parameter.device)
        return {**_begun(parameter, "exp_avg", "exp_avg_sq"), "mu_product": product}

    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor]) -> None:
        grads = _decayed(parameters, grads, group, numbers, decoupled=group["decoupled_weight_decay"])
        (beta1, beta2), lr, steps = group["betas"], numbers["lr"], self._steps(parameters)
        now, then = (beta1 * (1 - 0.5 * 0.96 ** (at * numbers["momentum_decay"])) for at in (steps, steps + 1))
        products = self._kept("mu_product", parameters)
        torch._foreach_mul_(products, _each(now))
        product = torch.stack(products).double()
        means = _mean(self._kept("exp_avg", parameters), grads, beta1)
        size = torch._foreach_sqrt(_mean_square(self._kept("exp_avg_sq", parameters), grads, beta2))
        torch._foreach_div_(size, _each((1 - beta2**steps).sqrt()))
        torch._foreach_add_(size, group["eps"])
        moves = torch._foreach_mul(grads, _each(-lr * (1 - now) / (1 - product)))
        torch._foreach_add_(moves, torch._foreach_mul(means, _each(-lr * then / (1 - product * then))))
        torch._foreach_addcdiv_(parameters, moves, size)


class _RAdam(Capturable):
    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        return _begun(parameter, "exp_avg", "exp_avg_sq")

    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor]) -> None:
        grads = _decayed(parameters, grads, group, numbers, decoupled=group["decoupled_weight_decay"])
        (beta1, beta2), steps = group["betas"], self._steps(parameters)
        rate, unbiased = numbers["lr"] / (1 - beta1**steps), 1 - beta2**steps
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * steps * beta2**steps / unbiased  # rho of the paper (Liu et al. 2020, algorithm 2)
        is_long = length > 5.0
        long = length.clamp(min=5.0)
        rectified = ((long - 4) * (long - 2) * longest / ((longest - 4) * (longest - 2) * long) * unbiased).sqrt()
        means = _mean(self._kept("exp_avg", parameters), grads, beta1)
        factors = torch._foreach_sqrt(_mean_square(self._kept("exp_avg_sq", parameters), grads, beta2))
        torch._foreach_add_(factors, group["eps"])
        torch._foreach_reciprocal_(factors)
        torch._foreach_mul_(factors, _each(torch.where(is_long, rate * rectified, 0.0)))
        torch._foreach_add_(factors, _each(torch.where(is_long, 0.0, rate)))
        torch._foreach_addcmul_(parameters, means, factors, value=-1)


def _namesake(kind: type[Capturable], name: str) -> Callable[..., Capturable]:
    """Builds `kind` with the settings and defaults of its namesake in `optimizers`."""
    parameters = inspect.signature(OPTIMIZERS[name]).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
    }

    def build(parameters: Iterable[Tensor], **settings: Any) -> Capturable:
        if settings.get("dampening") and settings.get("momentum"):
            raise Uncapturable("dampening makes the first step another one")
        return kind(parameters, {**defaults, **settings})

    return build


_KINDS: Mapping[str, type[Capturable]] = {
    "adam": _Adam,
    "adamw": _AdamW,
    "sgd": _Sgd,
    "rmsprop": _RmsProp,
    "adagrad": _Adagrad,
    "adadelta": _Adadelta,
    "nadam": _NAdam,
    "radam": _RAdam,
}

CAPTURABLE: Mapping[str, Callable[..., Capturable]] = {
    name: _namesake(lean(kind), name) for name, kind in _KINDS.items()
}
"""By the values of the hyper-parameter `optimizer`; each takes what its namesake in `optimizers` takes."""
