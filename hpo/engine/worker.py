"""What trains, in whichever process: one assignment after another, told as plain data."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import ray

from hpo.engine.checkpoint_writer import CheckpointWriter, Written
from hpo.engine.origins import Origin
from hpo.errors import CheckpointError, DataError, HpoError, StoreError, WorkerLost
from hpo.experiment_file import import_experiment
from hpo.files import digest
from hpo.protocols import Group, Setting, Step, Task, Trainer
from hpo.results import RunPaths
from hpo.storage import brought

LOST_TOUCH = "lost_touch"
"""Cause of a failure that follows from that of another process of the trial."""


@dataclass(frozen=True)
class Workplace:
    """What every process of a run is told once.

    Attributes:
        experiment_file: The experiment's file, as the driver's machine sees it; where Ray brought the code along, the
            file of that name in the working folder is used instead.
        setting: Where its trainer lives.
        workers: Processes that train each trial together.
        hang_s: Seconds that they wait for each other.
    """

    experiment_file: str
    setting: Setting
    workers: int = 1
    hang_s: float = 300.0


@dataclass(frozen=True)
class Assignment:
    """One attempt at one trial, as the actor gets it.

    `takes_over`: the checkpoint is another trial's. `start`: the weights that it begins with, where it has no
    checkpoint, or why there are none; of a checkpoint that an earlier run wrote, whose it is.
    """

    trial: int
    attempt: int
    config: Mapping[str, Any]
    seed: int
    checkpoint: str | None
    from_step: int
    paths: RunPaths
    takes_over: bool = False
    start: Origin | HpoError | None = None


@dataclass(frozen=True)
class Trained:
    """One step, with what the process knows beside it.

    `written` are checkpoints, of whichever of its trials; `gpus` are the node and the index of each of its GPUs;
    `began_with` tells, with the first step, of the weights that the trial began with.
    """

    number: int
    step: Step
    step_s: float
    node: str
    pid: int
    written: tuple[Written, ...] = ()
    gpus: tuple[tuple[str, str], ...] = ()
    began_with: Mapping[str, Any] | None = None


class Saved(NamedTuple):
    """Outcome of `save`; Tune looks at `checkpoint` and nothing else.

    Attributes:
        checkpoint: The file that is being written: it appears when it is whole, or later news say why not.
        step: Whose state it holds.
        blocked_s: Seconds that training stood still.
        error: Why there is nothing to write; empty where there is.
        written: Checkpoints of whichever trial of the process whose writing has ended in the meantime.
    """

    checkpoint: str
    step: int
    blocked_s: float
    error: str = ""
    written: tuple[Written, ...] = ()


class AttemptFailed(Exception):  # noqa: N818
    """A step raised; carries plain text, because the original may not survive pickling."""

    def __init__(self, cause: str, message: str, trace: str, written: tuple[Written, ...] = ()) -> None:
        super().__init__(cause, message, trace, written)
        self.cause, self.message, self.trace, self.written = cause, message, trace, written

    def __str__(self) -> str:
        return f"{self.cause}: {self.message}"


class Worker:
    """Trains one assignment after another in the process that it lives in; alone, or as one of a group.

    Nothing that a user wrote runs before the first `train`.

    Args:
        workplace: Of the run.
        rank: Which of the processes that train a trial together it is; the first one's reports and checkpoints count.
    """

    def __init__(self, workplace: Workplace, *, rank: int = 0) -> None:
        self._workplace, self._rank = workplace, rank
        # Before anything loads OpenMP: Ray leaves a value that was set for the whole machine as it is.
        os.environ["OMP_NUM_THREADS"] = str(workplace.setting.num_threads)
        logging.getLogger("hpo").setLevel(logging.INFO)  # how a trial trains belongs into its log
        self._group: Group | None = None
        self._task: Task | None = None
        self._trainer: Trainer | None = None
        self._printer = Printer()
        self._writer = CheckpointWriter(self._printer.apart)
        self._number = -1
        self._began_with: Mapping[str, Any] | None = None

    def take(self, assignment: Assignment) -> None:
        """Train this from the next step on."""
        if self._number > 0:
            self._publish_log()
        self._assignment = assignment
        self._number = -1

    def prepare(self) -> Task:
        """The run's task, imported where it was not before."""
        if self._task is None:
            self._task = import_experiment(_here(Path(self._workplace.experiment_file))).task
        return self._task

    def join(self, group: Group) -> None:
        """Train as one of the group."""
        self._group = group

    def train(self) -> Trained:
        """One more step of the assignment.

        Raises:
            AttemptFailed: Whatever went wrong.
        """
        with self.telling():
            return self._step()

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """What is printed inside is in the trial's log, and an error becomes one that reaches the driver.

        Raises:
            AttemptFailed: Whatever went wrong.
        """
        with self._printer.to(self._log):
            try:
                yield
            except Exception as error:  # noqa: BLE001 - it is told to the driver as text
                sys.stderr.write(traceback.format_exc())
                self._publish_log()
                self._writer.wait()  # another attempt shall begin where this one got to
                raise failure(error, written=self._writer.news()) from None

    def _step(self) -> Trained:
        trainer = self._trainer if self._trainer is not None and self._number >= 0 else self._begin()
        started = time.perf_counter()
        step = trainer.step()
        _check_metrics(step, goal=self._workplace.setting.metric)
        self._number += 1
        took_s = time.perf_counter() - started
        gpus = _gpus() if self._workplace.setting.gpus else ()
        began_with, self._began_with = self._began_with, None
        return Trained(self._number, step, took_s, platform.node(), os.getpid(), self._writer.news(), gpus, began_with)

    def open(self) -> Trainer:
        """The trainer with the data at hand, and in touch with the others of the group."""
        if self._trainer is None:
            self._trainer = self.prepare().begin(replace(self._workplace.setting, group=self._group))
        return self._trainer

    def _begin(self) -> Trainer:
        assignment, trainer = self._assignment, self.open()
        trainer.begin(assignment.config, seed=assignment.seed)
        self._number = 0
        if assignment.checkpoint is None:
            self._began_with = _begin_with(trainer, assignment.start)
        else:
            self._began_with = _go_on_from(assignment.checkpoint, trainer, assignment)
            self._number = assignment.from_step
        return trainer

    def save(self) -> Saved:
        """Begin to write a checkpoint to the run's own folder; an error is told, not raised: training goes on."""
        lease, number = self._assignment, self._number
        path = lease.paths.checkpoint(lease.trial, lease.attempt, number)
        target = lease.paths.target(path)
        started = time.perf_counter()
        error = ""
        try:
            assert self._trainer is not None  # noqa: S101 - it has reported a step
            self._writer.wait()  # before there are two copies in memory
            snapshot = self._trainer.snapshot()
            about = {"trial": lease.trial, "attempt": lease.attempt, "step": number}
            self._writer.begin(snapshot, **about, path=path, log=self._log, target=target)
            self._publish_log()
        except Exception as problem:  # noqa: BLE001 - whatever it is must not end the trial
            error = f"{type(problem).__name__}: {problem}"
        return Saved(target, number, time.perf_counter() - started, error, self._writer.news())

    @property
    def _log(self) -> Path:
        """Where what the trial prints in this process belongs."""
        return self._assignment.paths.log(self._assignment.trial, self._rank, attempt=self._assignment.attempt)

    def _publish_log(self) -> None:
        self._writer.publish(self._log, target=self._assignment.paths.target(self._log))

    def close(self) -> None:
        """Return when what it writes is written; the process is not needed any more."""
        if self._number > 0:
            self._publish_log()
        self._writer.close()
        self._printer.end()


