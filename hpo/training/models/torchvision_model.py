"""Any classification network of torchvision, made to fit the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

from torch import nn

from hpo.errors import DataError, ExperimentError
from hpo.training.models import torchvision_stems as stems
from hpo.training.models.dropout import DROPOUT, Dropout, DroppingLinear
from hpo.training.models.torchvision_weights import model_names, state_for, weights_of
from hpo.training.rules import Rule, one_of
from hpo.training.start import load_start

_SMALL_SIDE = 64
_LARGE_SIDE = 96  # all of them take what is larger
_SMALL_IMAGES = one_of("auto", "on", "off")
_AUXILIARY = ("googlenet", "inception_v3")

_taken: set[tuple[object, ...]] = set()  # what was found to fit, so that later trials need not try again


@dataclass(frozen=True)
class TorchvisionModel:
    """Builds a network of `torchvision.models`: `Classification(model=TorchvisionModel("resnet18"), data=…)`.

    Its head has as many outputs as the data have classes, and it takes images of any number of channels and, where the
    network can, of any size. Names and shapes of its state are torchvision's, so that
    `torchvision.models.get_model(name, num_classes=…)` loads it where neither channels nor stem were changed.

    Args:
        name: One of `torchvision.models.list_models(module=torchvision.models)`.
        weights: Torchvision's name of what to begin with, "DEFAULT" or e.g. "IMAGENET1K_V1"; None: drawn anew. The head
            is kept where the data have as many classes as the weights. The first convolution is summed or repeated
            for other than 3 channels.
        small_images: "on": the first two halvings of the sides are left out, which begin a ResNet with a 3 x 3
            convolution of stride 1 and without pooling. With `weights` the first convolution keeps its kernel, at
            stride 1. "off": as torchvision has it. "auto": "on" for sides of up to 64, but not where `weights` belong
            to patches (ConvNeXt, Swin, ViT), which a change of them would make worthless.

    Raises:
        ExperimentError: There is no network, or are no weights, of that name.
    """

    rules: ClassVar[Mapping[str, Rule]] = {"dropout": DROPOUT.or_none()}

    name: str
    _: KW_ONLY
    weights: str | None = None
    small_images: str = "auto"

    def __post_init__(self) -> None:
        names = model_names()
        if self.name not in names:
            close = " or ".join(map(repr, get_close_matches(str(self.name), names, n=3)))
            raise ExperimentError(
                f"{self.name!r} is no classification network of torchvision",
                where="model",
                remedy=f"did you mean {close}?" if close else f"valid names: {', '.join(names)}",
            )
        _SMALL_IMAGES.check(self.small_images, where="small_images")
        if self.weights is not None:  # "DEFAULT" may be another one in another version
            object.__setattr__(self, "weights", weights_of(self.name, self.weights).name)

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        dropout: float | None = None,
    ) -> nn.Module:
        """The network, its weights drawn from PyTorch's global generator or loaded.

        Args:
            num_classes: Outputs.
            in_channels: Channels of the images.
            image_size: Side of the images, or (height, width).
            dropout: Probability of dropping a feature in front of the head, in [0, 1): of the network's own dropout
                there (AlexNet, VGG, EfficientNet, MobileNet and others), or of one that is added. None: its own.

        Raises:
            ExperimentError: The network takes no images of that size.
            DataError: The weights are not here and cannot be downloaded, or do not fit.
        """
        sides = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        try:
            model = self._built(num_classes, in_channels=in_channels, sides=sides)
        except ValueError as error:
            raise self._refusal(sides, error) from error
        self._check_forward(model, in_channels=in_channels, sides=sides)
        if self.weights is not None and not _is_meta(model):
            self._load(model, num_classes=num_classes)
        _set_dropout(model, dropout)
        return model

    def _built(self, num_classes: int, *, in_channels: int, sides: tuple[int, int]) -> nn.Module:
        from torchvision.models import get_model

        stem, is_small = stems.stem_of(self.name), self._is_small(sides)
        patch = _patch(sides[0]) if is_small and self.name.startswith("vit") else None
        model: nn.Module = get_model(
            self.name, weights=None, num_classes=num_classes, **self._options(in_channels, sides, patch=patch)
        )
        stems.take_channels(model, stem, in_channels=in_channels)
        if patch is not None:
            stems.set_patches(model, stem, image_side=sides[0], patch=patch)
        elif is_small:
            keeps = self.weights is not None and not stem.in_patches
            stems.suit_small_images(model, stem, keep_kernels=keeps)
        return model

    def _check_forward(self, model: nn.Module, *, in_channels: int, sides: tuple[int, int]) -> None:
        key = self, in_channels, sides
        if max(sides) < _LARGE_SIDE and key not in _taken and not _is_meta(model):
            try:
                stems.check_forward(model, in_channels=in_channels, sides=sides)
            except RuntimeError as error:
                raise self._refusal(sides, error) from error
            _taken.add(key)

    def _is_small(self, sides: tuple[int, int]) -> bool:
        if self.small_images != "auto":
            return self.small_images == "on"
        return max(sides) <= _SMALL_SIDE and not (self.weights is not None and stems.stem_of(self.name).in_patches)

    def _options(self, in_channels: int, sides: tuple[int, int], *, patch: int | None) -> dict[str, Any]:
        if self.name in _AUXILIARY:  # the weights were trained on inputs that the network itself rescales
            rescales = self.weights is not None and in_channels == 3
            return {"aux_logits": False, "init_weights": True, "transform_input": rescales}
        if self.name.startswith("maxvit"):
            return {"input_size": sides}
        if not self.name.startswith("vit"):
            return {}
        if sides[0] != sides[1]:
            raise ValueError("it takes square ones alone")
        own = int(self.name.rpartition("_")[2])
        if patch is None and sides[0] % own:
            raise ValueError(f"their side is no multiple of its patches, {own}")
        return {"image_size": sides[0] if patch is None else sides[0] // patch * own}  # for as many patches

    def _refusal(self, sides: tuple[int, int], error: Exception) -> ExperimentError:
        why = " ".join(str(error).split())
        return ExperimentError(
            f"{self.name} takes no images of {sides[0]} x {sides[1]} ({why if len(why) <= 120 else f'{why[:119]}…'})",
            where="model",
            remedy="give it larger images, or take another network, e.g. resnet18",
        )

    def _load(self, model: nn.Module, *, num_classes: int) -> None:
        member = weights_of(self.name, str(self.weights))
        fresh = [stems.stem_of(self.name).first]
        state = state_for(model, member, first=fresh[0])
        categories = member.meta.get("categories")
        if categories is None:
            fresh.append("classifier")
        elif len(categories) != num_classes:
            fresh.append(_head(model))
            state = {name: value for name, value in state.items() if not name.startswith(f"{fresh[-1]}.")}
        report = load_start(model, state, partial=True)
        unloaded = [row.name for row in report.rows if row.fate != "loaded" and not row.name.endswith("_tracked")]
        if stray := [name for name in unloaded if not name.startswith(tuple(f"{part}." for part in fresh))]:
            raise DataError(
                f"the weights do not fit the network: {', '.join(stray[:5])}",
                where=f"{self.name}, {self.weights}",
                remedy="another version of torchvision may have them",
            )


def _is_meta(model: nn.Module) -> bool:
    return next(model.parameters()).is_meta


def _patch(side: int) -> int:
    """The largest divisor of the side that gives at least 8 x 8 patches."""
    return max(patch for patch in range(1, max(1, side // 8) + 1) if side % patch == 0)


def _head(model: nn.Module) -> str:
    """Name of the last layer, which gives the classes."""
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    return layers[-1] if layers else "classifier.1"  # SqueezeNet ends with a convolution


def _set_dropout(model: nn.Module, p: float | None) -> None:
    head = _head(model)
    container = head.partition(".")[0]
    own = [
        (name, part.p)
        for name, part in model.named_modules()
        if isinstance(part, nn.Dropout) and (name == "dropout" or name.startswith(f"{container}."))
    ]
    for name, had in own:
        model.set_submodule(name, Dropout(had if p is None else p))
    linear = model.get_submodule(head)
    if not own and isinstance(linear, nn.Linear):
        model.set_submodule(head, DroppingLinear(linear, p=p or 0.0))
