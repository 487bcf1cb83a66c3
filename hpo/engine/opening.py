"""Opening a run: the one to be continued, replayed, or a new one and why.

Where shards of data have arrived since a run finished, the new one goes on with the best trials of that one.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpo.engine import growth, origins
from hpo.engine.growth import Continued, Growth
from hpo.engine.origins import Origin
from hpo.engine.study import Study
from hpo.errors import DataError, ExperimentError, ReplayError
from hpo.experiment import changes, digest_of
from hpo.experiment_file import ExperimentFile
from hpo.protocols import Dataset
from hpo.results import Entry, Place, RunPaths, RunStore, Store, write_atomically


@dataclass(frozen=True)
class Chosen:
    """Which run a start leads to.

    Attributes:
        dataset: What it trains on: of a run that goes on, the shards that it began with.
        run_id: Of the run that goes on; None: a new one.
        growth: What has come to the data since the run whose trials go on in the new one.
        trials: These trials; none where the new run begins with nothing.
        notes: What a person should know about the choice.
    """

    dataset: Dataset
    run_id: str | None = None
    growth: Growth | None = None
    trials: tuple[Continued, ...] = ()
    notes: tuple[str, ...] = ()


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
        origins: The weights that trials begin with, by the value of `start_from`.
    """

    file: ExperimentFile
    dataset: Dataset
    store: RunStore
    study: Study
    notes: list[str]
    resumed: bool
    nothing_to_do: bool = False
    tested: Mapping[str, float] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)

    @property
    def paths(self) -> RunPaths:
        """Its files."""
        return self.store.paths


def open_run(file: ExperimentFile, dataset: Dataset, *, results: Path | str | Place, fresh: bool = False) -> OpenRun:
    """The newest run of this experiment and data set, replayed; a new one where `choose` says so.

    Args:
        file: The experiment.
        dataset: What it trains on.
        results: Where the store is: a folder or a bucket's URL.
        fresh: Begin a new run in any case.

    Raises:
        StoreError: The store cannot be read or written.
        RunLocked: Another driver holds it.
        DataError: The data is not what the run began with.
        ExperimentError: The weights that trials are to begin with are not to be found.
        ReplayError: The journal gives other decisions than it records.
    """
    place = results if isinstance(results, Place) else Place.of(results)
    store = Store(place)
    chosen = choose(file, dataset, store, fresh=fresh)
    notes = [*([dataset.fell_back] if dataset.fell_back else []), *chosen.notes]
    if chosen.run_id is None:
        found = {} if chosen.trials else origins_of(file, store)
        opened = _create(file, chosen, place, notes)
        opened.origins = found
    else:
        opened = _reopen(file, chosen.dataset, place, chosen.run_id, notes)
    study = opened.study
    study.extend_to(file.experiment.num_trials)
    study.record = opened.store.append
    for number in study.open_leases():
        study.interrupted(number, reason="its driver ended")
    opened.nothing_to_do = opened.resumed and study.finished
    if opened.nothing_to_do:
        return opened
    if opened.resumed and not study.continued:
        opened.origins = _origins_again(opened, store)
    opened.paths.stop_request.unlink(missing_ok=True)  # of a run that was killed before it could heed it
    if chosen.growth is not None:  # before the run can be found: it is never one without its trials
        opened.store.append(growth.CONTINUES, detail=growth.detail_of(chosen.growth, chosen.trials))
    opened.store.append("run_started", detail=_run_detail(opened, run_digest(file, dataset)))
    kept = {entry.detail["start_from"] for entry in opened.store.entries if entry.kind == origins.FOUND}
    for value, origin in opened.origins.items():
        if value not in kept:
            opened.store.append(origins.FOUND, detail=origins.detail_of(value, origin))
    return opened


def check_on(file: ExperimentFile, dataset: Dataset) -> None:
    """Raise ExperimentError where what is fixed lets no trial train on the data."""
    experiment = file.experiment
    config = experiment.domains.draw(experiment.fixed, seed=experiment.seed, trial=0)
    try:
        experiment.task.check_on(experiment.trained(config), dataset)
    except ExperimentError as error:
        fixed = next((name for name in experiment.fixed if name.rpartition(".")[2] == error.where), None)
        if fixed is not None:
            raise ExperimentError(error.problem, where=f"{file.shown}: fixed.{fixed}", remedy=error.remedy) from None


