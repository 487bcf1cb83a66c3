"""What small images ask of a torchvision network, by its family.

These networks divide the sides of an image by 4 before they compute much, and by 32 in all. An image of 32 x 32 would
be one place by then. So the first two halvings are left out, as He et al. 2015 did for CIFAR-10: a ResNet begins with
a 3 x 3 convolution of stride 1 and no pooling, and ends with 4 x 4 places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Stem:
    """Where a family of networks takes images in.

    Attributes:
        first: The convolution that sees the image.
        halvings: Modules that halve first and are left out for small images: a pooling goes, convolutions in them get
            stride 1.
        in_patches: The first convolution cuts the image into patches that do not overlap.
    """

    first: str
    halvings: tuple[str, ...] = ()
    in_patches: bool = False


_STEMS: Mapping[str, Stem] = {
    "alexnet": Stem("features.0", ("features.0",)),
    "convnext": Stem("features.0.0", ("features.0.0",), in_patches=True),
    "densenet": Stem("features.conv0", ("features.conv0", "features.pool0")),
    "efficientnet": Stem("features.0.0", ("features.0.0", "features.2")),
    "googlenet": Stem("conv1.conv", ("conv1.conv", "maxpool1")),
    "inception": Stem("Conv2d_1a_3x3.conv", ("Conv2d_1a_3x3.conv", "maxpool1")),
    "maxvit": Stem("stem.0.0"),
    "mnasnet": Stem("layers.0", ("layers.0", "layers.8")),
    "mobilenet_v2": Stem("features.0.0", ("features.0.0", "features.2")),
    "mobilenet_v3_large": Stem("features.0.0", ("features.0.0", "features.2")),
    "mobilenet_v3_small": Stem("features.0.0", ("features.0.0", "features.1")),
    "regnet": Stem("stem.0", ("stem.0", "trunk_output.block1")),
    "resnet": Stem("conv1", ("conv1", "maxpool")),
    "resnext": Stem("conv1", ("conv1", "maxpool")),
    "shufflenet": Stem("conv1.0", ("conv1.0", "maxpool")),
    "squeezenet": Stem("features.0", ("features.0", "features.2")),
    "swin": Stem("features.0.0", ("features.0.0",), in_patches=True),
    "vgg": Stem("features.0"),
    "vit": Stem("conv_proj", ("conv_proj",), in_patches=True),
    "wide_resnet": Stem("conv1", ("conv1", "maxpool")),
}


def stem_of(name: str) -> Stem:
    """Where the network of this name takes images in."""
    return _STEMS[max((prefix for prefix in _STEMS if name.startswith(prefix)), key=len)]


def take_channels(model: nn.Module, stem: Stem, *, in_channels: int) -> None:
    """Let `model` take images of so many channels: where it takes others, its first convolution becomes a new one."""
    old = _convolution(model, stem)
    if old.in_channels != in_channels:
        side, stride, padding = old.kernel_size[0], old.stride[0], int(old.padding[0])
        _begin_with(model, stem, in_channels=in_channels, side=side, stride=stride, padding=padding, like=old)


def suit_small_images(model: nn.Module, stem: Stem, *, keep_kernels: bool) -> None:
    """Leave out the first halvings of `model`, and let no pooling take the last place of a map.

    Args:
        model: Of torchvision.
        stem: Its own.
        keep_kernels: The first convolution keeps its weights, whatever their size; else it becomes a new one of 3 x 3.
    """
    for name in stem.halvings:
        part = model.get_submodule(name)
        if isinstance(part, nn.MaxPool2d):
            model.set_submodule(name, nn.Identity())
        elif name != stem.first or keep_kernels:
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.stride = (1, 1)
        else:
            old = _convolution(model, stem)
            _begin_with(model, stem, in_channels=old.in_channels, side=3, stride=1, padding=1, like=old)
    for layer in model.modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # a map of one place stays one


def set_patches(model: nn.Module, stem: Stem, *, image_side: int, patch: int) -> None:
    """Let a ViT that was built for as many patches cut images of `image_side` into patches of side `patch`."""
    old = _convolution(model, stem)
    _begin_with(model, stem, in_channels=old.in_channels, side=patch, stride=patch, padding=0, like=old)
    model.image_size = image_side  # type: ignore[assignment]
    model.patch_size = patch  # type: ignore[assignment]


def _convolution(model: nn.Module, stem: Stem) -> nn.Conv2d:
    found = model.get_submodule(stem.first)
    if not isinstance(found, nn.Conv2d):
        raise TypeError(f"{stem.first} of {type(model).__name__} is no convolution: this torchvision is another one")
    return found


def _begin_with(
    model: nn.Module, stem: Stem, *, in_channels: int, side: int, stride: int, padding: int, like: nn.Conv2d
) -> None:
    has_bias = like.bias is not None
    new = nn.Conv2d(in_channels, like.out_channels, side, stride=stride, padding=padding, bias=has_bias)
    nn.init.kaiming_normal_(new.weight, nonlinearity="linear" if stem.in_patches else "relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    model.set_submodule(stem.first, new)


def check_forward(model: nn.Module, *, in_channels: int, sides: tuple[int, int]) -> None:
    """Raise what PyTorch raises where `model`, on the host, cannot take such images: it is given one."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_channels, *sides))
    finally:
        model.train(was_training)
