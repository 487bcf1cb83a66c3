"""A study on the pretended hosts, to which faults come, and which is driven on whatever they end."""

from __future__ import annotations

import contextlib
import random
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos_faults import Came, Drawn
from benchmarks.chaos_hosts import Cluster
from benchmarks.chaos_ledger import Ledger, cost, verdict
from hpo.results import Entry, Place, RunPaths, Store, read_entries
from hpo.storage import Storage, storage_at
from tests.cluster.clusters import until

STUDY = Path(__file__).with_name("chaos_study.py")
LONGER: Mapping[str, Any] = {"batch_size": 16, "asha.max_epochs": 60, "asha.grace": 20, "patience.patience": 15}
"""Trials that are long enough to be continued from a checkpoint."""
TWO_WORKERS: Mapping[str, Any] = {
    "batch_size": 64,
    "per_trial.workers": 2,
    "per_trial.cpus": 0.5,
    "per_trial.strategy": "spread",
    "per_trial.hang_s": 20,
}
TRIALS = 2000  # more than it will come to
NEW_REPORTS = 4  # between two faults, at least
STUCK_S = 240.0
NOTICED_S = 20.0  # a driver whose disk is full has met it by then, or trains nothing
GIVEN_UP_S = 14.0  # the head holds a host for dead by then, which itself would take up to a minute to learn of it
WHOLE_HOST = ("raylet", "host off", "network cut")


@dataclass(frozen=True)
class Hit:
    """What a fault did: when, Unix time, and for how long; `host` is None where it hit more than one."""

    how: str
    at: float
    host: int | None = None
    lasted_s: float = 0.0