def _go_on_from(checkpoint: str, trainer: Trainer, assignment: Assignment) -> Mapping[str, Any] | None:
    """What to tell of the checkpoint that the trial now goes on from, where an earlier run wrote it."""
    restore = trainer.take_over if assignment.takes_over else trainer.load
    start = assignment.start if isinstance(assignment.start, Origin) else None
    try:
        with brought(checkpoint) as path:
            restore(path)
            if start is None:
                return None
            trainer.forget_best()
            return {**asdict(start), "digest": digest(path)}
    except CheckpointError as error:
        if start is None:
            raise
        raise DataError(  # to start over would be another trial
            f"trial {start.trial} of run {start.run} cannot be continued: {error.problem}",
            where=checkpoint,
            remedy="bring the file back; or begin a new run with --fresh",
        ) from error


def _begin_with(trainer: Trainer, start: Origin | HpoError | None) -> Mapping[str, Any] | None:
    """What to tell of the weights that the trial now begins with."""
    if isinstance(start, HpoError):
        raise start
    if start is None:
        return None
    with contextlib.ExitStack() as ends:
        try:
            weights = ends.enter_context(brought(start.weights)) if start.is_file else start.weights
        except CheckpointError:
            raise DataError(
                "there is no such file of weights",
                where=start.weights,
                remedy="it has to be where every node can read it",
            ) from None
        return {**asdict(start), "digest": trainer.start_from(weights)}


