"""The one writer of a run: its lock, its journal, and the tables that the journal is sealed into."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hpo.errors import StoreError, UnknownRun
from hpo.results.claim import Pace
from hpo.results.folds import RunFold, TrialFold
from hpo.results.journal import Journal, Listener
from hpo.results.layout import Place, RunPaths, new_run_id
from hpo.results.lock import RunLock
from hpo.results.remote_run import RemoteRun
from hpo.results.segment import Entry, Torn, read_segment
from hpo.results.tables import events_table, reports_table, write_table
from hpo.storage import refused, storage_at

SEAL_EVERY_S = 300.0
SEAL_EVERY_ROWS = 100_000
_log = logging.getLogger(__name__)


class RunStore:
    """Made by `create` or `open`, ended by `close`; holds the run's lock in between.

    What is appended is durable in the journal within some 50 ms (`synced`, `flush`), and from then on in the eyes of
    every reader. Behind that, segments of the journal become Parquet parts: every `seal_every_s` seconds, every
    `seal_every_rows` entries, and at the end. A seal that fails loses nothing; it is tried again. All calls may come
    from any thread.

    The journal of a store in a bucket is in the working folder, and what is sealed (once a minute) is uploaded behind
    it; `close` waits for the uploads.
    """

    def __init__(
        self,
        paths: RunPaths,
        lock: RunLock,
        *,
        seal_every_s: float = SEAL_EVERY_S,
        seal_every_rows: int = SEAL_EVERY_ROWS,
        clock: Callable[[], float] = time.time,
        remote: RemoteRun | None = None,
    ) -> None:
        self.paths = paths
        self._remote = remote
        self._before_upload: list[Callable[[], None]] = []
        self._lock, self._every_s, self._every_rows, self._clock = lock, seal_every_s, seal_every_rows, clock
        self._journal = Journal.open(paths, clock=clock)
        self._sealing = threading.Lock()  # guards the trials and the files of all tables but `runs`
        self._writing_run = threading.Lock()  # guards the run's row and its file; taken after `_sealing`
        self._num_unsealed = 0
        self._kept, self._sealed = 0, deque[tuple[int, int]]()  # segments that may not be in the bucket; their last seq
        self._due, self._closed = threading.Event(), False
        self._begin_folds()
        self._journal.on_synced.append(self._note)
        self._sealer = threading.Thread(target=self._seal_on, name="hpo-sealer", daemon=True)
        self._sealer.start()
        self._poke()

    @classmethod
    def create(cls, root: Path | str | Place, *, experiment: str, run_id: str | None = None, **how: Any) -> RunStore:
        """A new run, visible to readers at once.

        Args:
            root: Folder of the store, made as needed, or a bucket's URL.
            experiment: Its name.
            run_id: Its name; a new one by default.
            **how: `seal_every_s`, `seal_every_rows`, `clock`; `pace` for a bucket.

        Raises:
            StoreError: There is such a run, or the store cannot be written.
        """
        place = root if isinstance(root, Place) else Place.of(root)
        paths = place.run(experiment, run_id or new_run_id())
        if paths.run_file.exists() or paths.segments():
            raise StoreError(
                f"there is a run {paths.run_id} already",
                where=str(place),
                remedy="open it, or choose another name",
            )
        return cls._holding(paths, how)

    @classmethod
    def open(cls, root: Path | str | Place, *, experiment: str, run_id: str, **how: Any) -> RunStore:
        """A run to be continued: its torn tail cut, its older segments sealed, its entries in `entries`.

        One of a store in a bucket is brought first, if this machine was not the last to drive it.

        Raises:
            UnknownRun: There is none.
            RunLocked: Another driver has it.
            StoreError: Its journal is damaged, or the bucket refuses.
        """
        place = root if isinstance(root, Place) else Place.of(root)
        paths = place.run(experiment, run_id)
        if not (paths.run_file.exists() or paths.segments() or _is_in_bucket(paths)):
            raise UnknownRun(
                f"there is no run {run_id} of {experiment}",
                where=str(place),
                remedy="see which there are with `hpo runs`",
            )
        return cls._holding(paths, how)

    @classmethod
    def _holding(cls, paths: RunPaths, how: Mapping[str, Any]) -> RunStore:
        lock = RunLock(paths.lock, run_id=paths.run_id)
        remote = None
        try:
            if not paths.url:
                return cls(paths, lock, **how)
            pace: Pace = how.get("pace", Pace())
            remote = RemoteRun.taken(paths, pace=pace)
            how = {"seal_every_s": pace.seal_s, **{name: value for name, value in how.items() if name != "pace"}}
            return cls(paths, lock, remote=remote, **how)
        except BaseException:
            if remote is not None:
                with contextlib.suppress(StoreError):  # the error that is raised says more
                    remote.close()
            lock.release()
            raise

    @property
    def entries(self) -> list[Entry]:
        """What earlier drivers of the run appended, in order."""
        return self._journal.recovered

    @property
    def torn(self) -> Torn | None:
        """What was cut off the journal's end, if anything."""
        return self._journal.torn

    @property
    def appended(self) -> int:
        """`seq` of the last entry."""
        return self._journal.appended

    @property
    def synced(self) -> int:
        """`seq` of the last entry that is durable, as all before it are."""
        return self._journal.synced

    @property
    def kept(self) -> int:
        """`seq` of the last entry that is there for the next driver on whichever machine, as all before it are."""
        if self._remote is None:
            return self._journal.synced
        while self._sealed and self._remote.has(self._sealed[0][0]):
            self._kept = self._sealed.popleft()[1]
        return self._kept

    def keep(self) -> bool:
        """Whether everything appended so far is `kept`, the bucket having been given time for it.

        Raises:
            StoreError: The disk refuses, or another machine drives the run.
        """
        self.flush()
        if self._remote is None:
            return True
        target = self.appended
        self.seal()
        return self._remote.waits_for(lambda: self.kept >= target)

    def holds(self) -> bool:
        """Whether the run is this driver's, so that what belongs to it may be deleted; may ask the bucket."""
        return self._remote is None or self._remote.holds()

    def append(
        self,
        kind: str,
        *,
        trial: int | None = None,
        attempt: int | None = None,
        step: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Entry:
        """The new entry of the journal, within microseconds; `detail` must not change any more.

        Raises:
            StoreError: The disk refused an earlier entry, the store is closed, or another machine drives the run.
        """
        self._refuse_if_lost()
        return self._journal.append(kind, trial=trial, attempt=attempt, step=step, detail=detail)

    def flush(self) -> None:
        """Return once everything appended so far is durable.

        Raises:
            StoreError: The disk refuses, or another machine drives the run.
        """
        self._refuse_if_lost()
        self._journal.flush()

    def _refuse_if_lost(self) -> None:
        if self._remote is not None and self._remote.lost is not None:
            raise self._remote.lost

    def listen(self, listener: Listener) -> None:
        """Have each batch of entries told once it is durable, from the journal's thread; to be quick."""
        self._journal.on_synced.append(listener)

    @property
    def notes(self) -> list[str]:
        """What a person should know about how it was opened."""
        return self._remote.notes if self._remote is not None else []

    def before_upload(self, do: Callable[[], None]) -> None:
        """Have `do` called at the end: listeners have been told everything, and the last uploads come next."""
        self._before_upload.append(do)

    def seal(self) -> None:
        """Bring everything appended so far into the Parquet tables.

        Raises:
            StoreError: The disk refuses; the journal has it all, and the next seal tries again.
        """
        with self._sealing:
            self._num_unsealed = 0
            newest = self._journal.rotate()
            self._seal_segments(number for number in self.paths.segments() if number <= newest)
        self._poke()

    def close(self) -> None:
        """Seal, upload, and let the next driver in; a second call does nothing.

        Raises:
            StoreError: The disk refuses, what is durable is sealed when the run is opened again; or the bucket does,
                what is in the working folder is uploaded when the run is opened again on this machine.
        """
        if self._closed:
            return
        self._closed = True
        self._due.set()
        self._sealer.join()
        try:
            self._journal.close()
            with self._sealing:
                self._seal_segments(self.paths.segments())
                self._write_run()
        finally:
            try:
                self._end_uploads()
            finally:
                self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_uploads(self) -> None:
        for do in self._before_upload:
            do()
        if self._remote is not None:
            self._remote.close()

    def _poke(self) -> None:
        if self._remote is not None:
            self._remote.poke()

    # --- the tables ---

    def _begin_folds(self) -> None:
        """Fold what the journal holds, and seal what an earlier driver left."""
        self._trials = TrialFold(self.paths.run_id)
        self._trials.apply(self.entries)
        self._through = self._journal.synced
        self._run = RunFold(self.paths.run_id, self.paths.experiment)
        self._run.begin(self.entries[0].at if self.entries else self._clock())
        self._run.apply(self.entries)
        self._run_through = self._through
        self._write_run()
        if self._remote is not None and self.entries:
            # Brought rows may know of entries that the driver before could not upload any more.
            write_table(self.paths.trials_file, self._trials.table(), through_seq=self._through)
            self._sealed.append((self.paths.segments()[-1], self._through))
        self._seal_segments(self.paths.segments())

    def _seal_segments(self, closed: Iterable[int]) -> None:
        """Seal the closed segments that are not; the events part comes last, since it says that all is done."""
        run_id, sealed = self.paths.run_id, set(self.paths.sealed())
        for number in closed:
            if number in sealed:
                continue
            entries = read_segment(self.paths.segment(number)).entries
            self._trials.apply(entry for entry in entries if entry.seq > self._through)
            self._through = max(self._through, entries[-1].seq if entries else 0)
            reports = reports_table(run_id, entries)
            if len(reports):
                write_table(self.paths.reports_part(number), reports, through_seq=self._through)
            write_table(self.paths.trials_file, self._trials.table(), through_seq=self._through)
            self._write_run()
            write_table(self.paths.events_part(number), events_table(run_id, entries), through_seq=self._through)
            if self._remote is not None:
                self._sealed.append((number, self._through))

    def _note(self, batch: Sequence[Entry]) -> None:
        """Keep the run's row up to date, and ask for a seal when it is time."""
        self._num_unsealed += len(batch)
        if self._num_unsealed >= self._every_rows:
            self._due.set()
        with self._writing_run:
            changed, self._run_through = self._run.apply(batch), batch[-1].seq
        if changed:
            try:
                self._write_run()
            except StoreError as error:
                _log.warning("the row of run %s is out of date until the next seal: %s", self.paths.run_id, error)
            self._poke()

    def _write_run(self) -> None:
        with self._writing_run:
            write_table(self.paths.run_file, self._run.table(), through_seq=self._run_through)

    def _seal_on(self) -> None:
        while True:
            self._due.wait(timeout=self._every_s)
            self._due.clear()
            if self._closed:
                return
            try:
                self.seal()
            except StoreError as error:
                _log.warning("a seal failed and will be tried again: %s", error)


def _is_in_bucket(paths: RunPaths) -> bool:
    if not paths.url:
        return False
    try:
        return storage_at(paths.url).stat(paths.name(paths.run_file)) is not None
    except OSError as error:
        raise refused(paths.url, error) from error
