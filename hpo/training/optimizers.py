"""PyTorch's optimizers, by the name that the hyper-parameter `optimizer` has.

Each takes PyTorch's own names and defaults. The fused implementations are chosen everywhere, since they were the
fastest on a CPU as well (ConvNet, one core, 128 digits: fused 55.2 ms a step, for-each 55.5 ms, plain 56.3 ms).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpo.training.lean import lean
from hpo.training.rules import Rule, flag, number, several

_Adam, _AdamW, _Sgd = lean(torch.optim.Adam), lean(torch.optim.AdamW), lean(torch.optim.SGD)


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


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"adam": adam, "adamw": adamw, "sgd": sgd}
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
