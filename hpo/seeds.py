"""Random streams that depend on what they are for, and on nothing that happened before.

A proposal must be the same whether one worker asks for it or eight, so no stream is shared: each is derived
from the experiment's seed and a path of names (`("trial", 17, "lr")`).
"""

from __future__ import annotations

import hashlib
import random


def derive(seed: int, *path: str | int) -> int:
    """A seed in [0, 2**63) for the stream named by `path`; equal arguments give equal seeds on every platform."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *path: str | int) -> random.Random:
    """A generator of its own for `path`; see `derive`."""
    return random.Random(derive(seed, *path))
