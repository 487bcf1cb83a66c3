"""Checkpoints are written beside training: by one thread of the trial's process, one file at a time."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from hpo.protocols import Snapshot
from hpo.storage import is_url, parted, persistently

UPLOAD_PATIENCE_S = 90.0
"""So long an upload is tried again: less than a driver waits for a checkpoint that nothing but it is waited for."""


@dataclass(frozen=True)
class Written:
    """How a write ended.

    Attributes:
        trial: Whose state it is; with `attempt` and `step` of the moment that it was copied.
        attempt: Of the trial.
        step: Of the trial.
        path: Path or URL of the file. It is there and whole, or there is none and `error` says why.
        size: Bytes.
        write_s: Seconds that it took.
        cpu_s: Seconds of a core that it took: at most so much it took from training.
        error: Empty where it went well.
    """

    trial: int
    attempt: int
    step: int
    path: str
    size: int = 0
    write_s: float = 0.0
    cpu_s: float = 0.0
    error: str = ""


class CheckpointWriter:
    """Writes one snapshot at a time while its caller goes on; what belongs into a bucket is uploaded after.

    Args:
        printing: Where what a trial's snapshot prints belongs, while the context lasts, in the thread that enters it.
    """

    def __init__(self, printing: Callable[[Path], AbstractContextManager[None]]) -> None:
        self._printing = printing
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Written] | None = None
        self._ended: list[Written] = []

    def begin(
        self, snapshot: Snapshot, *, trial: int, attempt: int, step: int, path: Path, log: Path, target: str = ""
    ) -> None:
        """Have the snapshot written, once the one before is.

        Args:
            snapshot: What is written.
            trial: Whose state it is.
            attempt: Of the trial.
            step: Of the trial.
            path: A file of this machine.
            log: Where what is printed meanwhile belongs.
            target: URL to which the file is moved when it is whole, its folder being this trial's alone; by default it
                stays.
        """
        self.wait()
        asked = Written(trial, attempt, step, target or str(path))
        self._writing = self._thread.submit(self._write, snapshot, asked, path, log)

    def publish(self, log: Path, *, target: str) -> None:
        """Have a log uploaded to a URL behind what is being written; nothing where the target is no URL.

        A log that cannot be uploaded costs nothing but itself.
        """
        if is_url(target):
            self._thread.submit(_publish, log, target)

    def wait(self) -> None:
        """Return when no write is in flight."""
        if self._writing is not None:
            self._ended.append(self._writing.result())
            self._writing = None

    def news(self) -> tuple[Written, ...]:
        """The writes that have ended since it was asked last."""
        if self._writing is not None and self._writing.done():
            self.wait()
        ended, self._ended = self._ended, []
        return tuple(ended)

    def close(self) -> None:
        """Return when all is written; nothing may be begun after."""
        self.wait()
        self._thread.shutdown()

    def _write(self, snapshot: Snapshot, asked: Written, path: Path, log: Path) -> Written:
        began, cpu_began = time.perf_counter(), time.thread_time()
        size, error = 0, ""
        with self._printing(log):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                size = snapshot.write(path)
                if is_url(asked.path):
                    _upload(path, asked.path)
            except Exception as problem:  # noqa: BLE001 - whatever it is must not end the trial
                error = f"{type(problem).__name__}: {problem}"
        if is_url(asked.path):
            shutil.rmtree(path.parent, ignore_errors=True)  # also what a killed attempt at the trial left here
        took_s, cpu_s = time.perf_counter() - began, time.thread_time() - cpu_began
        return Written(asked.trial, asked.attempt, asked.step, asked.path, size, took_s, cpu_s, error)


def _upload(path: Path, target: str) -> None:
    storage, name = parted(target)
    persistently(lambda: storage.upload(path, name), patience_s=UPLOAD_PATIENCE_S)


def _publish(log: Path, target: str) -> None:
    storage, name = parted(target)
    with contextlib.suppress(OSError):  # the next one of the trial brings it along
        storage.upload(log, name)
