"""One run from its file to its end: open it, train what is left, close it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
from ray import tune

from hpo.engine.adapters import DeskStopper, StudyCallback, StudyScheduler, StudySearch
from hpo.engine.checkpoints import CheckpointKeeper
from hpo.engine.cluster import (
    Resources,
    connected,
    guard_against_memory_monitor,
    local_cpus,
    local_gpus,
    nodes_alive,
    resources_on,
    shipped,
    tell_ray,
)
from hpo.engine.desk import Desk, StoppedAtOnce, Watcher
from hpo.engine.final_test import score_best
from hpo.engine.opening import OpenRun, ended_well, open_run
from hpo.engine.plan import Plan, sketched
from hpo.engine.sharing import epochs_left, shared_out, trials_left
from hpo.engine.study import Lease
from hpo.engine.trial_actor import Assignment, TrialActor, Workplace
from hpo.errors import ExperimentError, HpoError
from hpo.experiment import check_concurrent
from hpo.experiment_file import ExperimentFile
from hpo.protocols import Setting
from hpo.results import TensorBoardWriter

TRAINABLE = "hpo"


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: nothing here changes a decision.

    Attributes:
        results: Folder of the store.
        data_dir: Where data is looked for first.
        cache_dir: Decoded data of this node.
        address: Ray cluster, or None for this machine alone.
        cpus: CPU cores to use here; all of them by default.
        gpus: GPUs to use here; all of them by default.
        concurrent: Trials at a time, or "auto"; the experiment's `concurrent` by default.
        fresh: Begin a new run, whatever there is.
        dashboard: Have Ray's dashboard.
    """

    results: Path
    cache_dir: Path
    data_dir: Path | None = None
    address: str | None = None
    cpus: int | None = None
    gpus: int | None = None
    concurrent: int | Literal["auto"] | None = None
    fresh: bool = False
    dashboard: bool = False


class RunWatcher(Watcher, Protocol):
    """Watches one run."""

    def begins(self, run: OpenRun) -> None:
        """The run is open, its past replayed; training comes next."""

    def stop_signals(self, desk: Desk) -> contextlib.AbstractContextManager[None]:
        """While the context lasts, a person's wish to stop reaches the desk."""


def run(file: ExperimentFile, options: Options, watcher: RunWatcher, *, with_test: bool = False) -> OpenRun:
    """The run, as far as it went: finished, or interrupted and fit to be continued.

    Args:
        file: The experiment.
        options: How to run it.
        watcher: Told what happens.
        with_test: Score the best trial on the test data at the end, unless that was done before.

    Raises:
        HpoError: Anything that a person can mend; nothing half-written is left behind.
    """
    resources = plan_resources(file, options)
    dataset = file.experiment.task.locate(options.data_dir)
    with contextlib.ExitStack() as ends:
        if resources is None:  # a cluster is asked before anything is written
            _join_cluster(ends, file, options)
            resources = _ask_cluster(file)
        opened = open_run(file, dataset, results=options.results, fresh=options.fresh)
        # Last in, first out: the curves are closed when the store has told them all.
        curves = TensorBoardWriter(opened.paths, goal=file.experiment.goal.metric, recovered=opened.store.entries)
        ends.callback(curves.close)
        opened.store.listen(curves.feed)
        ends.callback(opened.store.close)
        ends.callback(opened.paths.stop_request.unlink, missing_ok=True)
        watcher.begins(opened)
        if not opened.nothing_to_do:
            _train_and_note(opened, options, watcher, resources)
        elif not ended_well(opened.store.entries):
            opened.store.append("run_ended", detail={"state": "finished", "reason": ""})
        if with_test and opened.study.finished:
            here = Resources(cpus=local_cpus(), gpus=min(local_gpus(), 1))
            opened.tested = score_best(opened.study, opened.store, setting_of(opened, options, here))
    return opened


def _train_and_note(opened: OpenRun, options: Options, watcher: RunWatcher, resources: Resources) -> None:
    """Train, and have the journal say how it ended, whatever happens."""
    state, reason = "failed", ""
    try:
        reason = _train(opened, options, watcher, resources)
        state = "finished" if opened.study.finished else "interrupted"
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        opened.store.append("run_ended", detail={"state": state, "reason": reason})


