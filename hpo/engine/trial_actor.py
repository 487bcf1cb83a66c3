"""The actor that Ray Tune knows: it is kept from trial to trial, and trains by itself or by a group of workers.

It does what Tune calls and is no `ray.tune.Trainable`: to import that takes a process more than a second.
"""

from __future__ import annotations

from typing import Any

from hpo.engine.dashboard import process_name
from hpo.engine.worker import Assignment, Saved, Worker, Workplace
from hpo.engine.worker_group import WorkerGroup

MEASURED = "hpo"
"""Key of the step in the result that Tune passes on."""


class TrialActor:
    """Trains one assignment after another; `train`, `save`, `reset` and `stop` are all that Tune calls.

    Nothing that a user wrote runs in the constructor or in `reset`, since Tune loses count of its actors where
    those raise: a new assignment begins with its first step.
    """

    def __init__(self, config: dict[str, Any], storage: object = None) -> None:
        """Take the workplace and the first assignment; `storage` is where Tune would have it write."""
        self._first: Assignment = config["assignment"]
        workplace: Workplace = config["workplace"]
        self._trains: Worker | WorkerGroup = Worker(workplace) if workplace.workers == 1 else WorkerGroup(workplace)
        self._trains.take(self._first)

    def __repr__(self) -> str:
        return process_name(self._first.paths.experiment, self._first.trial)  # Ray asks once, when the process begins

    def get_auto_filled_metrics(self, **asked: object) -> dict[str, Any]:
        """What Tune takes for the result of a trial that has reported nothing: nothing."""
        return {}

    def reset(self, new_config: dict[str, Any], storage: object = None) -> bool:
        """Take the next assignment."""
        self._trains.take(new_config["assignment"])
        return True

    def train(self) -> dict[str, Any]:
        """Train one step of the assignment."""
        trained = self._trains.train()
        return {MEASURED: trained, "training_iteration": trained.number, "done": False}

    def save(self, checkpoint_dir: str | None = None) -> Saved:
        """Begin to write a checkpoint to the run's own folder."""
        return self._trains.save()

    def stop(self) -> None:
        """Tune lets the process go, when what it writes is written."""
        self._trains.close()
