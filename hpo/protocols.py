"""The three things that an experiment declares, and what each of them begins.

A declaration is frozen, knows its own rules, and can be described as JSON. `begin` makes the living object that
does the work of one run:

    Task   -> Trainer    how one trial trains
    Policy -> Judge      which trial goes on
    Search -> Proposer   which configuration comes next
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hpo.declared import Declared
from hpo.errors import CheckpointError, DataError, ExperimentError
from hpo.setting import Dataset, Group, Setting, Step
from hpo.space import Space
from hpo.trial import Config, Decision, Ended, Report

__all__ = [
    "Dataset",
    "Group",
    "Judge",
    "Policy",
    "Proposer",
    "Search",
    "Setting",
    "Snapshot",
    "Step",
    "Task",
    "Trainer",
]

# --- Task ------------------------------------------------------------------------------------------------------


class Snapshot(ABC):
    """A trial's state at one moment, copied: training on changes nothing of it."""

    @abstractmethod
    def write(self, path: Path) -> int:
        """Size in bytes of the file that now holds it; called once, from any thread, also while the trainer trains.

        It leaves a whole file or none, and what was there before where it fails.

        Raises:
            OSError: The folder is missing, or the disk is full.
        """


class Trainer(ABC):
    """Trains one trial at a time in a process that is kept for the next.

    Laws, which an inheritable test class holds against every trainer:
      * after `begin(config, seed=s)` it behaves like one in a new process, bit for bit on a CPU;
      * n steps give what k steps, `save`, `load` in a new process, and n - k steps give, bit for bit on a CPU;
      * a snapshot that is written after further steps, or after another `begin`, gives the file that it would have
        given at once;
      * where several processes train a trial, each has a trainer, and all of them get the same calls, but for
        `snapshot`, which the first one alone gets; all report the same metrics. A snapshot may be loaded by another
        number of processes.
    """

    @abstractmethod
    def begin(self, config: Config, *, seed: int) -> None:
        """Forget the trial before and build the one of `config`; all randomness follows from `seed`."""

    @abstractmethod
    def step(self) -> Step:
        """Train one step (an epoch by default) and measure."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """All that is needed to continue, and the best weights so far.

        It is what training waits for, so it copies to where the state is; what takes longer belongs into `write`.
        """

    def save(self, path: Path) -> int:
        """Size in bytes of the file that now holds what `snapshot` gives."""
        return self.snapshot().write(path)

    @abstractmethod
    def load(self, path: Path) -> None:
        """Continue from a snapshot's file, after `begin` with the same configuration.

        Raises:
            CheckpointError: It is missing, cut off, damaged, or of another configuration.
        """

    def take_over(self, path: Path) -> None:
        """Continue from the snapshot of a trial that another configuration began with, after `begin` with one's own.

        Weights, the optimizer's state, the random generators and the place in the data are the other's; numbers that
        a configuration sets are one's own.

        Raises:
            CheckpointError: It is missing, cut off, damaged, or of another architecture.
        """
        raise CheckpointError(
            f"{type(self).__name__} cannot continue another trial", where=str(path), remedy="give it a `take_over`"
        )

    def forget_best(self) -> None:
        """Have the best weights be of the steps to come, after `load`: others were measured on data that have grown."""
        return

    def start_from(self, weights: Path | str) -> str:
        """Digest of the weights that the trial now begins with, after `begin` and before its first step.

        Args:
            weights: A file; or the value of the hyper-parameter `start_from`, where the task knows itself what that is.

        Raises:
            HpoError: They are missing, damaged, or do not fit the model.
        """
        raise ExperimentError(
            f"{type(self).__name__} cannot begin with weights that are there",
            where="start_from",
            remedy="give it a `start_from`",
        )

    @abstractmethod
    def test(self, path: Path) -> Mapping[str, float]:
        """Metrics of the best weights in a checkpoint on the test part of the data."""


class Task(Declared):
    """What a trial trains: model, data, loss and metrics."""

    several_workers: ClassVar[bool] = False
    """Whether several processes can train one trial together: `host` is there, and trainers heed `Setting.group`."""
    can_start_from: ClassVar[bool] = False
    """Whether the hyper-parameter `start_from` says which weights a trial begins with: `hpo.start_from`."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that every step reports."""

    @property
    def grows(self) -> bool:
        """Whether its data come chunk by chunk: a trial ends when it has had all of them."""
        return False

    @abstractmethod
    def check_config(self, config: Config) -> None:
        """Raise ExperimentError where nobody takes a name, two parts take it, or a value breaks a rule.

        `where` of the error is the name of the hyper-parameter.
        """

    def check_on(self, config: Config, dataset: Dataset) -> None:
        """Raise ExperimentError where this configuration cannot train on what `locate` found; nothing of it is read.

        `where` of the error is the name of the hyper-parameter.
        """
        return

    def check_workers(self, config: Config, *, workers: int) -> None:
        """Raise ExperimentError where so many processes cannot train this configuration together."""
        return

    @abstractmethod
    def locate(self, data_dir: Path | None) -> Dataset:
        """Find the data without reading it all.

        Raises:
            DataError: It is nowhere, or damaged.
        """

    def as_of(self, dataset: Dataset, num_pieces: int) -> Dataset:
        """What `locate` found before the shards after the first `num_pieces` (at least 1) arrived.

        Asked of data that come in shards, for a run that goes on while further ones lie there.

        Raises:
            DataError: Nothing but all of them can be had.
        """
        raise DataError(
            f"{type(self).__name__} cannot leave out the shards that arrived since the run began",
            where=f"data set {dataset.name}",
            remedy="take them away until the run has finished, or give the task an `as_of`",
        )

    @abstractmethod
    def begin(self, setting: Setting) -> Trainer:
        """A trainer with the data at hand, to be given trials."""

    def num_chunks(self, dataset: Dataset) -> int | None:
        """Chunks that growing data come in; None where they do not grow."""
        return None

    def num_epochs(self, config: Config, dataset: Dataset) -> int | None:
        """Epochs after which a trial of this configuration ends by itself; None where nothing of its own ends it."""
        epochs = config.get("epochs")
        return epochs if isinstance(epochs, int) else None

    def host(self, at: str) -> str:
        """The address where the processes of a group meet, from now on kept by this one, the first of them.

        Args:
            at: Name or address of this node, as the others reach it.
        """
        raise NotImplementedError

    def learning_rates(self, config: Config, dataset: Dataset, *, max_steps: int | None) -> list[list[float]]:
        """The learning rate at each time that it is set, epoch by epoch; nothing where the task has none to tell.

        What depends on how the training goes is left out: a rate that falls on a plateau is told as if there were none.

        Args:
            config: Of the trial.
            dataset: What `locate` found.
            max_steps: Steps after which the trial has surely ended, where that is known.
        """
        return []

    @abstractmethod
    def checkpoint_mb(self, config: Config, dataset: Dataset) -> float:
        """Size of a checkpoint of this configuration in MiB, estimated."""


