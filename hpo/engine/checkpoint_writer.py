"""Checkpoints are written beside training: by one thread of the trial's process, one file at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from hpo.protocols import Snapshot


@dataclass(frozen=True)
class Written:
    """How a write ended.

    Attributes:
        trial: Whose state it is; with `attempt` and `step` of the moment that it was copied.
        attempt: Of the trial.
        step: Of the trial.
        path: The file. It is there and whole, or there is none and `error` says why.
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
    """Writes one snapshot at a time while its caller goes on.

    Args:
        printing: Where what a trial's snapshot prints belongs, while the context lasts, in the thread that enters it.
    """

    def __init__(self, printing: Callable[[Path], AbstractContextManager[None]]) -> None:
        self._printing = printing
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Written] | None = None
        self._ended: list[Written] = []

    def begin(self, snapshot: Snapshot, *, trial: int, attempt: int, step: int, path: Path, log: Path) -> None:
        """Have the snapshot written, once the one before is."""
        self.wait()
        self._writing = self._thread.submit(self._write, snapshot, Written(trial, attempt, step, str(path)), log)

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

    def _write(self, snapshot: Snapshot, asked: Written, log: Path) -> Written:
        path = Path(asked.path)
        began, cpu_began = time.perf_counter(), time.thread_time()
        size, error = 0, ""
        with self._printing(log):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                size = snapshot.write(path)
            except Exception as problem:  # noqa: BLE001 - whatever it is must not end the trial
                error = f"{type(problem).__name__}: {problem}"
        took_s, cpu_s = time.perf_counter() - began, time.thread_time() - cpu_began
        return Written(asked.trial, asked.attempt, asked.step, asked.path, size, took_s, cpu_s, error)
