"""Where the weights are that trials begin with: found once, before a run starts, and the same ones ever after."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpo.engine.replay import Entry
from hpo.errors import ExperimentError, HpoError, UnknownRun
from hpo.experiment import Experiment
from hpo.results import Store
from hpo.start_from import START_FROM, BestOf, Offered, TrialOf, WeightsFile, asked, parse
from hpo.storage import is_there, is_url
from hpo.trial import TrialState

FOUND = "found"
"""Kind of the entry that keeps an origin."""
_OF_A_TRIAL = re.compile(r"/work/[^/]+/(?P<run>[^/]+)/checkpoints/trial-(?P<trial>\d+)/")
_FINISHED = (TrialState.COMPLETED.value, TrialState.STOPPED.value)


@dataclass(frozen=True)
class Origin:
    """What a trial begins with.

    Attributes:
        weights: Path or URL of a file; or what the task finds itself ("torchvision:…").
        run: The run of the trial that they come from, where it is a trial of a store.
        trial: That trial.
    """

    weights: str
    run: str | None = None
    trial: int | None = None

    @property
    def is_file(self) -> bool:
        """Whether `weights` is a path or URL."""
        return isinstance(parse(self.weights), WeightsFile)


def parents(experiment: Experiment) -> frozenset[int]:
    """Numbers of the trials that others of the same run may begin with."""
    named = [parse(value) for value, _ in _values(experiment)]
    return frozenset(one.trial for one in named if isinstance(one, TrialOf))


def parent_of(experiment: Experiment, config: Mapping[str, Any]) -> int | None:
    """The trial of the same run that a trial of this configuration begins with."""
    named = parse(asked(config)) if experiment.task.can_start_from else None
    return named.trial if isinstance(named, TrialOf) else None


def find_all(experiment: Experiment, store: Store, entries: Iterable[Entry] = ()) -> dict[str, Origin]:
    """What each value of `start_from` means in this run, but for trials of the run itself.

    Args:
        experiment: Checked.
        store: Where other experiments are looked up.
        entries: Of the run's journal so far: what was found then stays.

    Raises:
        ExperimentError: A file is not there, or no trial has the weights that are asked for.
    """
    before = {str(entry.detail[START_FROM]): entry.detail for entry in entries if entry.kind == FOUND}
    found = {}
    for value, where in _values(experiment):
        named = parse(value)
        try:
            if isinstance(named, TrialOf):
                _check_trial(experiment, named, where)
            elif value in before:
                found[value] = _again(store, before[value])
            else:
                found[value] = find(value, store)
        except ExperimentError as error:
            raise ExperimentError(error.problem, where=where, remedy=error.remedy) from None
    return found


def find(value: str, store: Store) -> Origin:
    """What one value means that names no trial of the run itself.

    Raises:
        ExperimentError: As `find_all`.
    """
    named = parse(value)
    if isinstance(named, BestOf):
        return _best(store, named)
    if isinstance(named, Offered):
        return Origin(value)
    target = value if is_url(value) else str(Path(value).expanduser().resolve())
    if not is_there(target):
        raise ExperimentError(
            f"there is no file {target}", where=START_FROM, remedy='give one, or name an experiment: Best("name")'
        )
    of_trial = _OF_A_TRIAL.search(target)
    return Origin(target, of_trial["run"], int(of_trial["trial"])) if of_trial else Origin(target)


def detail_of(value: str, origin: Origin) -> dict[str, Any]:
    """What the journal keeps of it."""
    return {START_FROM: value, **asdict(origin)}


def _values(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Each value of `start_from` that trials may have, and where the experiment says so."""
    if not experiment.task.can_start_from:
        return
    if isinstance(fixed := asked(experiment.fixed), str):
        yield fixed, f"fixed.{START_FROM}"
    domain = asked(experiment.space)
    for value in () if domain is None else domain.examples():
        if isinstance(value, str):
            yield value, f"space.{START_FROM}"


def _check_trial(experiment: Experiment, named: TrialOf, where: str) -> None:
    if asked(experiment.fixed) is not None:
        raise ExperimentError(
            f"all trials would begin with trial {named.trial}, which is one of them",
            where=where,
            remedy=f'let some be without: space={{"{START_FROM}": choice(None, "trial:{named.trial}")}}; '
            "or name another experiment",
        )
    if named.trial >= experiment.num_trials:
        raise ExperimentError(
            f"there is no trial {named.trial}: the run has trials 0 to {experiment.num_trials - 1}",
            where=where,
            remedy="name an earlier trial of the run",
        )


def _best(store: Store, named: BestOf) -> Origin:
    rows = store.runs().to_pylist()
    runs = [row["run_id"] for row in rows if row["experiment"] == named.experiment]
    if named.run is not None:
        runs = [run for run in runs if run == named.run]
    if not runs:
        what = f"run {named.run} of {named.experiment}" if named.run else f"run of an experiment {named.experiment!r}"
        known = sorted({row["experiment"] for row in rows})
        raise ExperimentError(
            f"there is no {what} in {store.place}",
            where=START_FROM,
            remedy=f"there are: {', '.join(known)}; `hpo runs` lists them" if known else "the store is empty: run it",
        )
    for run in reversed(runs):
        trials = store.trials(run)
        for row in store.best(run, limit=len(trials)).to_pylist():
            if row["state"] in _FINISHED and (origin := _checkpoint_of(store, run, row)) is not None:
                return origin
    raise ExperimentError(
        f"no trial of {named.experiment} that has finished has a checkpoint in {store.place}",
        where=START_FROM,
        remedy=f"let it finish a trial first: `hpo best {named.run or named.experiment}` shows how far it is",
    )


def _checkpoint_of(store: Store, run: str, row: Mapping[str, Any]) -> Origin | None:
    if row["checkpoint"] is None:
        return None
    target = store.paths(run).located(row["checkpoint"])
    target = target if is_url(target) else str(Path(target).resolve())
    return Origin(target, run, row["trial"]) if is_there(target) else None


def _again(store: Store, before: Mapping[str, Any]) -> Origin:
    """What was found before, where it is now: a store may have been moved."""
    origin = Origin(before["weights"], before["run"], before["trial"])
    if not origin.is_file or is_there(origin.weights):
        return origin
    what = origin.weights if origin.run is None else f"{origin.weights} (trial {origin.trial} of run {origin.run})"
    try:
        rows = [] if origin.run is None else store.trials(origin.run).to_pylist()
    except UnknownRun:
        rows = []
    for row in rows:
        if row["trial"] == origin.trial and (there := _checkpoint_of(store, str(origin.run), row)) is not None:
            return there
    raise ExperimentError(
        f"the weights that the run began with are gone: {what}",
        where=START_FROM,
        remedy="bring them back, or begin a new run with --fresh",
    )


def of_trial(trial: int, parent: int, *, run: str, checkpoint: str | None) -> Origin | HpoError:
    """What a trial begins with that names another one of its run; an error where it cannot.

    Args:
        trial: Its number.
        parent: That of the other one.
        run: Of both.
        checkpoint: Path or URL of the other one's newest checkpoint.
    """
    if checkpoint is not None and parent < trial:
        return Origin(checkpoint, run, parent)
    why = "has no checkpoint" if parent < trial else "is not an earlier one"
    return ExperimentError(
        f"trial {trial} cannot begin with trial {parent} of its run, which {why}",
        where=START_FROM,
        remedy="look at the other one with `hpo logs`" if parent < trial else "name one with a smaller number",
    )
