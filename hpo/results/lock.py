"""One driver a run: a lock that a living driver holds, and that the kernel takes from a dead one."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

from hpo.errors import RunLocked
from hpo.results.layout import cannot_write, make_folder

_PATIENCE_S = 0.5  # a reader that asks whether the lock is held holds it for microseconds itself


class RunLock:
    """Held from its making until `release` or the end of the process, whichever way that comes.

    Args:
        path: The lock file, which stays: its content says who took it last.
        run_id: For the error's text.

    Raises:
        RunLocked: Another driver lives; its host, its process and since when.
        StoreError: The file cannot be written.
    """

    def __init__(self, path: Path, *, run_id: str) -> None:
        try:
            make_folder(path.parent)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        if not _taken(self._descriptor):
            os.close(self._descriptor)
            raise _locked(path, run_id)
        since = datetime.now(UTC).isoformat(" ", "seconds")
        holder = {"host": platform.node(), "pid": os.getpid(), "started_at": since}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        """Let the next driver in; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_held(path: Path) -> bool:
    """Whether a living driver holds the lock; the driver does not notice the question."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int) -> bool:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        else:
            return True


def _locked(path: Path, run_id: str) -> RunLocked:
    try:
        first = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {first['pid']} on {first['host']} drives it since {first['started_at']}"
    except (OSError, ValueError, KeyError):
        who = "another process drives it"
    return RunLocked(who, where=f"run {run_id}", remedy=f"wait for it, or end it with `hpo stop {run_id}`")
