"""PyTorch's optimizers, by the name that the hyper-parameter `optimizer` has.

Each takes PyTorch's own names and defaults. The fused implementations are chosen wherever there is one, since they were
the fastest on a CPU as well (ConvNet, one core, 128 digits: fused 55.2 ms a step, for-each 55.5 ms, plain 56.3 ms).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpo.training.lean import lean
from hpo.training.muon import MuonAndAdamW
from hpo.training.rules import Rule, flag, integer, number, several
from hpo.training.swats import Swats

_Adam, _AdamW, _Sgd = lean(torch.optim.Adam), lean(torch.optim.AdamW), lean(torch.optim.SGD)
_RmsProp, _Adagrad, _Adadelta = lean(torch.optim.RMSprop), lean(torch.optim.Adagrad), lean(torch.optim.Adadelta)
_NAdam, _RAdam = lean(torch.optim.NAdam), lean(torch.optim.RAdam)


def adam(
    parameters: Iterable[Tensor],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> Optimizer:
    """`torch.optim.Adam`."""
    return _Adam(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, fused=True)


def adamw(
    parameters: Iterable[Tensor],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
) -> Optimizer:
    """`torch.optim.AdamW`."""
    return _AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, fused=True)


def sgd(
    parameters: Iterable[Tensor],
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Optimizer:
    """`torch.optim.SGD`."""
    return _Sgd(
        parameters,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        fused=True,
    )


def rmsprop(
    parameters: Iterable[Tensor],
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> Optimizer:
    """`torch.optim.RMSprop`."""
    settings: dict[str, Any] = {"alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    return _RmsProp(parameters, lr=lr, centered=centered, foreach=True, **settings)


def adagrad(
    parameters: Iterable[Tensor],
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> Optimizer:
    """`torch.optim.Adagrad`."""
    settings: dict[str, Any] = {"initial_accumulator_value": initial_accumulator_value, "eps": eps}
    return _Adagrad(parameters, lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, foreach=True, **settings)


def adadelta(
    parameters: Iterable[Tensor], *, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0
) -> Optimizer:
    """`torch.optim.Adadelta`."""
    return _Adadelta(parameters, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, foreach=True)


def nadam(
    parameters: Iterable[Tensor],
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
) -> Optimizer:
    """`torch.optim.NAdam`."""
    settings: dict[str, Any] = {"momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay}
    return _NAdam(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=True, **settings)


def radam(
    parameters: Iterable[Tensor],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
) -> Optimizer:
    """`torch.optim.RAdam`."""
    settings: dict[str, Any] = {"weight_decay": weight_decay, "decoupled_weight_decay": decoupled_weight_decay}
    return _RAdam(parameters, lr=lr, betas=betas, eps=eps, foreach=True, **settings)


def muon(
    parameters: Iterable[Tensor],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
) -> Optimizer:
    """`torch.optim.Muon` for matrices, `torch.optim.AdamW` (`betas`, `eps`) for all other parameters."""
    return MuonAndAdamW(
        parameters,
        lr=lr,
        weight_decay=weight_decay,
        muon={"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps},
        adamw={"betas": betas, "eps": eps},
    )


def swats(
    parameters: Iterable[Tensor],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    switch_tolerance: float = 1e-9,
) -> Optimizer:
    """Adam that switches to SGD by itself: `hpo.training.swats.Swats`."""
    return Swats(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, switch_tolerance=switch_tolerance)


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    make.__name__: make for make in (adam, adamw, sgd, rmsprop, adagrad, adadelta, nadam, radam, muon, swats)
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
