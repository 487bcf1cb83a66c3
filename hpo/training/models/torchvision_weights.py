"""The weights that torchvision offers: where their files lie, and how they are brought here."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import urllib.request
from collections.abc import Mapping
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from filelock import FileLock
from torch import Tensor, nn

from hpo import files
from hpo.errors import DataError, ExperimentError

_STALL_S = 30
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_POSITION = "encoder.pos_embedding"
_DIGEST = re.compile(r"-([0-9a-f]{8,})\.[a-z]+$")


def model_names() -> list[str]:
    """The names of torchvision's classification models."""
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def weights_of(model: str, name: str) -> Any:
    """The member of torchvision's enumeration of the weights of `model`, by its `name`, or "DEFAULT".

    Raises:
        ExperimentError: There are none of that name.
    """
    from torchvision.models import get_model_weights

    offered = get_model_weights(model)
    own = name.removeprefix(f"{offered.__name__}.")
    if own in offered.__members__:
        return offered[own]
    valid = list(offered.__members__)
    close = get_close_matches(own, valid, n=1)
    raise ExperimentError(
        f"{name!r} is none of the weights of {model}",
        where="weights",
        remedy=f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(valid)}",
    )


def weights_named(full_name: str) -> Any:
    """The member of torchvision's enumerations that "ResNet18_Weights.IMAGENET1K_V1" or "resnet18" (its DEFAULT) names.

    Raises:
        ExperimentError: There is none of that name.
    """
    from torchvision.models import get_model_weights

    kind, _, name = full_name.partition(".")
    for model in model_names():
        if kind in (model, get_model_weights(model).__name__):
            return weights_of(model, name or "DEFAULT")
    offered = [get_model_weights(model).__name__ for model in model_names()]
    close = get_close_matches(kind, [*offered, *model_names()], n=1)
    raise ExperimentError(
        f"{full_name!r} names no weights of torchvision",
        where="weights",
        remedy=f"did you mean {close[0]!r}?" if close else 'e.g. "ResNet18_Weights.IMAGENET1K_V1"',
    )


def state_for(model: nn.Module, member: Any, *, first: str) -> dict[str, Tensor]:
    """What these weights hold of the state of `model`, for its inputs, as `fitted` has it.

    Args:
        model: Of torchvision.
        member: Of torchvision's enumerations.
        first: Name of the first convolution of `model`.

    Raises:
        DataError: As `load_weights`.
    """
    state = fitted(load_weights(member), model, first=first)
    if member.meta.get("categories") is not None:
        return state
    # Torchvision's file has features alone, and its head is not a number.
    return {name: value for name, value in state.items() if name.startswith("features.")}


def load_weights(member: Any) -> dict[str, Tensor]:
    """The state that torchvision's file of these weights holds, on the CPU; downloaded where no file is here.

    It has the names of today: DenseNet's files are older than they.

    Raises:
        DataError: There is no file and no way to get one, or it is damaged.
    """
    path = find_file(member.url)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {_OLD_DENSENET.sub(r"\1\2.", name): value for name, value in state.items()}
    except Exception as error:  # a damaged pickle or archive raises whatever its bytes lead to
        raise _damaged(path, f"{type(error).__name__} while it was read") from error


def fitted(state: Mapping[str, Tensor], model: nn.Module, *, first: str) -> dict[str, Tensor]:
    """The part of the state that `model` has, for its inputs.

    Left out is what classifies in the midst of a network in training, since `model` has none. The position embedding of
    a ViT is interpolated to its number of patches.

    Args:
        state: Of torchvision's weights.
        model: Of torchvision; only a ViT has a position embedding.
        first: Name of its first convolution, see `of_channels`.
    """
    found = {name: value for name, value in state.items() if not name.startswith(_AUXILIARY)}
    channels = model.get_submodule(first).in_channels
    found[f"{first}.weight"] = of_channels(found[f"{first}.weight"], int(channels))  # type: ignore[arg-type]
    position = found.get(_POSITION)
    if position is not None and position.shape != model.get_parameter(_POSITION).shape:
        from torchvision.models.vision_transformer import interpolate_embeddings

        found = dict(interpolate_embeddings(model.image_size, model.patch_size, found))
    return found


def of_channels(weight: Tensor, in_channels: int) -> Tensor:
    """The weight (K, C, h, w) of a convolution, for images of other channels that look alike to it.

    One channel: the sum, so that a grey image gives what it gave as equal channels. Else C are repeated, and scaled
    so that equal channels give the same sum (as timm's `adapt_input_conv`, Wightman 2019).
    """
    had = weight.shape[1]
    if in_channels == had:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-in_channels // had), 1, 1)[:, :in_channels] * (had / in_channels)


def find_file(url: str) -> Path:
    """The file of that URL: in torch's hub cache, in `$HPO_DATA/weights` (`./data/weights`), else downloaded there.

    A file whose name has its checksum in it, as torchvision's have, must have that checksum.

    Raises:
        DataError: It is in neither, and cannot be downloaded; or it is damaged.
    """
    name = Path(urlparse(url).path).name
    places = _places()
    for place in places:
        if (path := place / name).is_file():
            _check_digest(path)
            return path
    try:
        return _download(url, places[0] / name)
    except (OSError, HTTPException) as error:
        raise DataError(
            f"the weights are not here, and cannot be downloaded ({_reason(error)})",
            where=name,
            remedy=f"looked for in {' and '.join(map(str, places))}: put the file there on every node, from {url}; "
            "HPO_DATA names another folder",
        ) from error


def _places() -> tuple[Path, Path]:
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    return hub, Path(os.environ.get("HPO_DATA") or "data").expanduser() / "weights"


def _download(url: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():  # another process of this node was faster
            with contextlib.closing(urllib.request.urlopen(url, timeout=_STALL_S)) as answer:  # noqa: S310
                files.write_atomically(path, lambda file: shutil.copyfileobj(answer, file))
    try:
        _check_digest(path)
    except DataError:
        path.unlink()
        raise
    return path


def _check_digest(path: Path) -> None:
    stat = path.stat()
    said = _DIGEST.search(path.name)
    if said and not _sha256(path, (stat.st_mtime_ns, stat.st_size)).startswith(said[1]):
        raise _damaged(path, "its checksum is not the one in its name")


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, _version: tuple[int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"the file of weights is damaged ({why})", where=str(path), remedy="remove it, or fetch it again")


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None) or error
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__)
