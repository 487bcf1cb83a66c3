"""Weights as files that others write and read: plain PyTorch, safetensors, and this package's own checkpoints.

A file of weights is read without trust: tensors and plain containers come out of it, or an error.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpo import files
from hpo.errors import CheckpointError, DataError, ExperimentError
from hpo.training import checkpoint
from hpo.trial import Config

PLAIN = (".pt", ".pth")
SAFETENSORS = ".safetensors"

_NESTED = ("state_dict", "model_state_dict", "model")
_OWN = {"format", "config", "model", "best"}
_HOW = "write it by torch.save(model.state_dict(), path), or as .safetensors"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    The file is a checkpoint of this package, whose best weights count, else its current ones; or one that
    `torch.save` wrote of a state dict, also where that is under "state_dict", "model_state_dict" or "model" in a
    dictionary; or a `.safetensors` file.

    Raises:
        DataError: It is missing, cut off, damaged, or holds something else.
    """
    try:
        content = _safetensors(path) if path.suffix == SAFETENSORS else _pickled(path)
    except FileNotFoundError:
        raise DataError("there is no such file of weights", where=str(path), remedy="look at the path") from None
    except MemoryError:
        raise
    except CheckpointError as error:
        raise DataError(error.problem, where=error.where, remedy=_HOW) from error
    except Exception as error:  # a damaged pickle or archive raises whatever its bytes lead to
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise DataError(f"the file holds no weights, or is damaged ({why})", where=str(path), remedy=_HOW) from error
    weights = _tensors_of(content)
    if not weights:
        raise DataError("the file holds no tensors by name", where=str(path), remedy=_HOW)
    return weights


def read_preprocessing(path: Path) -> dict[str, Any]:
    """What a checkpoint of this package says lies between raw samples and the model, as `Source.preprocessing` has it.

    Raises:
        CheckpointError: It is missing, cut off or damaged.
    """
    return dict(checkpoint.read(path).get("preprocessing", {}))


def digest(path: Path) -> str:
    """16 hexadecimal digits that change when the file does: the first of its SHA-256.

    Raises:
        DataError: It is not there, or cannot be read.
    """
    try:
        return files.digest(path)
    except OSError as error:
        raise DataError(
            f"the file of weights cannot be read ({error.strerror})", where=str(path), remedy="look at the path"
        ) from error


def write_plain(
    path: Path, weights: Mapping[str, Tensor], *, config: Config, preprocessing: Mapping[str, Any] | None = None
) -> Path:
    """The JSON file that now holds what belongs to `weights`, beside `path`, which now holds them for anyone to read.

    Either file appears when it is whole; `model.json` beside `model.pt`. It has the configuration under "config", and
    the parts of `preprocessing` by their names. Tensors that share memory are written each by itself, those in a layout
    of channels last in PyTorch's usual one. A `.safetensors` file has all of it in its metadata, too: JSON by name.

    Raises:
        ExperimentError: The suffix is none of .pt, .pth, .safetensors.
        OSError: The folder is missing, or the disk is full.
    """
    if path.suffix not in (*PLAIN, SAFETENSORS):
        raise ExperimentError(
            f"{path.suffix or path.name!r} is no format of weights",
            where=str(path),
            remedy="name the file .pt or .pth for torch.load, or .safetensors",
        )
    own = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    described = {"config": config, **(preprocessing or {})}
    beside = path.with_suffix(".json")
    files.write_atomically(beside, lambda file: file.write(f"{json.dumps(described, indent=2)}\n".encode()))
    if path.suffix == SAFETENSORS:
        from safetensors.torch import save

        metadata = {name: json.dumps(part) for name, part in described.items()}
        content = save(own, metadata={"format": "pt", **metadata})
        files.write_atomically(path, lambda file: file.write(content))
    else:
        files.write_atomically(path, lambda file: torch.save(own, file))
    return beside


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(path)
    loaded: Mapping[str, Tensor] = load_file(path)
    return loaded


def _pickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            if (damaged := parts.testzip()) is not None:  # torch.load takes any weights as they come
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and content.keys() >= _OWN:
        return checkpoint.best_weights(checkpoint.read(path))
    return content


def _tensors_of(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for name in _NESTED:
        if isinstance(content.get(name), Mapping):
            return _tensors_of(content[name])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
