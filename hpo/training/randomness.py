"""The random generators of a process: seeded for a trial, saved and restored with it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_process(seed: int) -> None:
    """Seed the generators that a model may draw from without being handed one: PyTorch's, NumPy's, Python's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is the point


def process_state(device: torch.device) -> dict[str, Any]:
    """The states of these generators as tensors and plain containers."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_process(state: Mapping[str, Any], device: torch.device) -> None:
    """Go on drawing where `process_state` was taken; a generator that it does not hold is left alone."""
    torch.set_rng_state(state["torch"])
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def host_state(*, torch_too: bool = True) -> object:
    """The states of the host's generators, to be compared."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    own = torch.get_rng_state().numpy().tobytes() if torch_too else b""
    return own, random.getstate(), str(kind), np.asarray(keys).tobytes(), tuple(rest)


@contextmanager
def left_as_found(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside leaves the generators as they were."""
    state = process_state(device)
    try:
        yield
    finally:
        restore_process(state, device)
