"""All nodes of a cluster looked at before a run: which of them fails what."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from hpo.engine.all_reduce import all_reduce
from hpo.engine.cluster import connected, shipped
from hpo.engine.findings import Finding, Seen, State, judged
from hpo.engine.nodes import Node, alive_nodes, answers
from hpo.engine.probes import Errand, Probe, described, look
from hpo.engine.shared_storage import REMEDY, absolute, came_back, marked, storage
from hpo.errors import HpoError, StoreError
from hpo.experiment_file import ExperimentFile

DRIVER = "driver"
MOST_APART_S = 1.0
"""Clocks further apart than this fail: times of reports and events would not be in the order of what happened."""
BEGIN_S, LOOK_S = 90.0, 120.0
"""So long a node may take to begin to answer (it unpacks the code first), and to answer one question."""
_ROUND_TRIPS = 5
_SAME_PACKAGES = "install the same versions on all nodes: pip install --constraint constraints.txt hpo"
REMEDIES: Mapping[str, str] = {
    "answers": "see `ray status`, and the logs of that node in /tmp/ray/session_latest/logs; hpo has to be installed",
    "python": "install the same Python on all nodes",
    "packages": _SAME_PACKAGES,
    "code": _SAME_PACKAGES,
    "experiment": "the file, or a module that it imports, differs: import from beside the file only what Ray brings "
    "along (its folder and those below), and install the rest alike everywhere",
    "storage": REMEDY,
    "data": "put the same data at the same path on every node, or on storage that all mount, and name it by --data-dir",
    "clock": "let chrony or systemd-timesyncd set the clocks of all nodes",
    "gpus": "end what runs on the GPUs, or start that node's Ray with CUDA_VISIBLE_DEVICES or --num-gpus as it is",
    "all-reduce": "open all ports between the nodes, in both directions; where a host has several networks, name the "
    "one in common by NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME",
    "limits": "raise `ulimit -n` for Ray's processes, give containers --shm-size, or free space",
}


@dataclass(frozen=True)
class Check:
    """One check over all nodes.

    Attributes:
        name: As in the table.
        findings: How it ended, by node.
    """

    name: str
    findings: Mapping[str, Finding]

    @property
    def remedy(self) -> str:
        """What to do where it did not pass."""
        return REMEDIES[self.name]


@dataclass(frozen=True)
class Report:
    """What a preflight found.

    Attributes:
        nodes: The driver, then the nodes by name.
        checks: In the order in which they were made.
    """

    nodes: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed on any node; warnings do not count."""
        return not any(found.state is State.FAILED for check in self.checks for found in check.findings.values())


def preflight(
    file: ExperimentFile,
    *,
    results: Path | str,
    data_dir: Path | None = None,
    address: str | None = None,
    says: Callable[[str], None] = lambda _: None,
) -> Report:
    """What each node of the cluster can do for this experiment, and wherein it differs from the others.

    Args:
        file: The experiment.
        results: Folder or URI of the store, as the run would have it.
        data_dir: Where the run would look for data first.
        address: Ray cluster; None looks at this machine alone.
        says: Told the name of each check before it is made.

    Raises:
        HpoError: There is no cluster at the address, or `results` is a URL of no kind that is known.
    """
    place = absolute(results)
    with contextlib.ExitStack() as ends:
        code = ends.enter_context(shipped(file.path))
        ends.enter_context(connected(address=address, cpus=None, gpus=None, code=code))
        nodes = alive_nodes()
        remote = ray.remote(max_concurrency=8, max_restarts=0)(Probe)
        probes = {node.name: remote.options(**node.here).remote() for node in nodes}
        ends.callback(lambda: [ray.kill(probe) for probe in probes.values()])
        says("answers")
        begun = answers({name: probe.time.remote() for name, probe in probes.items()}, within_s=BEGIN_S)
        silent = {name: said for name, said in begun.items() if isinstance(said, Seen)}
        checks = [_check("answers", {name: silent.get(name, Seen()) for name in begun})]
        asked = _Asked(file, [node for node in nodes if node.name not in silent], probes)
        for name, ask in asked.checks(place, data_dir).items():
            says(name)
            checks.append(_check(name, ask()))
    return Report((DRIVER, *(node.name for node in nodes)), tuple(checks))


