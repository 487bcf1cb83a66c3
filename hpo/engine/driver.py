"""One run from its file to its end: open it, train what is left, close it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
from ray import tune

from hpo.engine.adapters import DeskStopper, StudyCallback, StudyScheduler, StudySearch
from hpo.engine.assigning import Assigning
from hpo.engine.autoscaling import places
from hpo.engine.checkpoint_files import files_of
from hpo.engine.checkpoints import CheckpointKeeper
from hpo.engine.cluster import (
    Resources,
    connected,
    guard_against_memory_monitor,
    local_cpus,
    local_gpus,
    resources_on,
    shipped,
    shortage,
    take_waiting_processes,
    tell_ray,
)
from hpo.engine.dashboard import check_dashboard_installed, dashboard_url, job_metadata, tell_job
from hpo.engine.desk import Desk, StoppedAtOnce, Watcher
from hpo.engine.final_test import score_best
from hpo.engine.gauges import Gauges, RayGauges
from hpo.engine.nodes import alive_nodes
from hpo.engine.opening import OpenRun, check_on, ended_well, open_run
from hpo.engine.plan import Plan, sketched
from hpo.engine.reservations import reserve_safely
from hpo.engine.shared_storage import absolute, check_storage
from hpo.engine.sharing import epochs_left, shared_out, trials_left
from hpo.errors import ExperimentError, HpoError
from hpo.experiment_file import ExperimentFile
from hpo.per_trial import check_concurrent
from hpo.protocols import Setting
from hpo.results import Place, TensorBoardWriter

TRAINABLE = "hpo"


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: nothing here changes a decision.

    Attributes:
        results: Folder of the store, or a bucket's URL.
        data_dir: Where data is looked for first.
        cache_dir: Decoded data of this node.
        address: Ray cluster, or None for this machine alone.
        cpus: CPU cores to use here; all of them by default.
        gpus: GPUs to use here; all of them by default.
        concurrent: Trials at a time, or "auto"; the experiment's `concurrent` by default.
        fresh: Begin a new run, whatever there is.
        dashboard: Have Ray's dashboard.
    """

    results: Path | str
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
    check_on(file, dataset)
    with contextlib.ExitStack() as ends:
        if resources is None:  # a cluster is asked before anything is written
            _join_cluster(ends, file, options, metadata={"job_name": file.name})
            resources = _ask_cluster(file)
            check_storage(absolute(options.results), alive_nodes())
        place = Place.of(options.results, cache_dir=options.cache_dir.resolve())
        opened = open_run(file, dataset, results=place, fresh=options.fresh)
        # Last in, first out: the curves are closed when the store has told them all.
        curves = TensorBoardWriter(opened.paths, goal=file.experiment.goal.metric, recovered=opened.store.entries)
        ends.callback(curves.close)
        opened.store.listen(curves.feed)
        opened.store.before_upload(curves.close)
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
        tell_job({"state": state})


