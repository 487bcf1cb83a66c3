"""The file that a trial continues from: written whole or not at all, and read without trust in it."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hpo import files
from hpo.errors import CheckpointError
from hpo.protocols import Snapshot
from hpo.training.cuda_graph import MAY_WAIT
from hpo.trial import Config

_FORMAT = 1
_START_OVER = "start the trial over, or name an older checkpoint"


class StateSnapshot(Snapshot):
    """A copy of `state` (tensors, numbers, strings, plain containers), its tensors on the device that they were on.

    The copy is made in the order of the current stream's work, without waiting for it, and where the device has no
    room for it, on the host. `write` waits for that copy alone, not for what the device is given to do later.

    Args:
        state: What a trial continues from.
        config: Of the trial.
    """

    def __init__(self, state: Mapping[str, Any], *, config: Config) -> None:
        self._config = json.dumps(config)
        try:
            self._state = copy.deepcopy(dict(state))  # tensors that share memory share it in the copy, too
        except torch.OutOfMemoryError:
            self._state = copy.deepcopy(_on_host(dict(state)))
        devices = {tensor.device for tensor in _tensors(self._state) if tensor.is_cuda}
        self._copied = {device: torch.cuda.current_stream(device).record_event() for device in devices}

    def write(self, path: Path) -> int:
        content = {**self._state, "format": _FORMAT, "config": self._config}
        with self._beside_training():  # torch.save brings what is on a device to the host, in the current stream
            return files.write_atomically(path, lambda file: torch.save(content, file))

    @contextlib.contextmanager
    def _beside_training(self) -> Iterator[None]:
        """Streams of this thread's own, for which the copies are there."""
        with contextlib.ExitStack() as streams:
            if self._copied:
                streams.enter_context(MAY_WAIT)
            for device, copied in self._copied.items():
                aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                aside.wait_event(copied)
                streams.enter_context(torch.cuda.stream(aside))
            yield


def write(path: Path, state: Mapping[str, Any], *, config: Config) -> int:
    """Size in bytes of the file that now holds `state`; it appears under its name when it is whole and on the disk.

    Raises:
        OSError: The folder is missing, or the disk is full.
    """
    return StateSnapshot(state, config=config).write(path)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _on_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_host(part) for key, part in value.items()}
    return type(value)(map(_on_host, value)) if isinstance(value, (list, tuple)) else value


def read(path: Path) -> dict[str, Any]:
    """What `write` was given, its tensors on the CPU, and `config` as lists and scalars.

    Raises:
        CheckpointError: It is missing, cut off, damaged, or in a format of another version.
    """
    try:
        _check_sums(path)
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


def _check_sums(path: Path) -> None:
    """Raise BadZipFile where a part of the file is not what was written: torch.load takes any weights as they come."""
    with zipfile.ZipFile(path) as parts:
        damaged = parts.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} does not match its checksum")


def best_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The best weights in what `read` gives: where the last ones are, those that were measured."""
    averages = state.get("average") or {}
    return state["best"]["model"] or {
        **state["model"],
        **{name: value for name, value in averages.items() if name in state["model"]},
    }


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