class Driven:
    """One study.

    Args:
        cluster: That it runs on.
        of: Its kind, of `chaos_faults.DECKS`.
        number: Counts the studies, from 1.
    """

    def __init__(self, cluster: Cluster, *, of: str, number: int) -> None:
        self.cluster, self.of, self.number = cluster, of, number
        self.folder = cluster.hosts.shared / f"study-{number}"
        self.folder.mkdir()
        shutil.copy(STUDY, self.folder)
        self.log = self.folder / "driver.log"
        self.overrides = {**LONGER, **(TWO_WORKERS if of == "two workers" else {})}
        bucket = cluster.bucket.new() if of == "in a bucket" else ""
        self.place = Place.of(bucket or str(cluster.store.path / f"study-{number}"), cache_dir=cluster.cache())
        self.ledger = Ledger(self.place.root)
        words = ["python", "-m", "hpo.run", STUDY.name, "--address", "auto", "--results", str(self.place)]
        words += [f"--set={name}={value}" for name, value in self.overrides.items()]
        words += ["--concurrent", "1"] if self.has_ranks else []
        self._command = f"cd {self.folder} && exec {shlex.join(words)} --trials {{}} >> {self.log} 2>&1"
        self.num_starts = 0
        self.ends: Counter[int] = Counter()

    @property
    def has_ranks(self) -> bool:
        """Whether a trial is trained by several processes, which may be anywhere."""
        return "per_trial.workers" in self.overrides

    # --- its driver ---

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Its driver lives for as long as the context lasts, and is killed then."""
        self._start(TRIALS)
        try:
            if not self.place.url:
                self._move_checkpoints()
            yield
        finally:
            self._kill_driver()

    def _start(self, trials: int) -> None:
        self._driver = self.cluster.hosts.start(0, self._command.format(trials))
        self.num_starts += 1

    def _kill_driver(self) -> None:
        for process in self.cluster.processes(0, "hpo.run"):
            process.kill()
        self._driver.communicate(timeout=60)

    def _move_checkpoints(self) -> None:
        """Have the run's checkpoints on the disk that is theirs, before there are any."""
        inside = self.cluster.checkpoints.path / f"study-{self.number}"
        inside.mkdir()
        self.paths().checkpoints.symlink_to(inside)

    def paths(self) -> RunPaths:
        """The run's files, when there is a run."""
        work = self.place.root / "work" / STUDY.stem
        (lock,) = until(lambda: list(work.glob("*/lock")), within_s=120, what=f"a run, see {self.log}")
        return self.place.run(STUDY.stem, lock.parent.name)

    # --- what happens while one waits ---

    def look(self) -> int:
        """Reports shown to a reader by now."""
        return self.ledger.show()

    def hold(self, seconds: float) -> None:
        """Let readers look for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.look()
            time.sleep(min(left, 1.0))

    def trains(self, *, on: int | None = None, since: tuple[float, str] | None = None) -> bool:
        """Return after some further reports, one of them from the host; whether the command was given again.

        Args:
            on: A host that is to train again.
            since: A fault, when and on which host: no trial waits any more that it hit.

        Raises:
            TimeoutError: They do not come.
        """
        before, before_on, restarted = self.look(), self._from(on), False
        deadline = time.monotonic() + STUCK_S
        while (
            self.look() < before + NEW_REPORTS
            or (on is not None and self._from(on) <= before_on)
            or (since is not None and cost(self.entries(), at=since[0], host=since[1]).waiting)
        ):
            if time.monotonic() > deadline:
                raise TimeoutError(f"it does not train as it should within {STUCK_S:.0f} s, see {self.log}")
            self.cluster.tend()
            if self._driver.poll() is not None:
                self.ends[self._driver.returncode] += 1
                restarted = True
                self.cluster.await_nodes()
                self._start(TRIALS)
            time.sleep(1.0)
        return restarted

    def _from(self, host: int | None) -> int:
        if host is None:
            return 0
        nodes = Store(self.place.root).sql("SELECT node FROM reports").column("node").to_pylist()
        return nodes.count(self.cluster.hosts.name(host))

    # --- faults ---

    def meet(self, fault: Drawn, *, number: int) -> Came:
        """The fault comes, is undone, and the study goes on.

        Raises:
            TimeoutError: It does not.
        """
        self.cluster.await_nodes()
        self.trains()
        time.sleep(fault.variant)
        if self.has_ranks and not self.cluster.processes(fault.host, "rank"):
            fault = replace(fault, host=3 - fault.host)  # the workers may all be on the other one
        lost = len(self.ledger.lost)
        come = {
            "driver": self._driver_killed,
            "raylet": self._raylet_killed,
            "trial": self._process_killed,
            "rank": self._process_killed,
            "host off": self._host_off,
            "network cut": self._network_cut,
            "checkpoint damaged": self._checkpoint_damaged,
            "store's disk full": self._store_full,
            "checkpoints' disk full": self._checkpoints_full,
            "S3 refuses": self._s3_refuses,
        }[fault.kind]
        hit = come(fault)
        host = self.cluster.hosts.name(hit.host) if hit.host is not None else ""
        back_on = fault.host if fault.kind in WHOLE_HOST and not self.has_ranks else None
        restarted = self.trains(on=back_on, since=(hit.at, host))
        return Came(
            number=number,
            study=self.number,
            of=self.of,
            kind=fault.kind,
            how=hit.how,
            host=host,
            at=hit.at,
            lasted_s=hit.lasted_s,
            restarted=restarted,
            lost=len(self.ledger.lost) - lost,
        )

    def _driver_killed(self, _: Drawn) -> Hit:
        at = time.time()
        self._kill_driver()
        self.ledger.check()
        return Hit("kill -9", at)

    def _raylet_killed(self, fault: Drawn) -> Hit:
        (raylet,) = self.cluster.processes(fault.host, "raylet")
        at = time.time()
        raylet.kill()
        return Hit("kill -9", at, fault.host)

    def _process_killed(self, fault: Drawn) -> Hit:
        while True:
            host, victim = self._victim(fault, fault.kind)
            with contextlib.suppress(psutil.NoSuchProcess):
                title, at = victim.cmdline()[0], time.time()
                victim.kill()
                return Hit(f"kill -9 of {title}", at, self._alone_on(host))

    def _victim(self, fault: Drawn, word: str) -> tuple[int, psutil.Process]:
        """A process of the drawn host, or of another one where it has none at the moment."""

        def found() -> list[tuple[int, psutil.Process]]:
            hosts = (fault.host, 3 - fault.host, 0)
            return [(host, process) for host in hosts for process in self.cluster.processes(host, word)]

        victims = until(found, within_s=60, what=f"a {word} process")
        own = [victim for victim in victims if victim[0] == victims[0][0]]
        return own[int(fault.variant * len(own))]

    def _alone_on(self, host: int) -> int | None:
        """The host where a process trains its trial alone; None where it is one of several."""
        return None if self.has_ranks else host

    def _host_off(self, fault: Drawn) -> Hit:
        hosts, at = self.cluster.hosts, time.time()
        hosts.power_off(fault.host)
        self.hold(fault.lasts_s)
        hosts.power_on(fault.host)
        return Hit("power", at, fault.host, time.time() - at)

    def _network_cut(self, fault: Drawn) -> Hit:
        at = time.time()
        self.cluster.hosts.cut(fault.host)
        self.hold(fault.lasts_s)
        self.cluster.hosts.join(fault.host)
        if fault.lasts_s > GIVEN_UP_S:
            self.cluster.restart(fault.host)
        return Hit("cable", at, fault.host, time.time() - at)

    def _store_full(self, fault: Drawn) -> Hit:
        with self.cluster.store.full():
            end = time.monotonic() + NOTICED_S
            while self._driver.poll() is None and time.monotonic() < end:
                self.hold(0.5)
            at = self.entries()[-1].at  # the last that found room in what had been begun
            self.hold(fault.lasts_s)
            self.ledger.check()
        return Hit("full", at, lasted_s=time.time() - at)

    def _checkpoints_full(self, fault: Drawn) -> Hit:
        return self._while(self.cluster.checkpoints.full(), fault, "full")

    def _s3_refuses(self, fault: Drawn) -> Hit:
        silent = fault.variant < 0.5
        how = "nothing listens" if silent else "503 Slow Down"
        return self._while(self.cluster.bucket.refusing(silent=silent), fault, how)

    def _while(self, trouble: AbstractContextManager[None], fault: Drawn, how: str) -> Hit:
        at = time.time()
        with trouble:
            self.hold(fault.lasts_s)
        return Hit(how, at, lasted_s=time.time() - at)

    def _checkpoint_damaged(self, fault: Drawn) -> Hit:
        """Damage the newest checkpoint of a trial that trains, and kill a process of the trial."""
        deadline = time.monotonic() + STUCK_S
        while time.monotonic() < deadline:
            host, victim = self._victim(fault, "rank" if self.has_ranks else "trial")
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.suspend()  # no newer checkpoint shall come
                trial = self._training_on(host)
                if trial is not None and (name := self._newest_checkpoint(trial)):
                    how, at = self._damage(name, fault), time.time()
                    victim.kill()
                    return Hit(f"{how} of {name}", at, self._alone_on(host))
                victim.resume()
            self.hold(1.0)
        raise TimeoutError("no trial that trains has a checkpoint")

    def _training_on(self, host: int) -> int | None:
        """The trial that reported from there last, if it still trains."""
        name, leased = self.cluster.hosts.name(host), {}
        for entry in self.entries():
            if entry.kind in ("started", "report"):
                leased[entry.trial] = str(entry.detail.get("node", ""))
            elif entry.kind in ("stopped", "paused", "failed", "interrupted"):
                leased.pop(entry.trial, None)
        return next((trial for trial, node in leased.items() if name in node.split(",")), None)

    def _checkpoint_files(self) -> Storage:
        return storage_at(str(self.place))

    def _newest_checkpoint(self, trial: int) -> str:
        paths = self.paths()
        folder = paths.name(paths.checkpoint(trial, 0, 0).parent)
        found = self._checkpoint_files().below(folder)
        return max(found, key=lambda stored: stored.name).name if found else ""

    def _damage(self, name: str, fault: Drawn) -> str:
        files = self._checkpoint_files()
        data = bytearray(files.read(name))
        if fault.variant < 0.5:
            data[len(data) // 2 :] = b""
            how = "second half cut off"
        else:
            noise = random.Random(fault.variant).randbytes(256)
            data[len(data) // 2 : len(data) // 2 + 256] = noise
            how = "256 bytes changed"
        files.write(name, bytes(data))
        return how

    # --- its end ---

    def entries(self) -> list[Entry]:
        """Its journal."""
        return read_entries(self.paths())

    def end(self) -> int:
        """Train what was begun, and a few trials more, to the end; the exit code of the command."""
        self.ledger.check()
        begun = Store(self.place.root).sql("SELECT * FROM trials").num_rows
        self.cluster.await_nodes()
        self._start(begun + 2)
        try:
            until(lambda: self._driver.poll() is not None, within_s=STUCK_S, what=f"its end, see {self.log}")
        finally:
            self._kill_driver()
        self.ledger.check()
        return int(self._driver.returncode)

    def found(self) -> dict[str, Any]:
        """What is to be said of it at its end."""
        found = verdict(self.ledger, self.folder / STUDY.name, self.overrides)
        entries = read_entries(self.paths())
        if self.place.url:
            found["reports lost"] += self._missing_in_bucket()
        return {
            "study": self.number,
            "of": self.of,
            **found,
            "failed trials": sum(entry.kind == "failed" and not entry.detail["retry"] for entry in entries),
            "causes": dict(Counter(entry.detail["cause"] for entry in entries if entry.kind == "failed")),
            "checkpoints found damaged": sum(entry.kind == "unusable" for entry in entries),
            "starts": self.num_starts,
            "ended by itself": dict(self.ends),
        }

    def _missing_in_bucket(self) -> int:
        """Reports that the driver's disk has, and a reader on a machine that knows nothing of the run does not see."""
        elsewhere = Ledger(Place.of(self.place.url, cache_dir=self.folder / "elsewhere"))
        elsewhere.acknowledged = dict(self.ledger.acknowledged)
        elsewhere.check()
        return len(elsewhere.lost)

    def lines(self, came: list[Came]) -> list[dict[str, Any]]:
        """The faults with what they cost."""
        entries = read_entries(self.paths())
        return [fault.line(cost(entries, at=fault.at, host=fault.host).time_lost_s) for fault in came]

    def clear(self) -> None:
        """Remove its files from the small disks."""
        for volume in (self.cluster.store, self.cluster.checkpoints):
            shutil.rmtree(volume.path / f"study-{self.number}", ignore_errors=True)
