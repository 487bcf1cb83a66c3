"""One run from its file to its end: find or begin it, replay it, train what is left, close it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

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
from hpo.engine.study import Lease, Study
from hpo.engine.trial_actor import Assignment, TrialActor, Workplace
from hpo.errors import DataError, ExperimentError, HpoError, ReplayError
from hpo.experiment import changes, digest_of
from hpo.experiment_file import ExperimentFile
from hpo.protocols import Dataset, Setting
from hpo.results import Entry, RunPaths, RunStore, Store, TensorBoardWriter, write_atomically

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
        concurrent: Trials at a time; as many as fit by default.
        fresh: Begin a new run, whatever there is.
        dashboard: Have Ray's dashboard.
    """

    results: Path
    cache_dir: Path
    data_dir: Path | None = None
    address: str | None = None
    cpus: int | None = None
    gpus: int | None = None
    concurrent: int | None = None
    fresh: bool = False
    dashboard: bool = False


class RunWatcher(Watcher, Protocol):
    """Watches one run."""

    def begins(self, run: OpenRun) -> None:
        """The run is open, its past replayed; training comes next."""

    def stop_signals(self, desk: Desk) -> contextlib.AbstractContextManager[None]:
        """While the context lasts, a person's wish to stop reaches the desk."""


@dataclass
class OpenRun:
    """A run that this driver holds.

    Attributes:
        file: The experiment.
        dataset: What it trains on.
        store: The one writer of its results.
        study: Replayed.
        notes: What a person should know before it goes on.
        resumed: Whether the run had begun before.
        nothing_to_do: Whether all of its trials had ended before.
        tested: Metrics of the best trial on the test data, where they were asked for.
    """

    file: ExperimentFile
    dataset: Dataset
    store: RunStore
    study: Study
    notes: list[str]
    resumed: bool
    nothing_to_do: bool = False
    tested: Mapping[str, float] = field(default_factory=dict)

    @property
    def paths(self) -> RunPaths:
        """Its files."""
        return self.store.paths


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
        opened = open_run(file, dataset, options)
        # Last in, first out: the curves are closed when the store has told them all.
        curves = TensorBoardWriter(opened.paths, goal=file.experiment.goal.metric, recovered=opened.store.entries)
        ends.callback(curves.close)
        opened.store.listen(curves.feed)
        ends.callback(opened.store.close)
        ends.callback(opened.paths.stop_request.unlink, missing_ok=True)
        watcher.begins(opened)
        if not opened.nothing_to_do:
            _train_and_note(opened, options, watcher, resources)
        elif not _ended_well(opened.store.entries):
            opened.store.append("run_ended", detail={"state": "finished", "reason": ""})
        if with_test and opened.study.finished:
            here = Resources(cpus=local_cpus(), gpus=min(local_gpus(), 1))
            opened.tested = score_best(opened.study, opened.store, setting_of(opened, options, here))
    return opened


def _ended_well(entries: Sequence[Entry]) -> bool:
    """Whether the last driver lived to say that the run had finished."""
    marks = [entry for entry in entries if entry.kind in ("run_started", "run_ended")]
    return bool(marks) and marks[-1].detail.get("state") == "finished"


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
        ExperimentError: Not even one trial fits.
    """
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
    cpus = options.cpus if options.cpus is not None else local_cpus()
    gpus = options.gpus if options.gpus is not None else local_gpus()
    return _fitting(file, cpus=cpus, gpus=gpus)


# --- opening -----------------------------------------------------------------------------------------------------


def open_run(file: ExperimentFile, dataset: Dataset, options: Options) -> OpenRun:
    """The newest run of this experiment and data set, replayed; a new one where there is none or `fresh` asks for it.

    Raises:
        RunLocked: Another driver holds it.
        DataError: The data is not what the run began with.
        ReplayError: The journal gives other decisions than it records.
    """
    digest = run_digest(file, dataset)
    notes = [dataset.fell_back] if dataset.fell_back else []
    store = Store(options.results)
    newest = None if options.fresh else store.newest(file.name, digest=digest)
    if newest is None:
        notes += _why_new(file, store, options)
        opened = _create(file, dataset, options, notes)
    else:
        opened = _reopen(file, dataset, options, newest["run_id"], notes)
    study = opened.study
    study.extend_to(file.experiment.num_trials)
    study.record = opened.store.append
    for number in study.open_leases():
        study.interrupted(number, reason="its driver ended")
    opened.nothing_to_do = opened.resumed and study.finished
    if opened.nothing_to_do:
        return opened
    opened.paths.stop_request.unlink(missing_ok=True)  # of a run that was killed before it could heed it
    opened.store.append("run_started", detail=_run_detail(file, dataset, digest, resumed=opened.resumed))
    return opened


def run_digest(file: ExperimentFile, dataset: Dataset) -> str:
    """The experiment's digest; another one where it runs on other data than it asks for."""
    return digest_of({"experiment": file.digest, "on": dataset.name}) if dataset.fell_back else file.digest


