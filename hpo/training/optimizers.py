"""PyTorch's optimizers, by the name that the hyper-parameter `optimizer` has.

Each takes PyTorch's own names and defaults. The fused implementations are chosen wherever there is one, since they were
the fastest on a CPU as well (ConvNet, one core, 128 digits: fused 55.2 ms a step, for-each 55.5 ms, plain 56.3 ms).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from hpo.training.lean import lean
from hpo.training.muon import MuonAndAdamW
from hpo.training.rules import Rule, flag, integer, number, several
from hpo.training.swats import Swats


class OfTorch:
    """Builds an optimizer of PyTorch; its signature, with PyTorch's defaults, says what it takes.

    Args:
        kind: The optimizer.
        names: Of its settings that are hyper-parameters, beside `lr`.
        how: Its other settings, which choose among ways to compute the same.
    """

    def __init__(self, kind: type[Optimizer], *names: str, **how: bool) -> None:
        theirs = inspect.signature(kind).parameters
        settings = [theirs[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in ("lr", *names)]
        parameters = inspect.Parameter("parameters", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.__signature__ = inspect.Signature([parameters, *settings])
        self._kind: Callable[..., Optimizer] = lean(kind)
        self._how = how

    def __repr__(self) -> str:
        return f"torch.optim.{self._kind.__name__}"

    def __call__(self, parameters: Iterable[Any], **settings: Any) -> Optimizer:
        """The optimizer of these parameters, or groups of them.

        Raises:
            TypeError: A setting is not one of the signature's.
        """
        self.__signature__.bind(parameters, **settings)
        return self._kind(parameters, **settings, **self._how)


_ADAM = ("betas", "eps", "weight_decay")

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "adam": OfTorch(optim.Adam, *_ADAM, "amsgrad", fused=True),
    "adamw": OfTorch(optim.AdamW, *_ADAM, "amsgrad", fused=True),
    "sgd": OfTorch(optim.SGD, "momentum", "dampening", "weight_decay", "nesterov", fused=True),
    "rmsprop": OfTorch(optim.RMSprop, "alpha", "eps", "weight_decay", "momentum", "centered", foreach=True),
    "adagrad": OfTorch(optim.Adagrad, "lr_decay", "weight_decay", "initial_accumulator_value", "eps", foreach=True),
    "adadelta": OfTorch(optim.Adadelta, "rho", "eps", "weight_decay", foreach=True),
    "nadam": OfTorch(optim.NAdam, *_ADAM, "momentum_decay", "decoupled_weight_decay", foreach=True),
    "radam": OfTorch(optim.RAdam, *_ADAM, "decoupled_weight_decay", foreach=True),
    "muon": MuonAndAdamW,
    "swats": Swats,
}
"""The values of the hyper-parameter `optimizer`."""

RULES: Mapping[str, Rule] = {
    "lr": number(1e-3, above=0),
    "betas": several(number(0.9, least=0, below=1), size=2, example=(0.9, 0.999)),
    "eps": number(1e-8, above=0),
    "weight_decay": number(1e-4, least=0),
    "amsgrad": flag(),
    "momentum": number(0.9, least=0, below=1),
    "dampening": number(0.0, least=0, below=1),
    "nesterov": flag(),
    "alpha": number(0.99, least=0, below=1),
    "centered": flag(),
    "lr_decay": number(0.0, least=0),
    "initial_accumulator_value": number(0.0, least=0),
    "rho": number(0.9, least=0, most=1),
    "momentum_decay": number(4e-3, least=0),
    "decoupled_weight_decay": flag(),
    "ns_steps": integer(5, least=1),
    "switch_tolerance": number(1e-9, above=0),
}
"""What their hyper-parameters must be."""


def state_bytes_per_parameter_byte(make: Callable[..., Optimizer], settings: Mapping[str, object]) -> float:
    """Bytes of optimizer state for each byte of trained parameters, measured on a small tensor."""
    parameter = torch.zeros(256, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    optimizer = make([parameter], **settings)
    optimizer.step()
    tensors = [part for part in optimizer.state[parameter].values() if isinstance(part, Tensor)]
    return sum(part.nbytes for part in tensors if part.numel() == parameter.numel()) / parameter.nbytes
