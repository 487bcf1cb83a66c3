"""What Ray Tune sees of a study: a search, a scheduler, a callback; each only asks the study.

A Tune trial is one lease: one attempt at one of our trials. A paused, failed or interrupted trial ends its lease and
gets another one later, so that Tune never pauses, restores or retries anything: its own rules for these starve the
search, forget checkpoints, or count wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from ray.train._internal.storage import StorageContext
from ray.tune import Callback, PlacementGroupFactory, Stopper
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchAlgorithm

from hpo.engine.dashboard import name_steps, trial_name
from hpo.engine.desk import Desk
from hpo.engine.failures import explain, written_before
from hpo.engine.trial_actor import MEASURED, TrialActor
from hpo.engine.trials import Lease
from hpo.engine.worker import Saved, Trained


class LeaseTrial(RayTrial):  # type: ignore[misc]
    """A Tune trial that writes no files of its own, keeps what it is told, and tells its process no more than it needs.

    What Tune adds for its own `Trainable` would make a process import Tune.
    """

    lease: Lease
    failure: BaseException | None = None
    saved: Saved | None = None
    process: str = ""

    def get_trainable_cls(self) -> type:
        """What Tune makes an actor of."""
        return TrialActor

    def init_local_path(self) -> None:
        """Name a folder, as Tune expects, but make none."""
        self.relative_logdir = "leases"
        self.storage.trial_dir_name = self.relative_logdir

    def handle_error(self, exc: BaseException | None = None) -> None:
        """Keep the error for the scheduler."""
        self.failure = exc

    def should_recover(self) -> bool:
        """Never: the study counts failures, and gives another lease."""
        return False

    def on_checkpoint(self, checkpoint_result: Saved) -> None:
        """Keep the outcome of a save for the callback."""
        self.saved = checkpoint_result

    def get_json_state(self) -> tuple[str, str]:
        """Nothing: runs are resumed from the journal."""
        return "{}", "{}"


class _Told(dict[str, Any]):
    """What a process is told; Tune adds to it, and that does not travel."""

    own = ("workplace", "assignment")

    def __deepcopy__(self, memo: object) -> Self:
        return type(self)(self)

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, ({name: self[name] for name in self.own},)


class _Untold(StorageContext):  # type: ignore[misc]
    """Where Tune would have a process write: nothing that it is told."""

    def __init__(self, storage: StorageContext) -> None:
        self.__dict__.update(vars(storage))

    def __copy__(self) -> Self:
        return type(self)(self)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


class _Unpickled:
    """Tune pickles what it is given, for a restore that nothing here uses: it gets empty shells."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearch(_Unpickled, SearchAlgorithm):  # type: ignore[misc]
    """Gives Tune a trial for each free place."""

    def __init__(
        self,
        desk: Desk,
        *,
        trainable: str,
        assignment: Callable[[Lease], Mapping[str, Any]],
        places: PlacementGroupFactory,
        slots: Callable[[], int],
    ) -> None:
        self._desk, self._trainable, self._assignment, self._slots = desk, trainable, assignment, slots
        self._places = places
        self._storage: Any = None

    def add_configurations(self, experiments: Any) -> None:
        """Take the storage that Tune made."""
        first = experiments[0] if isinstance(experiments, list) else experiments
        self._storage = _Untold(first.storage)

    def next_trial(self) -> RayTrial | None:
        """A Tune trial for the next lease, or None where no place is free or nothing is to be trained."""
        if self._desk.emptying or self._desk.study.num_leased >= max(self._slots(), 1):
            return None
        lease = self._desk.lease()
        if lease is None:
            return None
        trial = LeaseTrial(
            self._trainable,
            config=_Told(self._assignment(lease)),
            trial_id=f"{lease.trial:05d}-{lease.attempt:02d}",
            storage=self._storage,
            placement_group_factory=self._places,
            _setup_default_resource=False,
        )
        trial.lease = lease
        return trial

    def is_finished(self) -> bool:
        """Whether no lease will ever follow; as long as one may, Tune keeps idle processes.

        The answer waits for the last files: Tune gives processes that it has no use for a few seconds to end.
        """
        self._desk.await_files()
        return self._desk.emptying or self._desk.study.finished

    def set_finished(self) -> None:
        """Tune ends the run."""
        if not self._desk.emptying:
            self._desk.close_down("Ray Tune ended the run")


class StudyScheduler(_Unpickled, TrialScheduler):  # type: ignore[misc]
    """Passes reports and errors to the desk, and its answers to Tune."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    def on_trial_add(self, tune_controller: Any, trial: LeaseTrial) -> None:
        """Tune took the lease."""

    def on_trial_result(self, tune_controller: Any, trial: LeaseTrial, result: Mapping[str, Any]) -> str:
        """Go on, or end the lease."""
        trained: Trained = result[MEASURED]
        goes_on = self._desk.report(trial.lease, trained)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: LeaseTrial) -> None:
        """The lease ended in an error."""
        cause, message, trace = explain(trial.failure)
        told = written_before(trial.failure)
        self._desk.failed(trial.lease, cause=cause, message=message, trace=trace, process=trial.process, written=told)

    def on_trial_complete(self, tune_controller: Any, trial: LeaseTrial, result: Mapping[str, Any]) -> None:
        """The lease ended as decided."""

    def on_trial_remove(self, tune_controller: Any, trial: LeaseTrial) -> None:
        """Tune dropped a lease that had not begun."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Tune starts pending leases in their order by itself."""

    def debug_string(self) -> str:
        """For Tune's own logs."""
        return "hpo"


class StudyCallback(_Unpickled, Callback):  # type: ignore[misc]
    """Asks for checkpoints, takes note of them, and lets the desk do its rounds."""

    def __init__(self, desk: Desk, *, experiment: str) -> None:
        self._desk, self._experiment = desk, experiment

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: LeaseTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Have the state saved before Tune does what was decided."""
        if self._desk.wants_checkpoint(trial.lease):
            result["should_checkpoint"] = True

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: LeaseTrial, **info: Any) -> None:
        """A lease got its place."""
        actor = trial.temporary_state.ray_actor
        trial.process = actor._actor_id.hex()
        name_steps(actor, trial_name(self._experiment, trial.lease.trial))
        self._desk.training.add((trial.lease.trial, trial.lease.attempt))

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: LeaseTrial, **info: Any) -> None:
        """A lease gave its place back."""
        self._desk.training.discard((trial.lease.trial, trial.lease.attempt))

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: LeaseTrial, **info: Any) -> None:
        """A lease lost its place."""
        self._desk.training.discard((trial.lease.trial, trial.lease.attempt))

    def on_trial_save(self, iteration: int, trials: list[RayTrial], trial: LeaseTrial, **info: Any) -> None:
        """A snapshot was taken, or could not be."""
        if trial.saved is not None:
            self._desk.saved(trial.lease, trial.saved, process=trial.process)

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        """Tune went round its loop."""
        self._desk.round()


class DeskStopper(_Unpickled, Stopper):  # type: ignore[misc]
    """Ends Tune's loop when the desk empties and nobody trains, though leases may still wait for a place."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """No single trial is stopped here."""
        return False

    def stop_all(self) -> bool:
        """Whether nothing is left to wait for."""
        self._desk.await_files()
        return self._desk.emptying and not self._desk.training
