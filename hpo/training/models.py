"""Two networks to begin with; any other `torch.nn.Module` class, or function that returns one, will do as well."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpo.training.rules import Rule, integer, number, several

_WIDTHS = several(integer(64, least=1), example=(64, 64), least=1)
_DROPOUT = number(0.3, least=0, below=1)


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


class ConvNet(nn.Module):
    """A plain convolutional network: convolution, batch norm, ReLU for each filter, halved at every second.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        filters: Output channels of each convolution. With the default 0.56 M parameters on 32 x 32 x 3 images.
        dropout: Probability of dropping a feature before the last layer, in [0, 1).
        kernel_size: Side of the convolutions, odd.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "filters": _WIDTHS,
        "dropout": _DROPOUT,
        "kernel_size": integer(3, least=1, odd=True),
    }

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        filters: tuple[int, ...] = (64, 64, 128, 128, 256),
        dropout: float = 0.0,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise((in_channels, *filters))):
            layers += [
                nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, bias=False),
                nn.BatchNorm2d(after),
            ]
            if index % 2:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil: a 1 x 1 map stays one
            layers.append(nn.ReLU(inplace=True))  # after the pooling: the same numbers, for a quarter of the work
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), Dropout(dropout), nn.Linear(filters[-1], num_classes)
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.head(self.features(images_BCHW))
        return logits


class Mlp(nn.Module):
    """Fully connected layers with ReLU on the flattened input.

    Args:
        in_features: Numbers in one sample: channels x height x width of an image.
        num_classes: Number of outputs.
        hidden: Width of each hidden layer; none for a linear model.
        dropout: Probability of dropping a feature after each hidden layer, in [0, 1).
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "hidden": several(integer(256, least=1), example=(256,)),
        "dropout": _DROPOUT,
    }

    def __init__(
        self, in_features: int, num_classes: int, *, hidden: tuple[int, ...] = (256,), dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((in_features, *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True), Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear((in_features, *hidden)[-1], num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, num_classes) of inputs (B, …)."""
        logits: Tensor = self.layers(inputs)
        return logits
