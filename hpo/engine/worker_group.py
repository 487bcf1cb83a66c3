"""One trial in several processes: the trial's actor starts them, has them step together, and ends them all as one.

The actor itself computes nothing, so it outlives an exchange between the processes that hangs. They are its children,
in the bundles of its placement group: Tune has reserved what they use, and whatever ends the actor ends them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import get_current_placement_group, get_node_ip_address
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hpo.engine.checkpoint_writer import UPLOAD_PATIENCE_S
from hpo.engine.failures import explain, written_before
from hpo.engine.worker import LOST_TOUCH, Assignment, AttemptFailed, Saved, Trained, Worker, Workplace
from hpo.protocols import Group
from hpo.storage import is_there, is_url

HUNG = "hung"
"""Cause: a process did not answer in time."""
STARTING_S = 3600.0
"""So long all processes together may take to import the experiment, to open the data and to meet."""
LAST_FILE_S = 10.0
"""So long is waited, before processes are ended, for a checkpoint that one of them is writing; longer for a bucket."""
_MAY_FOLLOW = (LOST_TOUCH, "killed")
"""Causes that may follow from what befell another process: NCCL ends a process that has lost touch."""


def naming_s() -> float:
    """So long Ray takes to miss a node: whoever has lost touch waits for the one whose fault it is."""
    config = ray._config
    checks, every_ms = config.health_check_failure_threshold(), config.health_check_period_ms()
    return float(checks * (every_ms + config.health_check_timeout_ms()) / 1000 + 5)


class Rank:
    """The actor around one worker of a group."""

    def __init__(self, workplace: Workplace, rank: int) -> None:
        self._workplace, self._rank = workplace, rank
        self._worker = Worker(workplace, rank=rank)

    def __repr__(self) -> str:
        return f"{Path(self._workplace.experiment_file).stem} · rank {self._rank}"

    def take(self, assignment: Assignment) -> None:
        """Train this from the next step on, with everything imported that it needs."""
        self._worker.take(assignment)
        with self._worker.telling():
            self._worker.prepare()

    def host(self) -> str:
        """The address at which the group meets."""
        with self._worker.telling():
            return self._worker.prepare().host(get_node_ip_address())

    def join(self, address: str) -> None:
        """Train with those who meet at the address, once the data are open."""
        workplace = self._workplace
        self._worker.join(
            Group(
                rank=self._rank,
                size=workplace.workers,
                address=address,
                hang_s=workplace.hang_s,
                interface_of=get_node_ip_address(),
                shares_gpu=0 < workplace.setting.gpus < 1,
            )
        )
        with self._worker.telling():
            self._worker.open()

    def train(self) -> Trained:
        """One step, as all others do at the same time."""
        return self._worker.train()

    def save(self) -> Saved:
        """Begin to write the trial's checkpoint."""
        return self._worker.save()

    def close(self) -> None:
        """Return when what it writes is written."""
        self._worker.close()


