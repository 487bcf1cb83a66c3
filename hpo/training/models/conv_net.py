"""A plain convolutional network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from hpo.errors import ExperimentError
from hpo.training.models.dropout import DROPOUT, Dropout
from hpo.training.models.initialization import GAINS, INIT, initialize
from hpo.training.models.layers import ACTIVATION, NORM, POOLING, activation_of, norm_of_maps, pooled
from hpo.training.rules import Rule, integer, number, several

_DEPTH, _GROWTH = 5, 2.0
_WIDTH = integer(64, least=1)
_WIDTHS = several(_WIDTH, example=(64, 64), least=1)
_FILTERS = Rule(
    f"{_WIDTHS.says}, or {_WIDTH.says}", _WIDTHS.example, lambda value: _WIDTHS.holds(value) or _WIDTH.holds(value)
)


class ConvNet(nn.Module):
    """A plain convolutional network: convolution, norm and activation for each filter, pooled at every second.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        filters: Output channels of each convolution; or, as one number, of those before the first pooling. 64, which
            is (64, 64, 128, 128, 256), has 0.56 M parameters on 32 x 32 x 3 images.
        depth: Convolutions, where `filters` is one number; None: 5.
        filter_growth: What each pooling multiplies the channels by, where `filters` is one number; None: 2.
        kernel_size: Side of the convolutions, odd.
        pooling: "max" or "avg".
        pool_size: What a pooling divides the sides of a map by, rounded up: a map of one place stays one. 1: nothing.
        pool_every: Convolutions to a pooling.
        activation: After each convolution.
        norm: Between a convolution and its activation; see `layers.norm_of_maps`.
        init: How weights are drawn, with gains that fit the activation; "default" is PyTorch's.
        dropout: Probability of dropping a feature before the last layer, in [0, 1).

    Raises:
        ExperimentError: `depth` or `filter_growth` is given, and `filters` is a tuple, which says both.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "filters": _FILTERS,
        "depth": integer(_DEPTH, least=1).or_none(),
        "filter_growth": number(_GROWTH, above=0).or_none(),
        "kernel_size": integer(3, least=1, odd=True),
        "pooling": POOLING,
        "pool_size": integer(2, least=1),
        "pool_every": integer(2, least=1),
        "activation": ACTIVATION,
        "norm": NORM,
        "init": INIT,
        "dropout": DROPOUT,
    }

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        filters: tuple[int, ...] | int = 64,
        depth: int | None = None,
        filter_growth: float | None = None,
        kernel_size: int = 3,
        pooling: str = "max",
        pool_size: int = 2,
        pool_every: int = 2,
        activation: str = "relu",
        norm: str = "batch",
        init: str = "default",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = _widths(filters, depth=depth, growth=filter_growth, pool_every=pool_every)
        layers: list[nn.Module] = []
        for number_of, (before, after) in enumerate(pairwise((in_channels, *widths)), 1):
            layers.append(nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, bias=norm == "none"))
            layers += norm_of_maps(norm, after)
            ends = pool_size > 1 and number_of % pool_every == 0
            layers += pooled(pooling, pool_size, after=activation) if ends else [activation_of(activation)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), Dropout(dropout), nn.Linear(widths[-1], num_classes)
        )
        initialize(self.features, init=init, gain=GAINS[activation])
        initialize(self.head, init=init)

    def blocks(self) -> list[list[str]]:
        """Each convolution with its norm, and the head."""
        found: list[list[str]] = []
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                found.append([])
            found[-1].append(f"features.{index}")
        return [*found, ["head"]]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.head(self.features(images_BCHW))
        return logits


def _widths(
    filters: tuple[int, ...] | int, *, depth: int | None, growth: float | None, pool_every: int
) -> tuple[int, ...]:
    if isinstance(filters, int):
        factor = _GROWTH if growth is None else growth
        return tuple(max(1, round(filters * factor ** (index // pool_every))) for index in range(depth or _DEPTH))
    for name, value in (("depth", depth), ("filter_growth", growth)):
        if value is not None:
            raise ExperimentError(
                f"{value!r} is given, but filters={tuple(filters)!r} says the channels of each convolution",
                where=name,
                remedy=f"leave it out, or give filters as one number, e.g. filters={filters[0]}",
            )
    return tuple(filters)
