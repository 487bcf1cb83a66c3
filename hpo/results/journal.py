"""The journal of a run: everything that happened, in one order, on disk before it counts."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

from hpo.errors import StoreError
from hpo.files import sync_folder
from hpo.results.layout import RunPaths, cannot_write, make_folder
from hpo.results.segment import HEAD, Entry, Torn, encode, read_segment

GATHER_S = 0.02
"""How long an entry waits for others to share its sync, unless somebody waits for it."""
_MAX_BATCH = 10_000
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_log = logging.getLogger(__name__)

Listener = Callable[[Sequence[Entry]], None]


class Journal:
    """Appends at once, syncs behind the caller's back; made by `Journal.open`.

    One writer a run, who holds the run's lock. `append`, `flush`, `rotate` and `close` may be called from any
    thread. An entry is durable some 20 ms and one `fdatasync` after its `append`; `synced` says which ones are.
    When the disk refuses, nothing more is written and every later call raises.

    Attributes:
        recovered: What earlier drivers appended, in order.
        torn: What was cut off the end, if anything.
        on_synced: Called from the journal's thread with each batch once it is durable; to be quick. One that
            raises is logged and not called again.
    """

    def __init__(
        self, paths: RunPaths, *, recovered: list[Entry], torn: Torn | None, clock: Callable[[], float]
    ) -> None:
        self.paths, self.recovered, self.torn = paths, recovered, torn
        self.on_synced: list[Listener] = []
        self._clock = clock
        self._number = max(paths.segments(), default=0) + 1
        self._appended = self._synced = recovered[-1].seq if recovered else 0
        self._pending: list[Entry] = []
        self._urgent = self._closing = False
        self._error: StoreError | None = None
        self._changed = threading.Condition()  # guards all of the above
        self._file: int | None = None
        self._disk = threading.Lock()  # guards the file and its number; never waited for while holding `_changed`
        self._thread = threading.Thread(target=self._write_on, name="hpo-journal", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, paths: RunPaths, *, clock: Callable[[], float] = time.time) -> Journal:
        """The journal with all that it holds; a torn end is cut off, and new entries go into a new file.

        Raises:
            StoreError: A file is damaged before its end, is missing, or cannot be cut.
        """
        recovered, torn = read_segments(paths, paths.segments())
        if torn is not None:
            try:
                os.truncate(torn.segment, torn.offset)
                with torn.segment.open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise cannot_write(torn.segment, error) from error
        return cls(paths, recovered=recovered, torn=torn, clock=clock)

    @property
    def appended(self) -> int:
        """`seq` of the last entry."""
        return self._appended

    @property
    def synced(self) -> int:
        """`seq` of the last entry that is durable, as all before it are."""
        return self._synced

    def append(
        self,
        kind: str,
        *,
        trial: int | None = None,
        attempt: int | None = None,
        step: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Entry:
        """The entry, not yet durable; `detail` is encoded later and must not change any more.

        Raises:
            StoreError: The disk refused an earlier entry, or the journal is closed.
        """
        with self._changed:
            self._refuse_if_over()
            self._appended += 1
            entry = Entry(self._appended, self._clock(), kind, trial, attempt, step, detail or _NOTHING)
            self._pending.append(entry)
            if len(self._pending) == 1:
                self._changed.notify_all()
        return entry

    def flush(self) -> None:
        """Return once everything appended so far is durable.

        Raises:
            StoreError: The disk refuses.
        """
        with self._changed:
            target = self._appended
            while self._synced < target:
                if self._error is not None:
                    raise self._error
                self._urgent = True
                self._changed.notify_all()
                self._changed.wait()

    def rotate(self) -> int:
        """Number of the newest closed segment (0: none), once all that was appended before is in closed segments.

        Raises:
            StoreError: The disk refuses.
        """
        self.flush()
        with self._disk:
            self._close_file()
            return self._number - 1

    def close(self) -> None:
        """Make everything durable and end; a second call does nothing.

        Raises:
            StoreError: The disk refuses; entries after `synced` are lost.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        with self._disk:
            self._close_file()
        if self._error is not None and self._synced < self._appended:
            raise self._error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_if_over(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise StoreError("is closed", where=f"journal of run {self.paths.run_id}", remedy="open the run again")

    # --- the journal's own thread ---

    def _write_on(self) -> None:
        while batch := self._gather():
            try:
                with self._disk:
                    self._write(batch)
            except OSError as error:
                self._fail(cannot_write(self.paths.segment(self._number), error))
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may go on believing in the disk
                what = f"an entry cannot be encoded: {type(error).__name__}: {error}"
                remedy = "report a detail only of what JSON can hold"
                self._fail(StoreError(what, where=f"journal of run {self.paths.run_id}", remedy=remedy))
                return
            with self._changed:
                self._synced = batch[-1].seq
                self._changed.notify_all()
            self._tell(batch)

    def _gather(self) -> list[Entry]:
        """What is to be written next; nothing when the journal ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            self._changed.wait_for(lambda: self._urgent or self._closing, timeout=GATHER_S)
            batch, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
            self._urgent = self._urgent and bool(self._pending)
            return batch

    def _write(self, batch: list[Entry]) -> None:
        data = encode(batch)
        begins = self._file is None
        if self._file is None:
            make_folder(self.paths.journal_dir)
            self._file = os.open(self.paths.segment(self._number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            data = HEAD + data
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left) :]
        os.fdatasync(self._file)
        if begins:
            sync_folder(self.paths.journal_dir)

    def _fail(self, error: StoreError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _tell(self, batch: Sequence[Entry]) -> None:
        for listener in list(self.on_synced):
            try:
                listener(batch)
            except Exception:  # noqa: BLE001 - what others do with entries is no reason to stop keeping them
                self.on_synced.remove(listener)
                _log.exception("a listener to the journal of run %s failed and is left out", self.paths.run_id)

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._number += 1


def read_segments(paths: RunPaths, numbers: Sequence[int]) -> tuple[list[Entry], Torn | None]:
    """The entries of a run's last segments, of which the last may be the one being written, and its torn end.

    Args:
        paths: Files of the run.
        numbers: The segments, ascending.

    Raises:
        StoreError: One is damaged, or entries between them are missing.
    """
    entries: list[Entry] = []
    torn: Torn | None = None
    for number in numbers:
        path = paths.segment(number)
        segment = read_segment(path, live=number == numbers[-1])
        before = entries[-1].seq if entries else 0
        if segment.entries and segment.entries[0].seq != before + 1 and (entries or number == 1):
            raise StoreError(
                f"begins with entry {segment.entries[0].seq}, but the one before ends with {before}",
                where=str(path),
                remedy="bring the journal's missing files back from a copy",
            )
        entries += segment.entries
        torn = segment.torn
    return entries, torn


def read_entries(paths: RunPaths) -> list[Entry]:
    """All whole entries of a run's journal, in order; may be called while the run goes on.

    Raises:
        StoreError: It is damaged before its end.
    """
    return read_segments(paths, paths.segments())[0]
