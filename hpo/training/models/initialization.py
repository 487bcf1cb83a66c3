"""First weights, by the names that people know them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hpo.training.rules import one_of

INIT = one_of("default", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal", "orthogonal")

GAINS: Mapping[str, float] = {
    "relu": nn.init.calculate_gain("relu"),
    "leaky_relu": nn.init.calculate_gain("leaky_relu", 0.01),
    "tanh": nn.init.calculate_gain("tanh"),
    "elu": 1.2452,
    "gelu": 1.5335,
    "silu": 1.6765,
}
"""What an activation shrinks its inputs by, so that weights have to be so much larger.

PyTorch's, where it has one; else 1 / sqrt(E[f(z)^2]) for z ~ N(0, 1), which for "relu" is PyTorch's, too.
"""


def initialize(module: nn.Module, *, init: str, gain: float = 1.0) -> None:
    """Draw the weights of all convolutions and linear layers in `module` anew, from PyTorch's global generator.

    Biases become 0. "kaiming" means a variance of gain^2 / inputs (He et al. 2015), "xavier" one of
    2 gain^2 / (inputs + outputs) (Glorot & Bengio 2010), "orthogonal" rows or columns of length `gain` (Saxe et al.
    2014). "default" leaves what PyTorch has drawn.

    Args:
        module: Whose layers.
        init: How.
        gain: Of the activation that follows: `GAINS`, or 1 where none does.

    Raises:
        ExperimentError: There is no `init` of that name.
    """
    INIT.check(init, where="init")
    if init == "default":
        return
    for layer in module.modules():
        if isinstance(layer, (_ConvNd, nn.Linear)):
            _DRAW[init](layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _kaiming(draw: Callable[..., Tensor]) -> Callable[[Tensor, float], object]:
    @torch.no_grad()
    def drawn(weight: Tensor, gain: float) -> Tensor:
        return draw(weight, nonlinearity="linear").mul_(gain)  # of gain 1: PyTorch takes no gain here

    return drawn


_DRAW: Mapping[str, Callable[[Tensor, float], object]] = {
    "kaiming_uniform": _kaiming(nn.init.kaiming_uniform_),
    "kaiming_normal": _kaiming(nn.init.kaiming_normal_),
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "orthogonal": nn.init.orthogonal_,
}