class WorkerGroup:
    """Does what a `Worker` does, by as many of them as the workplace says.

    The processes and their process group are kept from trial to trial. After an `AttemptFailed` all have ended, and
    so has the use of this object.
    """

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._joined = False
        self._assignment: Assignment | None = None
        self._is_new = False
        self._writing = ""
        placement = get_current_placement_group()
        self._ranks = [
            ray.remote(Rank)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank),
            )
            .remote(workplace, rank)
            for rank, bundle in enumerate(placement.bundle_specs)
        ]

    def take(self, assignment: Assignment) -> None:
        """Train this from the next step on."""
        self._assignment, self._is_new = assignment, True

    def train(self) -> Trained:
        """One more step of the assignment, as all processes measured it together.

        Raises:
            AttemptFailed: Whatever went wrong in one of them; all have been ended.
        """
        if self._is_new:
            self._all([rank.take.remote(self._assignment) for rank in self._ranks])
            self._is_new = False
        if not self._joined:
            (address,) = self._all([self._ranks[0].host.remote()])
            self._all([rank.join.remote(address) for rank in self._ranks])
            self._joined = True
        trained = self._all([rank.train.remote() for rank in self._ranks], hang_s=self._workplace.hang_s)
        if any(written.path == self._writing for written in trained[0].written):
            self._writing = ""
        return _together(trained)

    def save(self) -> Saved:
        """Begin to write a checkpoint: the first process's, since all have the same state."""
        try:
            saved: Saved = ray.get(self._ranks[0].save.remote())
        except RayError as error:
            self._fail(0, error)
        self._writing = saved.checkpoint
        return saved

    def close(self) -> None:
        """Return when what they write is written, and end them."""
        with contextlib.suppress(RayError):
            ray.get([rank.close.remote() for rank in self._ranks], timeout=UPLOAD_PATIENCE_S + 30)
        self._end()

    # --- one for all ---

    def _all(self, calls: Sequence[Any], *, hang_s: float | None = None) -> list[Any]:
        """What the calls, one of each process, return.

        Args:
            calls: Under way.
            hang_s: They end within so long of the first; None: within `STARTING_S` from now.

        Raises:
            AttemptFailed: One of them failed.
        """
        waiting = {call: rank for rank, call in enumerate(calls)}
        results: dict[int, Any] = {}
        suspects: dict[int, RayError] = {}
        deadline = time.monotonic() + STARTING_S if hang_s is None else math.inf
        while waiting:
            left = None if deadline == math.inf else max(deadline - time.monotonic(), 0)
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
            if not done:
                break
            rank = waiting.pop(done[0])
            try:
                results[rank] = ray.get(done[0])
                allowed_s = hang_s
            except RayError as error:
                if explain(error)[0] not in _MAY_FOLLOW:
                    self._fail(rank, error)
                suspects[rank] = error
                allowed_s = min(hang_s or STARTING_S, naming_s())
            if allowed_s is not None:
                deadline = min(deadline, time.monotonic() + allowed_s)
        if suspects or waiting:
            self._name_one(suspects, silent=sorted(waiting.values()), hang_s=hang_s)
        return [results[rank] for rank in range(len(calls))]

    def _name_one(self, suspects: Mapping[int, RayError], *, silent: Sequence[int], hang_s: float | None) -> NoReturn:
        """Give up because of who died, else of who does not answer, else of who lost touch first."""
        dead = [rank for rank, error in suspects.items() if explain(error)[0] != LOST_TOUCH]
        if dead or not silent:
            rank = dead[0] if dead else next(iter(suspects))
            self._fail(rank, suspects[rank])
        trace = "".join(f"rank {rank}:\n{explain(error)[2]}\n" for rank, error in suspects.items())
        named = ", ".join(map(str, silent))
        rule = f"{STARTING_S:g} s to start" if hang_s is None else f"{hang_s:g} s (per_trial.hang_s)"
        message = f"rank {named} did not answer, for which it has {rule}"
        written = tuple(one for error in suspects.values() for one in written_before(error))
        self._give_up(HUNG, message, trace or message, written, dead=None)

    def _fail(self, rank: int, error: RayError) -> NoReturn:
        """Give up because of one process."""
        cause, message, trace = explain(error)
        told = message if message.startswith("rank ") else f"rank {rank}: {message}"
        dead = None if isinstance(error, RayTaskError) else rank
        self._give_up(cause, told, trace, written_before(error), dead=dead)

    def _give_up(self, cause: str, message: str, trace: str, written: tuple[Any, ...], *, dead: int | None) -> NoReturn:
        if dead != 0:
            self._await_last_file()
        self._end()
        raise AttemptFailed(cause, message, trace, written)

    def _await_last_file(self) -> None:
        """Let a checkpoint be finished: the next attempt begins there."""
        until = time.monotonic() + (UPLOAD_PATIENCE_S if is_url(self._writing) else LAST_FILE_S)
        while self._writing and not is_there(self._writing) and time.monotonic() < until:
            time.sleep(0.05)

    def _end(self) -> None:
        for rank in self._ranks:
            ray.kill(rank, no_restart=True)


def _together(trained: Sequence[Trained]) -> Trained:
    """The report of all: the first one's, which has what all measured, with the most of what each used for itself."""
    memory = [one.step.device_memory_mb for one in trained if one.step.device_memory_mb is not None]
    step = replace(trained[0].step, device_memory_mb=max(memory, default=None))
    nodes = ",".join(dict.fromkeys(one.node for one in trained))
    gpus = tuple(gpu for one in trained for gpu in one.gpus)
    return replace(trained[0], step=step, step_s=max(one.step_s for one in trained), node=nodes, gpus=gpus)
