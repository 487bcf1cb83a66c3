"""The blocks of a model, from its input to its head: what people freeze, thaw, and train at rates of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from hpo.errors import ExperimentError

_STARTS: Mapping[str, tuple[str, ...]] = {
    "AlexNet": ("features.*", "classifier.*"),
    "ConvNeXt": ("features.0", "features.1", "features.2", "features.4", "features.6", "classifier.*"),
    "DenseNet": (
        "features.conv0",
        "features.denseblock1",
        "features.denseblock2",
        "features.denseblock3",
        "features.denseblock4",
        "classifier",
    ),
    "EfficientNet": ("features.*", "classifier.*"),
    "MNASNet": ("layers.*", "classifier.*"),
    "MaxVit": ("stem", "blocks.*", "classifier.*"),
    "MobileNetV2": ("features.*", "classifier.*"),
    "MobileNetV3": ("features.*", "classifier.*"),
    "RegNet": ("stem", "trunk_output.*", "fc"),
    "ResNet": ("conv1", "layer1", "layer2", "layer3", "layer4", "fc"),
    "SqueezeNet": ("features.*", "classifier.*"),
    "SwinTransformer": ("features.0", "features.1", "features.2", "features.4", "features.6", "head"),
    "VisionTransformer": ("conv_proj", "encoder.layers.*", "heads"),
}
"""The modules with which blocks of torchvision's networks begin; `*`: each child that has more than a norm has."""


@dataclass(frozen=True)
class Block:
    """A part of a model that is frozen as a whole.

    Attributes:
        name: Of the module that it begins with.
        parameters: Names of its parameters, in the model's order; at least one.
        modules: Names of its modules that have no others in them.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]


def blocks(model: nn.Module) -> tuple[Block, ...]:
    """The blocks, from the input to the head, which is the last; each parameter is in exactly one.

    A model says itself what they are by a method `blocks()` that gives, from input to head, the name of a module or
    parameter for each block, or a sequence of such names. Else they are known for torchvision's networks: a ResNet's
    are its stem, layer1 to layer4, fc; a VGG's what lies between its poolings, and each layer after them. Else they
    are the children of the model in the order in which it was given them, those of its only child where it has one,
    and those of a `ModuleList`. What has no tensor of two dimensions, a norm, belongs to the block before it.

    Raises:
        ExperimentError: The model's own `blocks()` names something that it does not have, twice, or not everything.
    """
    said = getattr(model, "blocks", None)
    if callable(said) and not isinstance(said, nn.Module):
        found = _as_said(model, [(part,) if isinstance(part, str) else tuple(part) for part in said()])
    else:
        found = _from_starts(model, list(_starts(model)))
    return tuple(block for block in found if block.parameters)


def _from_starts(model: nn.Module, starts: Sequence[str]) -> list[Block]:
    """Blocks that begin with these modules, and hold all that comes after in the model's own order."""
    starts = starts or [""]
    parameters: list[list[str]] = [[] for _ in starts]
    modules: list[list[str]] = [[] for _ in starts]
    current = 0
    for name, is_parameter in _parts(model):
        current = next((index for index, start in enumerate(starts) if _within(name, start)), current)
        (parameters if is_parameter else modules)[current].append(name)
    return [Block(*parts) for parts in zip(starts, map(tuple, parameters), map(tuple, modules), strict=True)]


def _as_said(model: nn.Module, groups: Sequence[tuple[str, ...]]) -> list[Block]:
    parts = list(_parts(model, every_module=True))
    for written in (name for group in groups for name in group):
        if not any(_within(name, written) for name, _ in parts):
            close = get_close_matches(written, [name for name, _ in parts], n=1)
            raise _misnamed(model, f"names {written!r}, which the model does not have", close)
    leaves = [name for name, is_parameter in _parts(model) if not is_parameter]
    found = [
        Block(
            group[0] if group else "",
            tuple(name for name, is_parameter in parts if is_parameter and _in_any(name, group)),
            tuple(name for name in leaves if _in_any(name, group)),
        )
        for group in groups
    ]
    for name in (name for name, is_parameter in parts if is_parameter):
        times = sum(name in block.parameters for block in found)
        if times != 1:
            raise _misnamed(model, f"names the parameter {name!r} {'twice' if times else 'not at all'}", [])
    return found


def _misnamed(model: nn.Module, problem: str, close: list[str]) -> ExperimentError:
    remedy = "let it name each module in one block"
    return ExperimentError(
        f"its blocks() {problem}",
        where=type(model).__name__,
        remedy=f"did you mean {close[0]!r}?" if close else remedy,
    )


def _parts(model: nn.Module, *, every_module: bool = False) -> Iterator[tuple[str, bool]]:
    """Names of modules, each followed by those of its own parameters, which are said to be that."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if name and (every_module or not any(module.children())):
            yield name, False
        for own, parameter in module.named_parameters(prefix=name, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield own, True


def _within(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")


def _in_any(name: str, group: tuple[str, ...]) -> bool:
    return any(_within(name, outer) for outer in group)


def _starts(model: nn.Module) -> Iterator[str]:
    for kind in type(model).__mro__:
        if kind.__module__.startswith("torchvision.models."):
            if kind.__name__ == "VGG":
                yield from _after_poolings(model)
                yield from _children(model, "classifier")
                return
            if kind.__name__ in _STARTS:
                yield from _spelled_out(model, _STARTS[kind.__name__])
                return
    yield from _top_level(model)


def _spelled_out(model: nn.Module, patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        if pattern.endswith(".*"):
            yield from _children(model, pattern.removesuffix(".*"))
        else:
            yield pattern


def _children(model: nn.Module, name: str) -> Iterator[str]:
    for own, child in model.get_submodule(name).named_children():
        if _is_more_than_a_norm(child):
            yield f"{name}.{own}" if name else own


def _has_parameters(module: nn.Module, *, recurse: bool = True) -> bool:
    return next(module.parameters(recurse), None) is not None


def _is_more_than_a_norm(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _after_poolings(model: nn.Module) -> Iterator[str]:
    begins = True
    for name, layer in model.get_submodule("features").named_children():
        if begins and _is_more_than_a_norm(layer):
            yield f"features.{name}"
            begins = False
        begins = begins or isinstance(layer, nn.MaxPool2d)


def _top_level(model: nn.Module) -> Iterator[str]:
    name, inner = "", model
    while True:
        children = [own for own, child in inner.named_children() if _has_parameters(child)]
        is_only = len(children) == 1 and not _has_parameters(inner, recurse=False)
        if not is_only or not any(inner.get_submodule(children[0]).children()):
            break
        name = f"{name}.{children[0]}" if name else children[0]
        inner = model.get_submodule(name)
    for child in _children(model, name):
        if isinstance(model.get_submodule(child), nn.ModuleList):
            yield from _children(model, child)
        else:
            yield child
