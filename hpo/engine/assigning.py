"""From a lease to what a process is told: which trial, from which checkpoint, or with whose weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpo.engine.opening import OpenRun
from hpo.engine.origins import Origin, find, of_trial, parent_of
from hpo.engine.trials import Lease
from hpo.engine.worker import Assignment, Workplace
from hpo.errors import HpoError
from hpo.protocols import Setting
from hpo.results import Place, Store
from hpo.start_from import asked


class Assigning:
    """Turns a lease into what the actor gets.

    Args:
        opened: The run.
        seen: The experiment's file, as processes see it.
        setting: Where its trainers live.
    """

    def __init__(self, opened: OpenRun, seen: Path, setting: Setting) -> None:
        self._study, self._origins = opened.study, opened.origins
        self._paths = replace(opened.paths, root=opened.paths.root.resolve())
        self._experiment = opened.file.experiment
        per_trial = self._experiment.per_trial
        self._workplace = Workplace(str(seen), setting, workers=per_trial.workers, hang_s=per_trial.hang_s)

    def __call__(self, lease: Lease) -> Mapping[str, Any]:
        """The configuration of the Tune trial that the lease becomes."""
        checkpoint = self._paths.located(lease.checkpoint.path) if lease.checkpoint else None
        assignment = Assignment(
            trial=lease.trial,
            attempt=lease.attempt,
            config=self._experiment.trained(lease.config),
            seed=lease.seed,
            checkpoint=checkpoint,
            from_step=lease.checkpoint.step if lease.checkpoint else 0,
            takes_over=lease.checkpoint is not None and lease.checkpoint.source is not None,
            paths=self._paths,
            start=self._start(lease) if checkpoint is None else _continued(lease, checkpoint),
        )
        return {"workplace": self._workplace, "assignment": assignment}

    def _start(self, lease: Lease) -> Origin | HpoError | None:
        """The weights that a trial begins with; an error is the trial's own."""
        value = asked(lease.config)
        if not isinstance(value, str) or not self._experiment.task.can_start_from:
            return None
        parent = parent_of(self._experiment, lease.config)
        if parent is not None:
            trials = self._study.trials
            checkpoint = trials[parent].checkpoint if parent < len(trials) else None
            located = self._paths.located(checkpoint.path) if checkpoint is not None else None
            return of_trial(lease.trial, parent, run=self._paths.run_id, checkpoint=located)
        try:
            return self._origins.get(value) or find(value, Store(Place(self._paths.root, self._paths.url)))
        except HpoError as error:
            return error


def _continued(lease: Lease, checkpoint: str) -> Origin | None:
    """Whose checkpoint it is, where an earlier run wrote it."""
    parent = lease.continues
    return None if parent is None else Origin(checkpoint, parent.run, parent.trial)
