"""What stands between the weights of a network: activations, norms and poolings, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from hpo.training.rules import one_of

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
"""Activations by name, with PyTorch's settings."""

ACTIVATION = one_of(*ACTIVATIONS)
NORM = one_of("batch", "layer", "group", "none")
POOLING = one_of("max", "avg")

_NEVER_FALL = ("relu", "leaky_relu", "elu", "tanh")
_GROUPS = 32


def activation_of(name: str) -> nn.Module:
    """A new one.

    Raises:
        ExperimentError: There is none of that name.
    """
    ACTIVATION.check(name, where="activation")
    return ACTIVATIONS[name]()


def norm_of_maps(kind: str, channels: int) -> list[nn.Module]:
    """The norm of maps (B, channels, H, W), or nothing for "none".

    "layer" is over the channels and places of a sample. "group" is over as many groups of equally many channels as can
    be made, of at least two channels each, and 32 at most (Wu & He 2018).

    Raises:
        ExperimentError: There is none of that name.
    """
    return _norm(kind, channels, batch=nn.BatchNorm2d, layer=lambda num: nn.GroupNorm(1, num))


def norm_of_features(kind: str, width: int) -> list[nn.Module]:
    """The norm of features (B, width), or nothing for "none"; groups as `norm_of_maps` has them.

    Raises:
        ExperimentError: There is none of that name.
    """
    return _norm(kind, width, batch=nn.BatchNorm1d, layer=nn.LayerNorm)


def _norm(
    kind: str, width: int, *, batch: Callable[[int], nn.Module], layer: Callable[[int], nn.Module]
) -> list[nn.Module]:
    NORM.check(kind, where="norm")
    kinds: Mapping[str, Callable[[int], nn.Module]] = {
        "batch": batch,
        "layer": layer,
        "group": lambda num: nn.GroupNorm(num_groups(num), num),
    }
    return [kinds[kind](width)] if kind in kinds else []


def num_groups(channels: int) -> int:
    """The largest divisor of `channels` that is at most 32 and leaves two channels to a group; 1 where none does."""
    most = min(_GROUPS, channels // 2)
    return max((groups for groups in range(1, most + 1) if channels % groups == 0), default=1)


def pooled(kind: str, size: int, *, after: str) -> list[nn.Module]:
    """The activation `after` and a pooling by `size`, in the order that takes less work.

    The largest of what an activation that never falls gives is what it gives for the largest, so that pooling comes
    first, and it has a part of the work. A map that is smaller than `size` is pooled to one place.

    Raises:
        ExperimentError: There is none of that name.
    """
    POOLING.check(kind, where="pooling")
    active = activation_of(after)
    if kind == "avg":
        return [active, nn.AvgPool2d(size, ceil_mode=True)]
    pooling = nn.MaxPool2d(size, ceil_mode=True)
    return [pooling, active] if after in _NEVER_FALL else [active, pooling]
