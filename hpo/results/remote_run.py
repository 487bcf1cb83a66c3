"""A run of a store in a bucket, as its driver has it: claimed, brought to the working folder, uploaded from there."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from hpo.errors import RunLocked, StoreError
from hpo.results.claim import Claim, Owner, Pace, running_s
from hpo.results.layout import RunPaths, write_atomically
from hpo.storage import Storage, checked, refused

_AT_ONCE = 8
_BATCH = 32  # files between two looks at whether the run is still this driver's
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_LOOK_EVERY_S = 0.02
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class RemoteRun:
    """Made by `taken`, ended by `close`; in between a thread uploads, and nothing waits for it.

    Uploaded are the sealed segments of the journal, the parts made from them, the rows of trials and run, and
    `experiment.json`, as soon as they change; logs and curves every minute. An events part comes after all that belongs
    to it, so that a reader who sees it sees the rest. While the bucket refuses, what is to be uploaded waits in the
    working folder, which has all of it in any case.

    Attributes:
        notes: What a person should know.
        lost: Why nothing may be uploaded any more: another driver holds the run.
    """

    def __init__(self, paths: RunPaths, storage: Storage, claim: Claim, *, pace: Pace) -> None:
        self.notes: list[str] = []
        self.lost: RunLocked | None = None
        self._paths, self._storage, self._claim, self._pace = paths, storage, claim, pace
        self._sent: dict[str, tuple[int, int]] = {}
        self._listed = False
        self._took_over, self._mend_at, self._num_brought = False, math.inf, 0
        self._renewed = running_s()
        self._renewing = threading.Lock()  # guards the claim and when it was renewed
        self._failing = ""
        self._patient_until = math.inf
        self._changed, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._upload_on, name="hpo-uploads", daemon=True)

    @classmethod
    def taken(cls, paths: RunPaths, *, pace: Pace) -> RemoteRun:
        """The run, held by this driver, its working folder as far as the run has come.

        The caller holds the lock of the working folder.

        Raises:
            RunLocked: Another driver lives, on this machine or another.
            StoreError: The bucket refuses.
        """
        storage = checked(paths.url)
        claim = Claim(storage, paths.experiment, paths.run_id, pace=pace)
        run = cls(paths, storage, claim, pace=pace)
        known = Known.read(paths)
        try:
            Known((*known.made, claim.token), known.whole).write(paths)
            last = claim.take(dead=known.made)
            run._begin(last, known)
        except OSError as error:
            raise refused(paths.url, error) from error
        run._thread.start()
        return run

    def _begin(self, last: Owner | None, known: Known) -> None:
        paths, claim = self._paths, self._claim
        try:
            if last is None or last.token not in known.whole:
                self._bring(all_new=last is not None)
            self._num_brought = max(paths.segments(), default=0)
            # Written before the run is held, for a request that is refused may have been carried out. As long as no
            # claim has this token it says nothing; of the token of `last`, which may live, nothing is said.
            Known((*known.made, claim.token), (*known.whole, claim.token)).write(paths)
            claim.hold()
        except BaseException:
            with contextlib.suppress(OSError):
                claim.withdraw()
            raise
        if last is not None and last.state == "held" and last.token not in known.made:
            self._took_over, self._mend_at = True, running_s() + self._pace.stale_s  # it may only have been cut off
        Known((claim.token,), (claim.token,)).write(paths)
        with contextlib.suppress(OSError):
            self._storage.delete(paths.name(paths.stop_request))  # of a driver that could not heed it

    def _bring(self, *, all_new: bool) -> None:
        """Make the working folder what the bucket holds: another machine drove the run last, or this disk was new.

        Where nothing tells who was last (`all_new` is False), a folder that has all of the bucket's journal is as far.
        """
        paths = self._paths
        journal = {stored.name: stored.size for stored in self._storage.below(paths.name(paths.journal_dir))}
        own = {paths.name(file): file.stat().st_size for file in map(paths.segment, paths.segments())}
        if not all_new and journal.items() <= own.items():
            return
        if not own.items() <= journal.items():
            aside = paths.work / f"left-out-{time.strftime('%Y%m%d-%H%M%S')}"
            paths.journal_dir.rename(aside)
            self.notes.append(f"another machine went on with the run; what only this one knew is left out, in {aside}")
        folders = [paths.run_file.parent, paths.trials_file.parent, *self._parts[1:]]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        names = [stored.name for folder in folders for stored in self._storage.below(paths.name(folder))]
        names += [*journal, paths.name(paths.experiment_json)]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for some in _batches(names):
                self._renew()
                list(threads.map(self._download, some))

    def _download(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._storage.download(name, self._paths.root / name)

    def has(self, segment: int) -> bool:
        """Whether a segment of the journal is in the bucket, where the next driver finds it, as it is here."""
        return self._paths.name(self._paths.segment(segment)) in self._sent

    def holds(self) -> bool:
        """Whether the run is this driver's: nobody else's may be changed. May take seconds; no where none can tell."""
        try:
            self._renew()
        except RunLocked as error:
            self.lost = error
        except OSError:
            return False
        return self.lost is None

    def waits_for(self, happens: Callable[[], bool]) -> bool:
        """Whether it happened before the patience with the bucket ended.

        Raises:
            RunLocked: Another driver holds the run now.
        """
        until = self._begin_to_wait()
        while not (happened := happens()) and self.lost is None and running_s() < until:
            time.sleep(_LOOK_EVERY_S)
        if self.lost is not None:
            raise self.lost
        if happened:
            self._patient_until = math.inf
        return happened

    def _begin_to_wait(self) -> float:
        """Until when the bucket is waited for: once for all that waits for it."""
        self._patient_until = min(self._patient_until, running_s() + self._pace.patience_s)
        return self._patient_until

    def poke(self) -> None:
        """Something has changed that is to be uploaded."""
        self._changed.set()

    def close(self) -> None:
        """Upload what is left, and let the next driver in.

        Raises:
            RunLocked: Another driver holds the run now.
            StoreError: The bucket refused for too long; a later start on this machine uploads the rest.
        """
        self._ending.set()
        self._changed.set()
        self._thread.join()
        if self.lost is not None:
            raise self.lost
        missing = list(self._unsent([*self._in_order(), *self._logs_and_curves()]))
        if missing or self._failing:
            raise StoreError(
                f"{len(missing)} files of the run could not be uploaded ({self._failing}); all of it is in "
                f"{self._paths.root}",
                where=self._paths.url,
                remedy="give the same command again on this machine when the storage answers: it uploads the rest",
            )

    # --- the thread ---

    def _upload_on(self) -> None:
        looked, pause_s = running_s(), _FIRST_PAUSE_S
        while self.lost is None:
            waited_for = self._ending if self._failing else self._changed  # a refusal is not asked again at each change
            waited_for.wait(pause_s if self._failing else self._pace.renew_s)
            self._changed.clear()
            if self._ending.is_set():
                break
            now = running_s()
            everything = now - looked > self._pace.logs_s
            if self._tried(self._round, everything):
                looked, pause_s = (now if everything else looked), _FIRST_PAUSE_S
            else:
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        until = self._begin_to_wait()
        while self.lost is None and not self._tried(self._finish) and running_s() < until:
            time.sleep(_FIRST_PAUSE_S)

    def _finish(self) -> None:
        if self._took_over:
            self._mend_at = 0.0
        self._round(True)
        with self._renewing:
            self._claim.release()

    def _tried(self, do: Callable[..., None], *given: bool) -> bool:
        try:
            do(*given)
        except RunLocked as error:
            self.lost = error
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, the next try may succeed, and the end tells of it
            if not self._failing:
                _log.warning("uploads to %s wait: %s", self._paths.url, error)
            self._failing = f"{type(error).__name__}: {error}"
            return False
        if self._failing:
            _log.warning("uploads to %s go on", self._paths.url)
        self._failing = ""
        return True

    def _round(self, everything: bool) -> None:  # noqa: FBT001
        """Upload what has changed, never without having made sure that the run is still this driver's."""
        self._renew()
        if not self._listed:
            self._know_parts()
        if running_s() >= self._mend_at:
            self._mend()
        self._send_in_order()
        if everything:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                for some in _batches(self._unsent(self._logs_and_curves())):
                    list(threads.map(self._send, some))
                    self._send_in_order()

    def _send_in_order(self) -> None:
        self._renew()
        for path in self._unsent(self._in_order()):
            self._renew()
            self._send(path)

    def _send(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            self._storage.upload(path, self._paths.name(path))
            self._sent[self._paths.name(path)] = (status.st_size, status.st_mtime_ns)

    def _renew(self) -> None:
        with self._renewing:
            now = running_s()
            if not self._failing and now - self._renewed < self._pace.renew_s:
                return
            self._claim.renew()
            self._renewed = now
        asked = self._paths.name(self._paths.stop_request)
        if self._thread.is_alive() and not self._ending.is_set() and self._storage.stat(asked) is not None:
            self._paths.stop_request.touch()
            self._storage.delete(asked)

    def _know_parts(self) -> None:
        """Take note of what an earlier driver uploaded: parts never change, and logs that changed have grown."""
        for folder in (*self._parts, self._paths.log(0).parent, self._paths.tensorboard):
            self._compare(folder)
        self._listed = True

    def _mend(self) -> None:
        """Make up for what a predecessor that was cut off uploaded late, over what this driver had uploaded."""
        paths = self._paths
        for folder in self._parts:
            self._compare(folder)
        may_differ = [paths.trials_file, paths.run_file]  # though of one size; its parts came one after the other
        for number in (self._num_brought + 1, self._num_brought + 2):
            may_differ += [paths.segment(number), paths.reports_part(number), paths.events_part(number)]
        for file in may_differ:
            self._sent.pop(paths.name(file), None)
        self._mend_at = math.inf

    def _compare(self, folder: Path) -> None:
        """Know as sent those files of a folder that the bucket has in their size, and the others as not sent."""
        there = {stored.name: stored.size for stored in self._storage.below(self._paths.name(folder))}
        for path in folder.rglob("*"):
            name = self._paths.name(path)
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if there.get(name) == status.st_size:
                    self._sent[name] = (status.st_size, status.st_mtime_ns)
                else:
                    self._sent.pop(name, None)

    @property
    def _parts(self) -> tuple[Path, ...]:
        """Folders of the files that never change."""
        return self._paths.journal_dir, self._paths.reports_part(1).parent, self._paths.events_part(1).parent

    def _in_order(self) -> list[Path]:
        """What readers need, in the order in which it may appear to them."""
        paths, sealed = self._paths, self._paths.sealed()
        files = [*map(paths.segment, sealed), *map(paths.reports_part, sealed), paths.experiment_json]
        return [*files, paths.trials_file, paths.run_file, *map(paths.events_part, sealed)]

    def _logs_and_curves(self) -> list[Path]:
        folders = (self._paths.log(0).parent, self._paths.tensorboard)
        return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]

    def _unsent(self, files: Iterable[Path]) -> Iterator[Path]:
        """Those that are not in the bucket as they are here."""
        for path in files:
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if self._sent.get(self._paths.name(path)) != (status.st_size, status.st_mtime_ns):
                    yield path


class Known:
    """What a working folder knows of the drivers of its run, in `claims.json`.

    Args:
        made: Tokens of the drivers that worked in this folder: they are dead when its lock can be taken.
        whole: The drivers whose whole work is in it, uploaded or not: if the last one is not among them, another
            machine went on with the run.
    """

    def __init__(self, made: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> None:
        self.made, self.whole = made, whole

    @classmethod
    def read(cls, paths: RunPaths) -> Known:
        """What the folder knows; nothing where it is new."""
        try:
            told = json.loads((paths.work / "claims.json").read_text(encoding="utf-8"))
            return cls(tuple(told["made"]), tuple(told["whole"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, paths: RunPaths) -> None:
        """Keep it.

        Raises:
            StoreError: The disk refuses.
        """
        write_atomically(paths.work / "claims.json", json.dumps({"made": self.made, "whole": self.whole}))


def _batches(of: Iterable[_T]) -> Iterator[list[_T]]:
    left = iter(of)
    while batch := list(islice(left, _BATCH)):
        yield batch
