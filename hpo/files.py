"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> int:
    """Size in bytes of the file that now holds what `write` wrote into the open file that it is given.

    It appears under its name when it is whole and on the disk, also after a power loss; if writing fails, what was
    there before still is, and nothing else.

    Raises:
        OSError: The folder is missing, or the disk is full.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        size = beside.stat().st_size
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)
    return size


def digest(path: Path) -> str:
    """16 hexadecimal digits that change when the file does: the first of its SHA-256.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable: without it, a power loss may take a new file's name away."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