def _check(name: str, seen: Mapping[str, Seen]) -> Check:
    return Check(name, judged(seen, first=DRIVER))


class _Asked:
    """The nodes that answer, and what they are asked."""

    def __init__(self, file: ExperimentFile, nodes: Sequence[Node], probes: Mapping[str, Any]) -> None:
        self._file, self._nodes, self._probes = file, nodes, probes

    def checks(self, results: str, data_dir: Path | None) -> dict[str, Callable[[], dict[str, Seen]]]:
        """What to call for each check that is left."""
        errand = Errand(
            str(self._file.path),
            data_dir=str(data_dir.resolve()) if data_dir else None,
            folder=str(Path.cwd()),
            hpo_data=os.environ.get("HPO_DATA"),
        )
        digest = Seen({"digest": self._file.digest})
        return {
            "python": lambda: self._look("python", errand, here=look("python", errand)),
            "packages": lambda: self._look("packages", errand, here=look("packages", errand)),
            "code": lambda: self._look("code", errand, here=look("code", errand)),
            "experiment": lambda: self._look("experiment", errand, here=digest),
            "storage": lambda: self._storage(results),
            "data": lambda: self._look("data", errand, here=self._data(data_dir), only_trials=True),
            "clock": self._clocks,
            "gpus": lambda: self._look("gpus", errand),
            "all-reduce": lambda: all_reduce(self._nodes, self._probes),
            "limits": lambda: self._look("limits", errand),
        }

    def _look(
        self, name: str, errand: Errand, *, here: Seen | None = None, only_trials: bool = False
    ) -> dict[str, Seen]:
        nodes = [node for node in self._nodes if node.runs_trials or not only_trials]
        calls = {
            node.name: self._probes[node.name].look.remote(name, replace(errand, num_gpus=node.num_gpus))
            for node in nodes
        }
        return {**({DRIVER: here} if here is not None else {}), **answers(calls, within_s=LOOK_S)}

    def _data(self, data_dir: Path | None) -> Seen:
        try:
            return described(self._file.experiment.task.locate(data_dir))
        except HpoError as error:
            return Seen(problem=" ".join(str(error).split()))

    def _storage(self, results: str) -> dict[str, Seen]:
        try:
            with marked(results, self._nodes) as mark:
                calls = {node.name: self._probes[node.name].storage.remote(mark, node.node_id) for node in self._nodes}
                seen = came_back(mark, self._nodes, answers(calls, within_s=LOOK_S))
                return {DRIVER: storage(mark, DRIVER), **seen}
        except StoreError as error:
            return {DRIVER: Seen(problem=error.problem, short="cannot write")}

    def _clocks(self) -> dict[str, Seen]:
        return {node.name: self._clock(self._probes[node.name]) for node in self._nodes}

    def _clock(self, probe: Any) -> Seen:
        trips = []
        for _ in range(_ROUND_TRIPS):
            left = time.time()
            told = answers({"": probe.time.remote()}, within_s=LOOK_S)[""]
            if isinstance(told, Seen):
                return told
            trips.append(RoundTrip(left, told, time.time()))
        return judged_clock(trips)


@dataclass(frozen=True)
class RoundTrip:
    """A question for the time: when it left, what was answered, when that came back, in seconds since 1970."""

    left: float
    told: float
    back: float

    @property
    def took_s(self) -> float:
        """Seconds under way."""
        return self.back - self.left

    @property
    def ahead_s(self) -> float:
        """Seconds that the other clock is ahead, right to half of `took_s`: the answer came halfway, more or less."""
        return self.told - (self.left + self.back) / 2


def judged_clock(trips: Sequence[RoundTrip]) -> Seen:
    """What the quickest round trip says of a node's clock; one that may still be right is not blamed."""
    best = min(trips, key=lambda trip: trip.took_s)
    if abs(best.ahead_s) - best.took_s / 2 <= MOST_APART_S:
        return Seen(shown=f"{1000 * best.ahead_s:+.0f} ms")
    side = "ahead of" if best.ahead_s > 0 else "behind"
    words = f"its clock is {abs(best.ahead_s):.1f} s {side} the driver's, more than {MOST_APART_S:g} s"
    return Seen(problem=words, short=f"{best.ahead_s:+.1f} s")
