"""Fully connected layers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from hpo.training.models.dropout import DROPOUT, Dropout
from hpo.training.models.initialization import GAINS, INIT, initialize
from hpo.training.models.layers import ACTIVATION, NORM, activation_of, norm_of_features
from hpo.training.rules import Rule, integer, several


class Mlp(nn.Module):
    """Fully connected layers on the flattened input.

    Args:
        in_features: Numbers in one sample: channels x height x width of an image.
        num_classes: Number of outputs.
        hidden: Width of each hidden layer; none for a linear model.
        activation: After each hidden layer.
        norm: Between a hidden layer and its activation; "group" as `layers.norm_of_maps` says.
        init: How weights are drawn, with gains that fit the activation; "default" is PyTorch's.
        dropout: Probability of dropping a feature after each hidden layer, in [0, 1).
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "hidden": several(integer(256, least=1), example=(256,)),
        "activation": ACTIVATION,
        "norm": NORM,
        "init": INIT,
        "dropout": DROPOUT,
    }

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: tuple[int, ...] = (256,),
        activation: str = "relu",
        norm: str = "none",
        init: str = "default",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((in_features, *hidden)):
            layers += _layer(before, after, norm=norm, active=activation, dropout=dropout)
        head = nn.Linear((in_features, *hidden)[-1], num_classes)
        self.layers = nn.Sequential(*layers, head)
        initialize(self.layers[:-1], init=init, gain=GAINS[activation])
        initialize(head, init=init)

    def blocks(self) -> list[list[str]]:
        """Each linear layer with its norm."""
        found: list[list[str]] = []
        for index, layer in enumerate(self.layers):
            if isinstance(layer, nn.Linear):
                found.append([])
            if found:
                found[-1].append(f"layers.{index}")
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, num_classes) of inputs (B, …)."""
        logits: Tensor = self.layers(inputs)
        return logits


def _layer(before: int, after: int, *, norm: str, active: str, dropout: float) -> list[nn.Module]:
    linear = nn.Linear(before, after, bias=norm == "none")
    return [linear, *norm_of_features(norm, after), activation_of(active), Dropout(dropout)]
