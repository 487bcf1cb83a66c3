"""One driver a run, where no lock of the kernel reaches: claims as objects in the bucket, with a sign of life."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from hpo.errors import RunLocked
from hpo.storage import Storage, Stored

CLAIMS = "drivers"
"""Folder of the store that holds them: `drivers/E/R/<token>.json`."""
_LOOKS = 4  # at a driver that may be dead, in the time between two signs of life of one that lives
_log = logging.getLogger(__name__)


def running_s() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where it has one: others do not wait for it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Pace:
    """How often a driver speaks with its bucket, in seconds.

    Attributes:
        settle_s: A new claim waits so long for others that were made at the same moment: longer than the storage's
            clock is coarse.
        renew_s: Between two signs of life.
        stale_s: A driver that has not been heard of for so long counts as dead.
        seal_s: Between two seals: so much is lost with the driver's disk, at most.
        logs_s: Between two looks for logs and curves that have changed.
        patience_s: So long the end of a run waits for uploads that are refused.
    """

    settle_s: float = 2.0
    renew_s: float = 20.0
    stale_s: float = 120.0
    seal_s: float = 60.0
    logs_s: float = 60.0
    patience_s: float = 120.0


@dataclass(frozen=True)
class Owner:
    """What a claim says.

    Attributes:
        token: Whose it is: made anew by each driver.
        term: Counts the drivers of the run, from 1; 0 while it only asks.
        state: `asks` before it is decided, `held`, or `released` at the end.
        host: Of the driver.
        pid: Of the driver.
        since: When it began, UTC, by its own clock.
        asked_ns: When it asked, in Unix nanoseconds of the storage's clock; 0 where it does not know yet.
    """

    token: str
    term: int
    state: Literal["asks", "held", "released"]
    host: str
    pid: int
    since: str
    asked_ns: int = 0


class Claim:
    """A driver's claim on a run: `take`, `hold`, then `renew` every so often, and `release`.

    What is guaranteed: of drivers that begin at once at most one holds the run, as long as the storage lists what has
    just been written (S3, Google and Azure do) and its clocks differ by less than `settle_s`. A driver that was not
    heard of for `stale_s` seconds is succeeded by the next one; if it was only cut off, it learns of that when it
    renews its claim, which it does before it uploads again. Storages have no lock that could be taken from it at once:
    what it was uploading in the very seconds of the succession may still arrive. There is always a claim to tell who
    came last: that of a driver which has held the run is deleted by none but a later one.

    Args:
        storage: Of the whole store.
        experiment: Name of the experiment.
        run_id: Name of the run.
        pace: How long to wait for what.
    """

    def __init__(self, storage: Storage, experiment: str, run_id: str, *, pace: Pace) -> None:
        self._storage, self._pace, self._run_id = storage, pace, run_id
        self._folder = claims_of(experiment, run_id)
        since = datetime.now(UTC).isoformat(" ", "seconds")
        self.owner = Owner(secrets.token_hex(8), 0, "asks", platform.node(), os.getpid(), since)
        self._next_term, self._is_last = 1, False

    @property
    def token(self) -> str:
        """Whose claim it is."""
        return self.owner.token

    def take(self, *, dead: Collection[str] = ()) -> Owner | None:
        """The last driver before this one, if any; this one may go on to `hold` the run.

        Where others hold it, or asked first, it waits for a sign of life of theirs, or until they count as dead.

        Args:
            dead: Tokens of drivers that are known to have ended.

        Raises:
            RunLocked: Another driver lives: its host, process, and when it was heard of.
            OSError: The storage refuses.
        """
        self._write()
        try:
            time.sleep(self._pace.settle_s)
            claims = self._look()
            in_the_way = first = self._living(claims, dead, late_s=self._pace.settle_s)
            if first:
                _log.warning("%s; it is waited for a sign of life", self._locked(first[0]).problem)
            while in_the_way:
                signs = [one for one in in_the_way if all(one.mark != before.mark for before in first)]
                if signs:
                    raise self._locked(signs[0])
                time.sleep(self._pace.renew_s / _LOOKS)
                self._write()
                in_the_way = self._living(claims := self._look(), dead)
        except BaseException:
            with contextlib.suppress(OSError):
                self.withdraw()
            raise
        last = last_owner(owner for _, owner in claims)
        self._next_term = (last.term if last else 0) + 1
        return last

    def hold(self) -> None:
        """Become the run's driver, and take the claims of those before away as far as the storage lets it.

        Raises:
            RunLocked: Another driver came to hold it since `take`.
            OSError: The storage refuses; the claim may be held all the same.
        """
        self._refuse_if_succeeded(self._look())
        self.owner = replace(self.owner, term=self._next_term, state="held")
        self._write()
        claims = self._look()
        self._refuse_if_succeeded(claims)
        self._is_last = True
        now_ns = self._written_ns(claims)
        for stored, owner in claims:
            forgotten = owner.state == "asks" and now_ns - stored.changed_ns > self._pace.stale_s * 1e9
            if owner.term < self.owner.term and (owner.state != "asks" or forgotten):
                with contextlib.suppress(OSError):
                    self._storage.delete(stored.name)

    def renew(self) -> None:
        """Give a sign of life.

        Raises:
            RunLocked: Another driver holds the run now.
            OSError: The storage refuses.
        """
        self._refuse_if_succeeded(read_claims(self._storage, self._folder, but=self._name))
        self._write()

    def release(self) -> None:
        """Let the next driver in at once.

        Raises:
            OSError: The storage refuses; the next driver waits until the claim is stale.
        """
        self.owner = replace(self.owner, state="released")
        self._write()

    def withdraw(self) -> None:
        """Take back a claim; once those before it may be deleted, it is released instead.

        Raises:
            OSError: The storage refuses.
        """
        if self._is_last:
            self.release()
        else:
            self._storage.delete(self._name)

    def _look(self) -> list[tuple[Stored, Owner]]:
        """All claims as they are now; this one learns of the moment at which it asked."""
        claims = read_claims(self._storage, self._folder)
        if not self.owner.asked_ns:
            self.owner = replace(self.owner, asked_ns=self._written_ns(claims))
        return claims

    def _written_ns(self, claims: Iterable[tuple[Stored, Owner]]) -> int:
        """When this claim was written last, by the storage's clock."""
        return next((stored.changed_ns for stored, owner in claims if owner.token == self.token), 0)

    def _living(
        self, claims: list[tuple[Stored, Owner]], dead: Collection[str], *, late_s: float = 0.0
    ) -> list[_Heard]:
        """Drivers that may live and come before this one; `late_s` are the seconds since this claim was written."""
        now_ns, living = self._written_ns(claims) + round(late_s * 1e9), []
        for stored, owner in claims:
            age_s = max(now_ns - stored.changed_ns, 0) / 1e9
            asked = (owner.asked_ns or stored.changed_ns, owner.token)
            first = owner.state == "asks" and asked < (self.owner.asked_ns, self.token)
            if age_s < self._pace.stale_s and (owner.state == "held" or first):
                living.append(_Heard(owner, age_s, (owner.token, stored.changed_ns)))
        return [one for one in living if one.owner.token not in {self.token, *dead}]

    def _refuse_if_succeeded(self, claims: Iterable[tuple[Stored, Owner]]) -> None:
        """Raise RunLocked where another holds the run: a later one, or one of the same term that asked earlier."""
        mine = replace(self.owner, term=self._next_term)
        for _, owner in claims:
            if owner.state == "asks" or owner.token == self.token:
                continue
            if _rank(owner) > _rank(mine) or (self.owner.state == "asks" and owner.term == mine.term):
                raise RunLocked(
                    f"process {owner.pid} on {owner.host} has taken the run over, since this driver could not be "
                    f"heard of for {self._pace.stale_s:.0f} s",
                    where=f"run {self._run_id}",
                    remedy="let that one go on; what this one could not upload is left out",
                )

    @property
    def _name(self) -> str:
        return f"{self._folder}/{self.token}.json"

    def _write(self) -> None:
        self._storage.write(self._name, json.dumps(asdict(self.owner)).encode())

    def _locked(self, heard: _Heard) -> RunLocked:
        owner = heard.owner
        return RunLocked(
            f"process {owner.pid} on {owner.host} drives it since {owner.since} UTC; it was heard of "
            f"{heard.age_s:.0f} s ago",
            where=f"run {self._run_id}",
            remedy=f"wait for it, or end it with `hpo stop {self._run_id}`; one that died counts as dead "
            f"{self._pace.stale_s:.0f} s after it was last heard of",
        )


