"""A store in a bucket, as readers see it: what is new of it is brought to this machine, and read here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hpo.results.claim import CLAIMS, Pace, claims_of, last_owner, owners_of
from hpo.results.layout import Place, RunPaths, made_by, runs_under
from hpo.results.lock import is_held
from hpo.results.remote_run import Known
from hpo.storage import Stored, refused, storage_at

_AT_ONCE = 8
_TABLES = ("runs", "trials", "reports", "events")


@dataclass(frozen=True)
class Seen:
    """A run that can be read here.

    Attributes:
        paths: Its files on this machine.
        driven: Whether a driver elsewhere gave a sign of life lately; None where the lock beside the files tells it.
    """

    paths: RunPaths
    driven: bool | None = None


class Mirror:
    """Brings what has changed; parts never do, so that each is brought once.

    What a driver of this machine has in its working folder is read there, as it is at the moment. All else is kept
    beside it, in `readers`, where no driver writes.

    Args:
        place: A store in a bucket.
    """

    def __init__(self, place: Place) -> None:
        self._place, self._storage = place, storage_at(place.url)
        self._copies = Place(place.root / "readers", place.url)

    def runs(self, tables: Collection[str] = ()) -> list[Seen]:
        """Every run that the store has a row of, its row brought as it is now, and these tables as well.

        `events` tell which `reports` there are.

        Raises:
            StoreError: The bucket refuses.
        """
        try:
            return self._runs(tables)
        except OSError as error:
            raise refused(self._place.url, error) from error

    def bring(self, folder: Path) -> None:
        """Have all copies in a folder as they are now; nothing where it is one of a driver of this machine.

        Raises:
            StoreError: The bucket refuses.
        """
        if not folder.is_relative_to(self._copies.root):
            return
        try:
            self._bring(self._storage.below(folder.relative_to(self._copies.root).as_posix()), self._copies.root)
        except OSError as error:
            raise refused(self._place.url, error) from error

    def read(self, name: str) -> bytes:
        """What an object of the store holds.

        Raises:
            FileNotFoundError: There is none.
            StoreError: The bucket refuses.
        """
        try:
            return self._storage.read(name)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise refused(self._place.url, error) from error

    def copies(self, paths: RunPaths) -> RunPaths:
        """Where the copies of a run's files are."""
        return self._copies.run(paths.experiment, paths.run_id)

    def ask_to_stop(self, paths: RunPaths) -> None:
        """Leave a request to stop where the run's driver finds it, on whichever machine it is.

        Raises:
            StoreError: The bucket refuses.
        """
        try:
            self._storage.write(paths.name(paths.stop_request), b"")
        except OSError as error:
            raise refused(self._place.url, error) from error

    def _runs(self, tables: Collection[str]) -> list[Seen]:
        # Listed from the last to the first and brought from the first to the last: an events part says that the parts
        # beside it are there, in the bucket and here, and rows are never older.
        wanted = [table for table in _TABLES if table == "runs" or table in tables]
        listed = {table: self._storage.below(table) for table in reversed(wanted)}
        rows = [made for stored in listed["runs"] if (made := made_by(stored.name))]
        claims = self._claims()
        own = {(paths.experiment, paths.run_id) for paths in runs_under(self._place.root)}
        # One may not have been uploaded yet.
        here = {row for row in own if row not in rows or self._is_here(row, claims.get(claims_of(*row), ()))}
        elsewhere = {row for row in rows if row not in here}
        for table in wanted:
            self._bring((one for one in listed[table] if _run_of(one) in elsewhere), self._copies.root)
        since_ns = time.time_ns() - round(Pace().stale_s * 1e9)
        heard = {folder for folder, found in claims.items() if any(one.changed_ns > since_ns for one in found)}
        seen = [Seen(self._place.run(*row)) for row in here]
        return seen + [Seen(self._copies.run(*row), claims_of(*row) in heard) for row in elsewhere]

    def _claims(self) -> dict[str, list[Stored]]:
        """The claims of each run, by their folder."""
        claims: dict[str, list[Stored]] = {}
        for stored in self._storage.below(CLAIMS):
            claims.setdefault(stored.name.rpartition("/")[0], []).append(stored)
        return claims

    def _is_here(self, row: tuple[str, str], claims: Iterable[Stored]) -> bool:
        """Whether the working folder has all of the run: a driver of this machine lives, or was the last."""
        paths = self._place.run(*row)
        known = Known.read(paths)
        if not known.whole or is_held(paths.lock):
            return bool(known.whole)
        last = last_owner(owners_of(self._storage, claims))
        return last is not None and last.token in known.whole

    def _bring(self, stored: Iterable[Stored], root: Path) -> None:
        missing = [one for one in stored if not _is_same(one, root / one.name)]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda one: self._download(one.name, root), missing))

    def _download(self, name: str, root: Path) -> None:
        with contextlib.suppress(FileNotFoundError):  # deleted in this moment
            self._storage.download(name, root / name)


def _run_of(stored: Stored) -> tuple[str, str]:
    """Experiment and run of `table/experiment=E/run=R/…`."""
    _, experiment, run, *_ = (*stored.name.split("/"), "", "", "")
    return experiment.removeprefix("experiment="), run.removeprefix("run=")


def _is_same(stored: Stored, path: Path) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime_ns) == (stored.size, stored.changed_ns)