# --- Policy ----------------------------------------------------------------------------------------------------


class Judge(ABC):
    """Decides which trials go on; pure: no clock, no files, no randomness beyond its own seed.

    Laws, which an inheritable test class holds against every policy:
      * the same reports and ends in the same order give the same decisions;
      * restored from its own `state()`, which is JSON, it decides exactly as the original would;
      * a trial that it stopped is never heard of again: reports of it are an error of the caller.
    """

    def on_begin(self, trial: int, config: Config) -> None:
        """Learn of a trial, before any report of it; called again where it goes on with another configuration."""
        return

    @abstractmethod
    def on_report(self, report: Report) -> Decision:
        """Whether the trial goes on after this step."""

    def on_end(self, ended: Ended) -> None:
        """Learn that a trial ended, whoever ended it; called once for each trial."""
        return

    def promote(self) -> int | None:
        """A paused trial that shall have the free place, or None to leave it to the search.

        It is asked often: None changes nothing. A trial that it names is trained on from its checkpoint.
        """
        return None

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """JSON of all that later decisions depend on."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Become the judge whose `state()` this is."""


class Policy(Declared):
    """Declares when a trial ends before it has had all the training that it could get."""

    may_pause = False
    """Whether its judge pauses and promotes trials, or has them exploit others; at most one of an experiment may."""
    resource = "step"
    """What it counts: "step", "epoch" or "chunk"."""
    keeps_best = False
    """Whether the checkpoint of a trial that it stops is to hold the trial's best weights."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters that are its own: the task never sees them."""

    def check_config(self, config: Config) -> None:
        """Raise ExperimentError where the configuration gives a hyper-parameter of its own a value that cannot be."""
        return

    @property
    @abstractmethod
    def max_steps(self) -> int | None:
        """Steps after which a trial has surely ended, or None where it may train on and on, or nobody knows.

        Of a policy that counts epochs, those of a trial whose steps are epochs.
        """

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps, epochs or chunks at which trials are compared, for people."""
        return ()

    @abstractmethod
    def begin(self) -> Judge:
        """A judge that has seen nothing."""


# --- Search ----------------------------------------------------------------------------------------------------


class Proposer(ABC):
    """Proposes configurations; restored by being told again what it was told before."""

    @abstractmethod
    def propose(self, trial: int) -> dict[str, Any] | None:
        """The full configuration (fixed values included) of trial number `trial`; None: nothing is left to try."""

    def on_report(self, report: Report) -> None:
        """Learn from a step of a trial."""
        return

    def on_end(self, ended: Ended) -> None:
        """Learn that a trial ended."""
        return


class Search(Declared):
    """Declares how configurations are chosen."""

    def check_space(self, space: Space, *, trials: int | None) -> None:
        """Raise ExperimentError where this search cannot serve the space or the number of trials."""
        return

    def num_configurations(self, space: Space, fixed: Config) -> int | None:
        """How many there are to try, or None for any number."""
        return None

    @abstractmethod
    def begin(self, space: Space, *, fixed: Config, seed: int) -> Proposer:
        """A proposer that has seen nothing."""