@cache
def _gpus() -> tuple[tuple[str, str], ...]:
    """Node and index of each GPU that Ray gave to this process, for good."""
    return tuple((platform.node(), str(index)) for index in ray.get_gpu_ids())


def _check_metrics(step: Step, *, goal: str) -> None:
    """Raise TypeError for what no store and no policy can use: this trial fails, and says so."""
    if goal not in step.metrics:
        raise TypeError(f"the step reports no {goal!r}, which is the goal; it reports {sorted(step.metrics)}")
    for name, value in step.metrics.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"the metric {name!r} is {value!r}, not a Python number: use .item() for a tensor")


def _here(experiment_file: Path) -> Path:
    brought = ray.get_runtime_context().runtime_env.get("working_dir")
    return Path.cwd() / experiment_file.name if brought else experiment_file


def failure(error: Exception, *, written: tuple[Written, ...] = ()) -> AttemptFailed:
    """The error as text, its cause named in one word."""
    message = str(error) if isinstance(error, HpoError) else f"{type(error).__name__}: {error}"
    return AttemptFailed(_cause(error), message, "".join(traceback.format_exception(error)), written)


def _cause(error: Exception) -> str:
    out_of_memory = (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
    if out_of_memory:
        return "out_of_memory"
    if isinstance(error, CheckpointError):
        return "checkpoint"
    if isinstance(error, StoreError):
        return "storage"  # which did not give the checkpoint; that is there, and the next attempt begins from it
    return LOST_TOUCH if isinstance(error, WorkerLost) else "error"


class Printer(io.TextIOBase):
    """Sends what Python code prints and logs to the end of a file, line by line.

    The file stays open from step to step: opening it anew costs a trivial step a tenth of its time. The stream is one
    and the same for all trials of the process, since libraries keep the `sys.stderr` that they were imported with.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._out: TextIO | None = None
        self._thread = threading.local()
        self._handler = logging.StreamHandler(self)
        self._handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    @contextlib.contextmanager
    def to(self, path: Path) -> Iterator[None]:
        """Print to `path` as long as the context lasts."""
        if path != self._path:
            self.end()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._path, self._out = path, path.open("a", encoding="utf-8", buffering=1)
        root = logging.getLogger()
        root.addHandler(self._handler)
        try:
            with contextlib.redirect_stdout(self), contextlib.redirect_stderr(self):
                yield
        finally:
            root.removeHandler(self._handler)

    @contextlib.contextmanager
    def apart(self, path: Path) -> Iterator[None]:
        """What this one thread prints goes to `path` as long as the context lasts, whichever trial trains."""
        self._thread.path = path
        try:
            yield
        finally:
            self._thread.path = None

    def writable(self) -> bool:
        """It is written to."""
        return True

    def write(self, text: str) -> int:
        """Write to the file of the trial that trains; nowhere where none does."""
        apart: Path | None = getattr(self._thread, "path", None)
        if apart is not None:
            with apart.open("a", encoding="utf-8") as out:
                return out.write(text)
        return self._out.write(text) if self._out is not None else len(text)

    def flush(self) -> None:
        """Let others see it."""
        if self._out is not None:
            self._out.flush()

    def end(self) -> None:
        """Close the file."""
        if self._out is not None:
            self._out.close()
            self._path = self._out = None