def choose(file: ExperimentFile, dataset: Dataset, store: Store, *, fresh: bool = False) -> Chosen:
    """Which run a start leads to; nothing is opened or written.

    The newest one with this digest goes on. A new one begins where there is none, where `fresh` asks for it, and where
    that one has finished and new shards of its data have arrived: it goes on with the best trials of that one.

    Raises:
        StoreError: The store cannot be read.
        DataError: A shard that the run began with has changed or is gone, or the new ones cannot be left out.
    """
    newest = None if fresh else store.newest(file.name, digest=run_digest(file, dataset))
    if newest is None:
        return Chosen(dataset, notes=tuple(_why_new(file, store, fresh=fresh)))
    run_id, grown = newest["run_id"], growth.growth_since(newest, dataset)
    if grown is None:
        return Chosen(dataset, run_id)
    if newest["state"] != "finished":
        before = file.experiment.task.as_of(dataset, grown.num_before)
        return Chosen(before, run_id, notes=(grown.waiting(),))
    trials = growth.trials_that_go_on(store, run_id, limit=file.experiment.keep_checkpoints)
    if not trials:
        return Chosen(dataset, notes=(f"{grown}, but no trial of run {run_id} has a checkpoint: a new run begins",))
    return Chosen(dataset, None, grown, trials, (grown.sentence(trials),))


def origins_of(file: ExperimentFile, store: Store, entries: Sequence[Entry] = ()) -> dict[str, Origin]:
    """What each value of `start_from` means, as `origins.find_all` has it; errors name the file."""
    try:
        return origins.find_all(file.experiment, store, entries)
    except ExperimentError as error:
        raise error.inside(file.shown) from None


def _origins_again(opened: OpenRun, store: Store) -> dict[str, Origin]:
    try:
        return origins_of(opened.file, store, opened.store.entries)
    except BaseException:
        opened.store.close()
        raise


def run_digest(file: ExperimentFile, dataset: Dataset) -> str:
    """The experiment's digest; another one where it runs on other data than it asks for."""
    return digest_of({"experiment": file.digest, "on": dataset.name}) if dataset.fell_back else file.digest


def _create(file: ExperimentFile, chosen: Chosen, place: Place, notes: list[str]) -> OpenRun:
    dataset = chosen.dataset
    store = RunStore.create(place, experiment=file.name)
    description = {
        "file": file.shown,
        "digest": run_digest(file, dataset),
        "trials": file.experiment.num_trials,
        "git_commit": _git_commit(file.path.parent),
        "versions": _versions(),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "dataset_pieces": growth.pieces_of(dataset),
        "parent_run": chosen.growth and chosen.growth.run,
        "description": file.description,
    }
    write_atomically(store.paths.experiment_json, json.dumps(description, indent=2))
    study = Study(file.experiment, store.append)
    if chosen.trials:
        study.go_on_with(chosen.trials)
    return OpenRun(file, dataset, store, study, notes, resumed=False)


def _reopen(file: ExperimentFile, dataset: Dataset, place: Place, run_id: str, notes: list[str]) -> OpenRun:
    store = RunStore.open(place, experiment=file.name, run_id=run_id)
    try:
        _same_data(store, dataset)
        notes += store.notes
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


def _why_new(file: ExperimentFile, store: Store, *, fresh: bool) -> list[str]:
    """Why an earlier run of this experiment is not continued."""
    earlier = store.newest(file.name)
    if earlier is None or earlier["digest"] is None:
        return []
    if fresh:
        return [f"a new run, as --fresh asks; the one before is {earlier['run_id']}"]
    try:
        old = json.loads(store.read(earlier["run_id"], lambda paths: paths.experiment_json))
        lines = changes(old["description"], file.description) or [f"{old['dataset']} was its data set"]
    except (OSError, ValueError, KeyError):
        lines = ["what that one was cannot be read"]
    more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
    return [f"a new run, because the experiment changed since {earlier['run_id']}: {'; '.join(lines[:3])}{more}"]


def _run_detail(opened: OpenRun, digest: str) -> dict[str, Any]:
    file, dataset, continued = opened.file, opened.dataset, opened.study.continued
    experiment = file.experiment
    return {
        "resumed": opened.resumed,
        "goal": experiment.goal.metric,
        "mode": experiment.goal.mode,
        "trials": opened.study.num_trials,
        "digest": digest,
        "quick": file.quick,
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "dataset_pieces": growth.pieces_of(dataset),
        "parent_run": continued[0].parent.run if continued else None,
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


def ended_well(entries: Sequence[Entry]) -> bool:
    """Whether the last driver lived to say that the run had finished."""
    marks = [entry for entry in entries if entry.kind in ("run_started", "run_ended")]
    return bool(marks) and marks[-1].detail.get("state") == "finished"