def _create(file: ExperimentFile, dataset: Dataset, options: Options, notes: list[str]) -> OpenRun:
    store = RunStore.create(options.results, experiment=file.name)
    description = {
        "file": file.shown,
        "digest": run_digest(file, dataset),
        "trials": file.experiment.num_trials,
        "git_commit": _git_commit(file.path.parent),
        "versions": _versions(),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "description": file.description,
    }
    write_atomically(store.paths.experiment_json, json.dumps(description, indent=2))
    return OpenRun(file, dataset, store, Study(file.experiment, store.append), notes, resumed=False)


def _reopen(file: ExperimentFile, dataset: Dataset, options: Options, run_id: str, notes: list[str]) -> OpenRun:
    store = RunStore.open(options.results, experiment=file.name, run_id=run_id)
    try:
        _same_data(store, dataset)
        if store.torn is not None:
            notes.append(f"the journal's torn tail was cut: {store.torn}")
        study = Study(file.experiment, store.append)
        study.replay(store.entries)
    except ReplayError as error:
        store.close()
        raise error.inside(f"run {run_id}") from None
    except BaseException:
        store.close()
        raise
    return OpenRun(file, dataset, store, study, notes, resumed=True)


def _same_data(store: RunStore, dataset: Dataset) -> None:
    began = next((entry.detail for entry in store.entries if entry.kind == "run_started"), None)
    if began is not None and began["dataset_fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"its fingerprint is {dataset.fingerprint}, but the run began with {began['dataset_fingerprint']}",
            where=f"data set {dataset.name}",
            remedy="bring back the data that the run began with, or begin a new run with --fresh",
        )


def _why_new(file: ExperimentFile, store: Store, options: Options) -> list[str]:
    """Why an earlier run of this experiment is not continued."""
    earlier = store.newest(file.name)
    if earlier is None or earlier["digest"] is None:
        return []
    if options.fresh:
        return [f"a new run, as --fresh asks; the one before is {earlier['run_id']}"]
    paths = RunPaths(options.results, file.name, earlier["run_id"])
    try:
        old = json.loads(paths.experiment_json.read_text(encoding="utf-8"))
        lines = changes(old["description"], file.description) or [f"{old['dataset']} was its data set"]
    except (OSError, ValueError, KeyError):
        lines = ["what that one was cannot be read"]
    more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
    return [f"a new run, because the experiment changed since {earlier['run_id']}: {'; '.join(lines[:3])}{more}"]


def _run_detail(file: ExperimentFile, dataset: Dataset, digest: str, *, resumed: bool) -> dict[str, Any]:
    experiment = file.experiment
    return {
        "resumed": resumed,
        "goal": experiment.goal.metric,
        "mode": experiment.goal.mode,
        "trials": experiment.num_trials,
        "digest": digest,
        "quick": file.quick,
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "git_commit": _git_commit(file.path.parent),
        "versions": _versions(),
        "host": platform.node(),
        "pid": os.getpid(),
    }


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in ("hpo", "ray", "torch", "torchvision", "pyarrow")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit(folder: Path) -> str | None:
    """Commit of the experiment's folder, with `+` where files differ from it; None outside of a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


# --- training ----------------------------------------------------------------------------------------------------


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
                _tune(opened, options, desk, resources)
        except StoppedAtOnce:
            desk.hang_up()
            raise
        # After any other error nothing is noted: it may have come between a report and the decision on it, and the
        # next driver makes up for what is missing.
        desk.hang_up()
        opened.store.flush()
        keeper.delete_doomed()
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


def _tune(opened: OpenRun, options: Options, desk: Desk, resources: Resources) -> None:
    """Give the study to Ray Tune, for as long as it or the desk wants."""
    limit = options.concurrent or 1_000_000

    def slots() -> int:
        return min(limit, resources.slots(nodes_alive()))

    tell_ray(slots=slots())
    guard_against_memory_monitor()
    tune.register_trainable(TRAINABLE, TrialActor, warn=False)
    search = StudySearch(
        desk,
        trainable=TRAINABLE,
        assignment=_Assigning(opened, options, resources),
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


def setting_of(opened: OpenRun, options: Options, resources: Resources) -> Setting:
    """Where the run's trainers live."""
    goal = opened.file.experiment.goal
    return Setting(
        device=resources.device,
        num_threads=resources.num_threads,
        dataset=opened.dataset,
        cache_dir=options.cache_dir.resolve(),
        metric=goal.metric,
        sign=goal.sign,
    )


class _Assigning:
    """Turns a lease into what the actor gets."""

    def __init__(self, opened: OpenRun, options: Options, resources: Resources) -> None:
        self._paths = replace(opened.paths, root=opened.paths.root.resolve())
        self._workplace = Workplace(str(opened.file.path), setting_of(opened, options, resources))

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
