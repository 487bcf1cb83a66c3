"""Dropout whose probability may change in a captured step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpo.training.rules import number

DROPOUT = number(0.3, least=0, below=1)
"""What a probability of dropping must be."""


class Dropout(nn.Module):
    """`torch.nn.Dropout` whose probability is a tensor: a captured step serves models that differ in it alone.

    Args:
        p: Probability of dropping a feature, in [0, 1).
    """

    p: Tensor

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("p", torch.tensor(float(p)), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """The same shape and type: some features 0, the others scaled up, while training; else the inputs."""
        if not self.training:
            return inputs
        share = 1 - self.p
        return inputs * (torch.bernoulli(share.expand(inputs.shape)) / share).to(inputs.dtype)


class DroppingLinear(nn.Linear):
    """A linear layer that drops some of its inputs while training; its state is that of `torch.nn.Linear`.

    Args:
        linear: Whose weight and bias it takes over; not to be used any more.
        p: Probability of dropping an input, in [0, 1).
    """

    def __init__(self, linear: nn.Linear, *, p: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.dropout = Dropout(p)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (…, out_features) of inputs (…, in_features)."""
        return functional.linear(self.dropout(inputs), self.weight, self.bias)
