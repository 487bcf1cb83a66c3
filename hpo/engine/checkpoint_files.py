"""The files of checkpoints as the driver asks for them: in a folder, or in a bucket that it does not wait for."""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from pathlib import Path

from hpo.results import RunPaths
from hpo.storage import is_url, storage_at

LISTED_EVERY_S = 0.5
"""Between two listings of a bucket, at least; processes tell of most files before that."""
FRESH_WITHIN_S = 15.0
"""So long the driver waits for a listing where the answer decides what is given up."""
REST_S = 30.0
"""So long nothing is deleted after the bucket refused; what is left is a stray."""
_DELETERS = 8
_log = logging.getLogger(__name__)


class CheckpointFiles(ABC):
    """A run's checkpoints by the names that the journal calls them; calls return at once unless they say otherwise."""

    @abstractmethod
    def recorded(self, target: str) -> str:
        """What the journal calls a file that a process wrote to a path or URL."""

    @abstractmethod
    def located(self, name: str) -> str:
        """The path or URL of a file that the journal names."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of the file, as far as is known; None where none is known of."""

    @abstractmethod
    def look_again(self) -> Future[None]:
        """Done when `size` knows of all files that are there now, or cannot learn of them."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Have the file deleted; what cannot be is a stray later."""

    @abstractmethod
    def delete_strays(self, wanted: Collection[str]) -> None:
        """Delete every file of the run but those of these names."""

    @abstractmethod
    def close(self) -> None:
        """Return when all that was to be deleted has been tried."""


class LocalFiles(CheckpointFiles):
    """Files in a folder that the driver sees: its own disk, or one that all nodes share."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths

    def recorded(self, target: str) -> str:
        return self._paths.recorded(target)

    def located(self, name: str) -> str:
        return self._paths.located(name)

    def size(self, name: str) -> int | None:
        try:
            return Path(self.located(name)).stat().st_size
        except OSError:
            return None

    def look_again(self) -> Future[None]:
        looked: Future[None] = Future()
        looked.set_result(None)  # every look is one at the files
        return looked

    def delete(self, name: str) -> None:
        with contextlib.suppress(OSError):
            Path(self.located(name)).unlink()

    def delete_strays(self, wanted: Collection[str]) -> None:
        kept = {Path(self.located(name)).resolve() for name in wanted}
        for path in self._paths.checkpoints.rglob("*"):
            if path.is_file() and path.resolve() not in kept:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is left to do."""


class BucketFiles(CheckpointFiles):
    """Files in a bucket: one thread lists them, others delete.

    Args:
        paths: Files of the run.
        holds: Whether the run is this driver's still; asked in the threads that delete, and where it is not nothing is
            deleted.
    """

    def __init__(self, paths: RunPaths, *, holds: Callable[[], bool]) -> None:
        self._paths, self._storage, self._holds = paths, storage_at(paths.url), holds
        self._lister = ThreadPoolExecutor(1, thread_name_prefix="hpo-checkpoint-list")
        self._deleters = ThreadPoolExecutor(_DELETERS, thread_name_prefix="hpo-checkpoint-delete")
        self._sizes: dict[str, int] = {}
        self._listing: Future[None] | None = None
        self._listed_at = self._refused_at = float("-inf")

    def recorded(self, target: str) -> str:
        return self._paths.recorded(target)

    def located(self, name: str) -> str:
        return self._paths.located(name)

    def size(self, name: str) -> int | None:
        under_way = self._listing is not None and not self._listing.done()
        if not under_way and time.monotonic() - self._listed_at >= LISTED_EVERY_S:
            self._listing = self._lister.submit(self._list)
        return self._sizes.get(self._name(name)) or None  # an empty one is what an upload that broke off left

    def look_again(self) -> Future[None]:
        self._listing = self._lister.submit(self._list)  # the one thread takes it after any that is under way
        return self._listing

    def delete(self, name: str) -> None:
        self._sizes.pop(self._name(name), None)
        self._deleters.submit(self._delete, self._name(name))

    def delete_strays(self, wanted: Collection[str]) -> None:
        kept = {self._name(name) for name in wanted}
        for path in self._paths.checkpoints.rglob("*.pt*"):  # what processes of this machine left half-way
            path.unlink(missing_ok=True)
        # Now, and not behind the driver's back: a driver that lost its disk may come to write these names again.
        with contextlib.suppress(TookTooLong):
            self.look_again().result(FRESH_WITHIN_S)
        doomed = [self._deleters.submit(self._delete, name) for name in self._sizes if name not in kept]
        for one in doomed:
            one.result()

    def close(self) -> None:
        self._lister.shutdown(cancel_futures=True)
        self._deleters.shutdown()

    def _name(self, recorded: str) -> str:
        """The object's name in the store; of a file of another run, what the journal calls it."""
        inside = self._paths.recorded(recorded)
        return inside if is_url(inside) or Path(inside).is_absolute() else self._paths.name(self._paths.work / inside)

    def _list(self) -> None:
        try:
            found = self._storage.below(self._paths.name(self._paths.checkpoints))
        except OSError as error:
            _log.warning("checkpoints in %s cannot be listed: %s", self._paths.url, error)
        else:
            self._sizes = {stored.name: stored.size for stored in found}
        self._listed_at = time.monotonic()

    def _delete(self, name: str) -> None:
        if time.monotonic() - self._refused_at < REST_S or not self._holds():
            return
        try:
            self._storage.delete(name)
        except OSError as error:
            self._refused_at = time.monotonic()
            _log.warning("%s could not be deleted, and will be with the strays: %s", name, error)


def files_of(paths: RunPaths, *, holds: Callable[[], bool]) -> CheckpointFiles:
    """The checkpoints of a run, where its store has them; `holds` as `BucketFiles` takes it."""
    return BucketFiles(paths, holds=holds) if paths.url else LocalFiles(paths)
