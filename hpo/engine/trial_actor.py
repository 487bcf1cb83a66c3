"""The actor that Ray Tune knows: it is kept from trial to trial, and trains by itself or by a group of workers."""

from __future__ import annotations

from typing import Any

from ray.tune import Trainable

from hpo.engine.dashboard import process_name
from hpo.engine.worker import Assignment, Saved, Worker, Workplace
from hpo.engine.worker_group import WorkerGroup

MEASURED = "hpo"
"""Key of the step in the result that Tune passes on."""


class TrialActor(Trainable):  # type: ignore[misc]
    """Trains one assignment after another; `train`, `save`, `reset` and `stop` are all that Tune calls.

    Nothing that a user wrote runs in the constructor or in `reset`, since Tune loses count of its actors where
    those raise: a new assignment begins with its first step.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the workplace and the first assignment."""
        workplace: Workplace = config["workplace"]
        self._trains: Worker | WorkerGroup = Worker(workplace) if workplace.workers == 1 else WorkerGroup(workplace)
        self._trains.take(config["assignment"])

    def __repr__(self) -> str:
        first: Assignment = self.config["assignment"]  # Ray asks for it once, when the process begins
        return process_name(first.paths.experiment, first.trial)

    def _setup_logdir(self) -> None:
        """Keep the working folder as it is: nothing is written to Tune's."""
        self._logdir = None

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

    def cleanup(self) -> None:
        """Tune lets the process go, when what it writes is written."""
        self._trains.close()
