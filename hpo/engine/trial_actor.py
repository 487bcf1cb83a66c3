"""The process that trains: one Ray actor, kept from trial to trial."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import ray
from ray.tune import Trainable

from hpo.engine.checkpoint_writer import CheckpointWriter, Written
from hpo.errors import CheckpointError, HpoError
from hpo.experiment_file import import_experiment
from hpo.protocols import Setting, Step, Trainer
from hpo.results import RunPaths

MEASURED = "hpo"
"""Key of the step in the result that Tune passes on."""


@dataclass(frozen=True)
class Workplace:
    """What every process of a run is told once.

    Attributes:
        experiment_file: The experiment's file on the driver's machine; where Ray brought the code along, the file
            of that name in the working folder is used instead.
        setting: Where its trainer lives.
    """

    experiment_file: str
    setting: Setting


@dataclass(frozen=True)
class Assignment:
    """One attempt at one trial, as the actor gets it."""

    trial: int
    attempt: int
    config: Mapping[str, Any]
    seed: int
    checkpoint: str | None
    from_step: int
    paths: RunPaths


@dataclass(frozen=True)
class Trained:
    """One step, with what the process knows beside it: `written` are checkpoints, of whichever of its trials."""

    number: int
    step: Step
    step_s: float
    node: str
    pid: int
    written: tuple[Written, ...] = ()


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


class TrialActor(Trainable):  # type: ignore[misc]
    """Trains one assignment after another; `train`, `save`, `reset` and `stop` are all that Tune calls.

    Nothing that a user wrote runs in the constructor or in `reset`, since Tune loses count of its actors where
    those raise: a new assignment begins with its first step.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the workplace and the first assignment."""
        self._workplace: Workplace = config["workplace"]
        # Before anything loads OpenMP: Ray leaves a value that was set for the whole machine as it is.
        os.environ["OMP_NUM_THREADS"] = str(self._workplace.setting.num_threads)
        self._assignment: Assignment = config["assignment"]
        self._trainer: Trainer | None = None
        self._printer = Printer()
        logging.getLogger("hpo").setLevel(logging.INFO)  # how a trial trains belongs into its log
        self._writer = CheckpointWriter(self._printer.apart)
        self._number = -1

    def _setup_logdir(self) -> None:
        """Keep the working folder as it is: nothing is written to Tune's."""
        self._logdir = None

    def reset(self, new_config: dict[str, Any], storage: object = None) -> bool:
        """Take the next assignment."""
        self._assignment = new_config["assignment"]
        self._number = -1
        return True

    def train(self) -> dict[str, Any]:
        """Train one step of the assignment."""
        with self._printer.to(self._assignment.paths.log(self._assignment.trial)):
            try:
                trained = self._step()
            except Exception as error:  # noqa: BLE001 - it is told to the driver as text
                sys.stderr.write(traceback.format_exc())
                self._writer.wait()  # another attempt shall begin where this one got to
                raise failure(error, written=self._writer.news()) from None
        return {MEASURED: trained, "training_iteration": trained.number, "done": False}

    def _step(self) -> Trained:
        if self._number < 0:
            self._begin()
        assert self._trainer is not None  # noqa: S101 - _begin made it
        started = time.perf_counter()
        step = self._trainer.step()
        _check_metrics(step, goal=self._workplace.setting.metric)
        self._number += 1
        took_s = time.perf_counter() - started
        return Trained(self._number, step, took_s, platform.node(), os.getpid(), self._writer.news())

    def _begin(self) -> None:
        assignment = self._assignment
        if self._trainer is None:
            task = import_experiment(_here(Path(self._workplace.experiment_file))).task
            self._trainer = task.begin(self._workplace.setting)
        self._trainer.begin(assignment.config, seed=assignment.seed)
        self._number = 0
        if assignment.checkpoint is not None:
            self._trainer.load(Path(assignment.checkpoint))
            self._number = assignment.from_step

    def cleanup(self) -> None:
        """Tune lets the process go, when what it writes is written."""
        self._writer.close()
        self._printer.end()

    def save(self, checkpoint_dir: str | None = None) -> Saved:
        """Begin to write a checkpoint to the run's own folder; an error is told, not raised: training goes on."""
        lease, number = self._assignment, self._number
        path, log = lease.paths.checkpoint(lease.trial, lease.attempt, number), lease.paths.log(lease.trial)
        started = time.perf_counter()
        error = ""
        try:
            assert self._trainer is not None  # noqa: S101 - it has reported a step
            self._writer.wait()  # before there are two copies in memory
            snapshot = self._trainer.snapshot()
            self._writer.begin(snapshot, trial=lease.trial, attempt=lease.attempt, step=number, path=path, log=log)
        except Exception as problem:  # noqa: BLE001 - whatever it is must not end the trial
            error = f"{type(problem).__name__}: {problem}"
        return Saved(str(path), number, time.perf_counter() - started, error, self._writer.news())


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
    return "checkpoint" if isinstance(error, CheckpointError) else "error"


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