def plan_resources(file: ExperimentFile, options: Options) -> Resources | None:
    """What each trial gets on this machine; None where a cluster has to be asked first.

    Raises:
        ExperimentError: Not even one trial fits, or `--concurrent` cannot be.
    """
    if options.concurrent is not None:
        try:
            check_concurrent(options.concurrent, per_trial=file.experiment.per_trial)
        except ExperimentError as error:
            raise ExperimentError(error.problem, where="--concurrent", remedy=error.remedy) from None
    if options.address is not None:
        for name, value in (("--cpus", options.cpus), ("--gpus", options.gpus)):
            if value is not None:
                raise ExperimentError(
                    f"{value} is for this machine, but --address {options.address} names a cluster",
                    where=name,
                    remedy="leave one of the two out; --concurrent limits the trials at a time",
                )
    if options.address is not None or ray.is_initialized():
        return None
    here = _this_machine(options)
    return _fitting(file, cpus=here["CPU"], gpus=here["GPU"])


def _this_machine(options: Options) -> Mapping[str, float]:
    return {
        "CPU": options.cpus if options.cpus is not None else local_cpus(),
        "GPU": options.gpus if options.gpus is not None else local_gpus(),
    }


def _concurrent(file: ExperimentFile, options: Options) -> int | Literal["auto"] | None:
    return options.concurrent if options.concurrent is not None else file.experiment.concurrent


def planned_places(file: ExperimentFile, options: Options) -> str:
    """What each trial would get and how many would train at a time, in one line for people.

    Raises:
        ExperimentError: Not even one trial fits, or `--concurrent` cannot be.
    """
    resources, concurrent = plan_resources(file, options), _concurrent(file, options)
    if resources is None:
        per_trial = file.experiment.per_trial
        return f"each trial gets {Resources(per_trial.cpus, per_trial.gpus)}; the cluster says how many fit at a time"
    fit = resources.slots([_this_machine(options)])
    if concurrent == "auto" and resources.gpus:
        return f"each trial begins with {resources}; {fit} at a time, and more as far as measuring finds them faster"
    at_a_time = min(fit, concurrent) if isinstance(concurrent, int) else fit
    return f"each trial gets {resources}; {at_a_time} at a time"


def _join_cluster(ends: contextlib.ExitStack, file: ExperimentFile, options: Options) -> None:
    """Have Ray, with the experiment's code on every node, until `ends` is closed; a second call changes nothing."""
    ends.enter_context(
        connected(
            address=options.address,
            cpus=options.cpus,
            gpus=options.gpus,
            working_dir=ends.enter_context(shipped(file.path)),
            dashboard=options.dashboard,
        )
    )


def _train(opened: OpenRun, options: Options, watcher: RunWatcher, resources: Resources) -> str:
    """Train until the study has finished or is asked to stop; returns why it stopped, or nothing."""
    with contextlib.ExitStack() as ends:
        _join_cluster(ends, opened.file, options)
        keeper = CheckpointKeeper(
            opened.study, appended=lambda: opened.store.appended, synced=lambda: opened.store.synced
        )
        desk = Desk(
            opened.study,
            keeper,
            watcher,
            num_gpus=resources.gpus,
            stop_request=opened.paths.stop_request,
        )
        keeper.sweep()
        keeper.delete_strays(opened.paths.checkpoints)
        try:
            with watcher.stop_signals(desk):
                _tune_with_shares(opened, options, desk, resources)
        except StoppedAtOnce:
            desk.settle()
            desk.hang_up()
            raise
        # After any other error nothing is noted: it may have come between a report and the decision on it, and the
        # next driver makes up for what is missing.
        desk.settle()
        desk.hang_up()
        opened.store.flush()
        keeper.delete_doomed()
        keeper.delete_strays(opened.paths.checkpoints)
        if desk.in_vain:
            raise HpoError(
                desk.in_vain,
                where=opened.file.shown,
                remedy=f"see the traceback with `hpo logs {opened.file.name} 0`, mend it, and start the command again",
            )
        return desk.close_reason


def _ask_cluster(file: ExperimentFile) -> Resources:
    nodes = nodes_alive()
    return _fitting(
        file,
        cpus=max((node.get("CPU", 0) for node in nodes), default=0),
        gpus=max((node.get("GPU", 0) for node in nodes), default=0),
    )