def plan_resources(file: ExperimentFile, options: Options) -> Resources | None:
    """What each trial gets on this machine; None where a cluster has to be asked first.

    Raises:
        ExperimentError: Not even one trial fits, or an option cannot be.
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
    if options.dashboard:
        check_dashboard_installed()
    return _fitting(file, [_this_machine(options)])


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
        each = Resources(per_trial.cpus, per_trial.gpus, per_trial.workers)
        return f"each trial gets {each}; the cluster says how many fit at a time"
    fit = resources.slots([_this_machine(options)])
    if concurrent == "auto" and resources.gpus:
        return f"each trial begins with {resources}; {fit} at a time, and more as far as measuring finds them faster"
    at_a_time = min(fit, concurrent) if isinstance(concurrent, int) else fit
    return f"each trial gets {resources}; {at_a_time} at a time"


def _join_cluster(
    ends: contextlib.ExitStack, file: ExperimentFile, options: Options, *, metadata: Mapping[str, str]
) -> Path:
    """Have Ray, with the experiment's code on every node, until `ends` is closed; a second call starts nothing.

    Returns the experiment file for the processes of this machine: a copy, which does not change while they train.
    """
    code = Path(ends.enter_context(shipped(file.path)))
    ends.enter_context(
        connected(
            address=options.address,
            cpus=options.cpus,
            gpus=options.gpus,
            code=str(code),
            dashboard=options.dashboard,
            metadata=metadata,
        )
    )
    return code / file.path.name


def _train(opened: OpenRun, options: Options, watcher: RunWatcher, resources: Resources) -> str:
    """Train until the study has finished or is asked to stop; returns why it stopped, or nothing."""
    with contextlib.ExitStack() as ends:
        metadata = job_metadata(opened.paths)
        seen = _join_cluster(ends, opened.file, options, metadata=metadata)
        tell_job({**metadata, "state": "running"})
        files = files_of(opened.paths, holds=opened.store.holds)
        ends.callback(files.close)
        keeper = CheckpointKeeper(
            opened.study,
            files,
            appended=lambda: opened.store.appended,
            kept=lambda: opened.store.kept,
            last_states=bool(opened.dataset.pieces),
        )
        desk = Desk(
            opened.study,
            keeper,
            watcher,
            num_gpus=resources.gpus_in_all,
            stop_request=opened.paths.stop_request,
            gauges=_gauges(opened, watcher),
            shortage=lambda: shortage(resources),
        )
        keeper.sweep()
        if opened.resumed and opened.store.keep():
            keeper.delete_strays()
        try:
            with watcher.stop_signals(desk):
                _tune_with_shares(opened, options, desk, resources, seen)
        except StoppedAtOnce:
            desk.settle()
            desk.hang_up()
            raise
        # After any other error nothing is noted: it may have come between a report and the decision on it, and the
        # next driver makes up for what is missing.
        desk.settle()
        desk.hang_up()
        if opened.store.keep():  # else all of it is with the strays of the next start
            keeper.delete_doomed()
            keeper.delete_strays()
        if desk.in_vain:
            raise HpoError(
                desk.in_vain,
                where=opened.file.shown,
                remedy=f"see the traceback with `hpo logs {opened.file.name} 0`, mend it, and start the command again",
            )
        return desk.close_reason


def _gauges(opened: OpenRun, watcher: RunWatcher) -> Gauges | None:
    """What is shown of the run while it trains; None where Ray has no dashboard, and nobody would look."""
    url = dashboard_url()
    if not url:
        return None
    watcher.said(f"Ray's dashboard: {url}")
    write = RayGauges(experiment=opened.paths.experiment, run=opened.paths.run_id)
    return Gauges(opened.study, write, every_s=write.every_s)


def _ask_cluster(file: ExperimentFile) -> Resources:
    return _fitting(file, places())


def _fitting(file: ExperimentFile, nodes: Sequence[Mapping[str, float]]) -> Resources:
    try:
        return resources_on(file.experiment.per_trial, nodes)
    except ExperimentError as error:
        raise error.inside(file.shown) from None


def _tune_with_shares(opened: OpenRun, options: Options, desk: Desk, resources: Resources, seen: Path) -> None:
    """Give the study to Ray Tune once, or once for each number of trials a GPU that is tried.

    Tune keeps processes by what they were given: another share of a GPU means new ones.
    """
    plan = sketched(opened.file.experiment, opened.dataset, continued=opened.study.continued)
    if _concurrent(opened.file, options) == "auto":
        entries = opened.store.entries
        resources = shared_out(desk, resources, nodes=places(), plan=plan, entries=entries)
    while True:
        desk.num_gpus = resources.gpus_in_all
        _tune(opened, options, desk, resources, plan=plan, seen=seen)
        if desk.closing or desk.study.finished or not desk.emptying:
            return
        resources = resources.sharing(desk.move())


def _tune(opened: OpenRun, options: Options, desk: Desk, resources: Resources, *, plan: Plan, seen: Path) -> None:
    """Give the study to Ray Tune, for as long as it or the desk wants."""
    concurrent = _concurrent(opened.file, options)
    limit = concurrent if isinstance(concurrent, int) else 1_000_000

    def slots() -> int:
        return min(limit, resources.slots(places()))

    processes = max(1, min(slots(), trials_left(desk.study)))
    planned_epochs = epochs_left(desk, plan) / processes
    tell_ray(slots=slots())
    guard_against_memory_monitor()
    take_waiting_processes()
    reserve_safely()
    tune.register_trainable(TRAINABLE, tune.Trainable, warn=False)  # whose place each trial gives to its own actor
    search = StudySearch(
        desk,
        trainable=TRAINABLE,
        assignment=Assigning(opened, seen, setting_of(opened, options, resources, planned_epochs=planned_epochs)),
        places=tune.PlacementGroupFactory(resources.bundles(), strategy=resources.strategy.upper()),
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
                callbacks=[StudyCallback(desk, experiment=opened.file.name)],
                stop=DeskStopper(desk),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()


def setting_of(
    opened: OpenRun, options: Options, resources: Resources, *, planned_epochs: float | None = None
) -> Setting:
    """Where the run's trainers live; `planned_epochs` are those of each process."""
    experiment = opened.file.experiment
    return Setting(
        device=resources.device,
        num_threads=resources.num_threads,
        dataset=opened.dataset,
        cache_dir=options.cache_dir.resolve(),
        metric=experiment.goal.metric,
        sign=experiment.goal.sign,
        gpus=resources.gpus,
        data_memory_fraction=experiment.per_trial.data_memory_fraction,
        planned_epochs=planned_epochs,
        max_steps=None if opened.study.continued else experiment.max_steps,  # what a trial had before counts as well
        max_epochs=None if opened.study.continued else experiment.max_epochs,
    )


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