@dataclass(frozen=True)
class _Heard:
    """A driver that may live: how long ago it was heard of, and what changes when it is heard of again."""

    owner: Owner
    age_s: float
    mark: tuple[str, int]


def claims_of(experiment: str, run_id: str) -> str:
    """The folder of a run's claims."""
    return f"{CLAIMS}/{experiment}/{run_id}"


def read_claims(storage: Storage, folder: str, *, but: str = "") -> list[tuple[Stored, Owner]]:
    """The claims on a run, and when they were written; that of the name `but` left out.

    Raises:
        OSError: The storage refuses.
    """
    claims = (stored for stored in storage.below(folder) if stored.name != but)
    return [(stored, owner) for stored in claims if (owner := _owner(storage, stored)) is not None]


def owners_of(storage: Storage, claims: Iterable[Stored]) -> list[Owner]:
    """What claims say that were listed before.

    Raises:
        OSError: The storage refuses.
    """
    return [owner for stored in claims if (owner := _owner(storage, stored)) is not None]


def last_owner(owners: Iterable[Owner]) -> Owner | None:
    """The newest of the drivers that came to hold the run."""
    return max((owner for owner in owners if owner.state != "asks"), key=_rank, default=None)


def _rank(owner: Owner) -> tuple[int, int, str]:
    """Of two drivers that hold the run the one of higher rank does: the later one, or the one that asked earlier."""
    return owner.term, -owner.asked_ns, owner.token


def _owner(storage: Storage, stored: Stored) -> Owner | None:
    try:
        return Owner(**json.loads(storage.read(stored.name)))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # withdrawn in this moment, or written by something else