def _fitting(file: ExperimentFile, *, cpus: float, gpus: float) -> Resources:
    try:
        return resources_on(file.experiment.per_trial, cpus=cpus, gpus=gpus)
    except ExperimentError as error:
        raise error.inside(file.shown) from None


def _tune_with_shares(opened: OpenRun, options: Options, desk: Desk, resources: Resources) -> None:
    """Give the study to Ray Tune once, or once for each number of trials a GPU that is tried.

    Tune keeps processes by what they were given: another share of a GPU means new ones.
    """
    plan = sketched(opened.file.experiment)
    if _concurrent(opened.file, options) == "auto":
        entries = opened.store.entries
        resources = shared_out(desk, resources, nodes=nodes_alive(), plan=plan, entries=entries)
    while True:
        desk.num_gpus = resources.gpus
        _tune(opened, options, desk, resources, plan)
        if desk.closing or desk.study.finished or not desk.emptying:
            return
        resources = resources.sharing(desk.move())


def _tune(opened: OpenRun, options: Options, desk: Desk, resources: Resources, plan: Plan) -> None:
    """Give the study to Ray Tune, for as long as it or the desk wants."""
    concurrent = _concurrent(opened.file, options)
    limit = concurrent if isinstance(concurrent, int) else 1_000_000

    def slots() -> int:
        return min(limit, resources.slots(nodes_alive()))

    processes = max(1, min(slots(), trials_left(desk.study)))
    planned_epochs = epochs_left(desk, plan) / processes
    tell_ray(slots=slots())
    guard_against_memory_monitor()
    tune.register_trainable(TRAINABLE, TrialActor, warn=False)
    search = StudySearch(
        desk,
        trainable=TRAINABLE,
        assignment=_Assigning(opened, setting_of(opened, options, resources, planned_epochs=planned_epochs)),
        resources={"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})},
        slots=_remembered(slots, for_s=1.0),
    )
    with _scratch_folder() as scratch:
        tune.Tuner(
            TRAINABLE,
            tune_config=tune.TuneConfig(
                search_alg=search, scheduler=StudyScheduler(desk), num_samples=1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="leases",
                storage_path=scratch,
                callbacks=[StudyCallback(desk)],
                stop=DeskStopper(desk),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()


def setting_of(
    opened: OpenRun, options: Options, resources: Resources, *, planned_epochs: float | None = None
) -> Setting:
    """Where the run's trainers live; `planned_epochs` are those of each process."""
    goal = opened.file.experiment.goal
    return Setting(
        device=resources.device,
        num_threads=resources.num_threads,
        dataset=opened.dataset,
        cache_dir=options.cache_dir.resolve(),
        metric=goal.metric,
        sign=goal.sign,
        gpus=resources.gpus,
        data_memory_fraction=opened.file.experiment.per_trial.data_memory_fraction,
        planned_epochs=planned_epochs,
    )


class _Assigning:
    """Turns a lease into what the actor gets."""

    def __init__(self, opened: OpenRun, setting: Setting) -> None:
        self._paths = replace(opened.paths, root=opened.paths.root.resolve())
        self._workplace = Workplace(str(opened.file.path), setting)

    def __call__(self, lease: Lease) -> Mapping[str, Any]:
        assignment = Assignment(
            trial=lease.trial,
            attempt=lease.attempt,
            config=lease.config,
            seed=lease.seed,
            checkpoint=lease.checkpoint.path if lease.checkpoint else None,
            from_step=lease.checkpoint.step if lease.checkpoint else 0,
            paths=self._paths,
        )
        return {"workplace": self._workplace, "assignment": assignment}


def _remembered(ask: Any, *, for_s: float) -> Any:
    """The answer of `ask`, asked again when the last one is older than `for_s`."""
    last: list[float] = []

    def answer() -> Any:
        if not last or time.monotonic() - last[0] > for_s:
            last[:] = [time.monotonic(), ask()]
        return last[1]

    return answer


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    """Somewhere for the files that Tune writes and nobody reads."""
    with tempfile.TemporaryDirectory(prefix="hpo-tune-", ignore_cleanup_errors=True) as folder:
        yield folder
