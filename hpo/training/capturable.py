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
                for name, tensor in self.state[parameter].items():
                    value = state_dict["state"].get(index, {}).get(name)
                    tensor.zero_() if value is None else tensor.copy_(value)
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


class _CapturableAdam(Capturable):
    decoupled: ClassVar[bool]

    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        names = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
        step = torch.zeros((), device=parameter.device)
        return {"step": step, **{name: torch.zeros_like(parameter) for name in names}}

    def _update(self, parameters: list[Tensor], grads: list[Tensor], group: Any, numbers: Mapping[str, Tensor]) -> None:
        lr, weight_decay = numbers["lr"], numbers["weight_decay"]
        if group["weight_decay"] and self.decoupled:
            torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        elif group["weight_decay"]:
            grads = list(torch._foreach_add(grads, torch._foreach_mul(parameters, weight_decay)))
        states = [self.state[parameter] for parameter in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            steps,
            lr=lr,
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
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, torch._foreach_mul(parameters, numbers["weight_decay"])))
        if group["momentum"]:
            velocities = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_mul_(velocities, numbers["momentum"])
            torch._foreach_add_(velocities, grads)
            ahead = torch._foreach_mul(velocities, numbers["momentum"]) if group["nesterov"] else None
            grads = velocities if ahead is None else list(torch._foreach_add(grads, ahead))
        torch._foreach_add_(parameters, torch._foreach_mul(grads, -numbers["lr"]))


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


CAPTURABLE: Mapping[str, Callable[..., Capturable]] = {
    name: _namesake(lean(kind), name) for name, kind in (("adam", _Adam), ("adamw", _AdamW), ("sgd", _Sgd))
}
"""By the values of the hyper-parameter `optimizer`; each takes what its namesake in `optimizers` takes."""
