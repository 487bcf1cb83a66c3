"""The file that a trial continues from: written whole or not at all, and read without trust in it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpo.errors import CheckpointError
from hpo.trial import Config

_FORMAT = 1
_START_OVER = "start the trial over, or name an older checkpoint"


def write(path: Path, state: Mapping[str, Any], *, config: Config) -> int:
    """Size in bytes of the file that now holds `state` (tensors, numbers, strings, plain containers).

    It appears under its name when it is whole and on the disk; if writing fails, what was there before is still.

    Raises:
        OSError: The folder is missing, or the disk is full.
    """
    content = {**state, "format": _FORMAT, "config": json.dumps(config)}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        size = temporary.stat().st_size
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)
    return size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> dict[str, Any]:
    """What `write` was given, its tensors on the CPU, and `config` as lists and scalars.

    Raises:
        CheckpointError: It is missing, cut off, damaged, or in a format of another version.
    """
    try:
        # A damaged file may say what it likes about itself before it fails.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["format"]
        content["config"] = json.loads(content["config"])
    except FileNotFoundError:
        raise CheckpointError("there is no such checkpoint", where=str(path), remedy=_START_OVER) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle or archive raises whatever its bytes lead to
        problem = f"the checkpoint is cut off or damaged ({type(error).__name__}: {_first_line(error)})"
        raise CheckpointError(problem, where=str(path), remedy=_START_OVER) from error
    if version != _FORMAT:
        raise CheckpointError(
            f"the checkpoint has format {version!r}, this version reads {_FORMAT}", where=str(path), remedy=_START_OVER
        )
    return dict(content)


def check_same(config: Config, written: Mapping[str, Any], *, path: Path) -> None:
    """Raise CheckpointError where a checkpoint was written under another configuration."""
    ours = json.loads(json.dumps(config))
    missing = "nothing"
    for name in sorted({*ours, *written}):
        here, there = ours.get(name, missing), written.get(name, missing)
        if here != there:
            raise CheckpointError(
                f"the checkpoint is of another configuration: {name} is {there!r} there and {here!r} here",
                where=str(path),
                remedy="load it into a trial of the same configuration",
            )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
