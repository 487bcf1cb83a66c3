"""A run on data that have grown since the one before: which shards are new, and which of its trials go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo.engine.trials import Checkpoint, Parent, Trial
from hpo.errors import DataError
from hpo.protocols import Dataset, Proposer
from hpo.results import Store
from hpo.trial import TrialState

CONTINUES = "continues"
"""Kind of the entry that says which trials of an earlier run go on."""
_GO_ON = (TrialState.COMPLETED.value, TrialState.STOPPED.value, TrialState.PAUSED.value)
_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class Continued:
    """A trial of an earlier run that goes on as one of this run.

    Attributes:
        config: Of that trial, as it ended.
        seed: Of that trial.
        parent: That trial.
        path: Its checkpoint, as this run's journal calls the file.
        epochs: That it trained and reported.
    """

    config: Mapping[str, Any]
    seed: int
    parent: Parent
    path: str
    epochs: int

    def begun_as(self, number: int) -> Trial:
        """The trial of this run, before its first step."""
        state = Checkpoint(self.path, attempt=0, step=0, size=0, parent=self.parent)
        return Trial(number, self.config, self.seed, checkpoint=state, inherited=state)


class ContinuedTrials(Proposer):
    """Proposes the configurations of trials that go on, in their order."""

    def __init__(self, trials: Sequence[Continued]) -> None:
        self._trials = trials

    def propose(self, trial: int) -> dict[str, Any] | None:
        return dict(self._trials[trial].config) if trial < len(self._trials) else None


@dataclass(frozen=True)
class Growth:
    """The shards that arrived since a run began.

    Attributes:
        run: The run.
        num_before: Shards that it began with.
        num_new: Shards that came after them.
        names: Of the new ones; empty where they have none.
    """

    run: str
    num_before: int
    num_new: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(self.names[:_NUM_NAMED]) + (", …" if len(self.names) > _NUM_NAMED else "")
        return f"{self.num_new} new shard{'s' * (self.num_new > 1)}{f' ({named})' if named else ''}"

    def sentence(self, trials: Sequence[Continued]) -> str:
        """For people: which trials are fine-tuned on them."""
        *others, last = [str(trial.parent.trial) for trial in trials]
        whose = f"trials {', '.join(others)} and {last}" if others else f"trial {last}"
        are, them = "are" if others else "is", "them" if self.num_new > 1 else "it"
        return f"{self}: {whose} of run {self.run} {are} fine-tuned on {them}"

    def waiting(self) -> str:
        """For people: why the run does not see them."""
        return (
            f"{self} since run {self.run} began, which goes on with the {self.num_before} that it began with: give the "
            "same command again when it has finished"
        )


def pieces_of(dataset: Dataset) -> list[dict[str, str]]:
    """What the journal keeps of the shards: the fingerprint of each, and its name where it has one."""
    names = dataset.piece_names
    return [
        {"fingerprint": piece, **({"name": names[number]} if number < len(names) else {})}
        for number, piece in enumerate(dataset.pieces)
    ]


def growth_since(run: Mapping[str, Any], dataset: Dataset) -> Growth | None:
    """What has come to the data since a run began; None where nothing has, or its data did not come in shards.

    Args:
        run: Its row.
        dataset: As it is now.

    Raises:
        DataError: A shard that it began with has changed, or is gone.
    """
    before = json.loads(run["dataset_pieces"] or "[]")
    if not before or not dataset.pieces:
        return None
    now = pieces_of(dataset)
    for number, piece in enumerate(before):
        if number >= len(now):
            raise _changed(dataset, f"{_called(piece, number)}, which run {run['run_id']} began with, is gone")
        if piece["fingerprint"] != now[number]["fingerprint"]:
            raise _changed(
                dataset,
                f"{_called(now[number], number)} has the fingerprint {now[number]['fingerprint']}, but run "
                f"{run['run_id']} began with {_called(piece, number)}, {piece['fingerprint']}",
            )
    new = now[len(before) :]
    if not new:
        return None
    return Growth(run["run_id"], len(before), len(new), tuple(piece["name"] for piece in new if "name" in piece))


def _called(piece: Mapping[str, str], number: int) -> str:
    return f"shard {number + 1}" + (f" ({piece['name']})" if "name" in piece else "")


def _changed(dataset: Dataset, problem: str) -> DataError:
    return DataError(
        problem,
        where=f"data set {dataset.name}",
        remedy="bring it back, have new shards come after all that were there, or begin a new run with --fresh",
    )


def trials_that_go_on(store: Store, run: str, *, limit: int) -> tuple[Continued, ...]:
    """The best trials of a run that have a checkpoint, the best first.

    Args:
        store: Where it is.
        run: Its id.
        limit: How many at most.
    """
    paths = store.paths(run)
    rows = store.best(run, limit=len(store.trials(run))).to_pylist()
    kept = [row for row in rows if row["state"] in _GO_ON and row["checkpoint"] is not None]
    return tuple(
        Continued(
            _frozen(json.loads(row["config"])),
            row["seed"],
            Parent(run, row["trial"]),
            paths.of_run(run, row["checkpoint"]),
            row["epochs"],
        )
        for row in kept[:limit]
    )


def trials_of(store: Store, run: str | None) -> tuple[Continued, ...]:
    """The trials of an earlier run that a run goes on with, as its journal says; none where it began with nothing."""
    query = f"SELECT detail FROM events WHERE run_id = '{run}' AND kind = '{CONTINUES}'"  # noqa: S608
    rows = [] if run is None else store.sql(query).to_pylist()
    return trials_in(json.loads(rows[0]["detail"])) if rows else ()


def detail_of(growth: Growth, trials: Iterable[Continued]) -> dict[str, Any]:
    """What the journal keeps of a run that goes on from another."""
    return {
        "run": growth.run,
        "num_pieces_before": growth.num_before,
        "num_pieces_new": growth.num_new,
        "new_pieces": list(growth.names),
        "trials": [
            {
                "trial": trial.parent.trial,
                "config": trial.config,
                "seed": trial.seed,
                "checkpoint": trial.path,
                "epochs": trial.epochs,
            }
            for trial in trials
        ],
    }


def trials_in(detail: Mapping[str, Any]) -> tuple[Continued, ...]:
    """The trials that go on, from what the journal keeps."""
    return tuple(
        Continued(
            _frozen(one["config"]),
            one["seed"],
            Parent(detail["run"], one["trial"]),
            one["checkpoint"],
            one["epochs"],
        )
        for one in detail["trials"]
    )


def _frozen(value: Any) -> Any:
    """A configuration from JSON, as the experiment has it: its lists are tuples."""
    if isinstance(value, Mapping):
        return {name: _frozen(part) for name, part in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
