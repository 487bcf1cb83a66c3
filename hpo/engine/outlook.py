"""What a start would do with the store as it is now: for a dry run, which opens and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hpo.engine.opening import Chosen, origins_of
from hpo.engine.origins import FOUND, Origin
from hpo.experiment_file import ExperimentFile
from hpo.results import Entry, Store


def outlook(file: ExperimentFile, chosen: Chosen, store: Store) -> list[str]:
    """Sentences for people: which run would go on or begin, and whose weights trials would begin with.

    Args:
        file: The experiment.
        chosen: The run that a start leads to.
        store: Where it is, or would be.

    Raises:
        ExperimentError: The weights that trials are to begin with are not to be found.
    """
    run = None if chosen.run_id is None else store.find_run(chosen.run_id)
    lines = [*chosen.notes, *([] if chosen.trials else [_of_the_run(run, file.experiment.num_trials)])]
    if chosen.trials or (run is not None and run["parent_run"] is not None):
        return lines  # its trials go on from checkpoints
    entries = [] if run is None else list(_found_before(store, run["run_id"]))
    return lines + [_in_words(value, origin) for value, origin in origins_of(file, store, entries).items()]


def _of_the_run(run: Mapping[str, Any] | None, num_trials: int) -> str:
    if run is None:
        return "a new run would begin"
    enough = run["parent_run"] is not None or run["num_trials"] >= num_trials
    if run["state"] == "finished" and enough:
        return f"run {run['run_id']} has finished: nothing would be done"
    return f"run {run['run_id']} ({run['state']}) would go on"


def _found_before(store: Store, run: str) -> Iterator[Entry]:
    """What the run found when it began, which stays."""
    query = f"SELECT seq, detail FROM events WHERE run_id = '{run}' AND kind = '{FOUND}' ORDER BY seq"  # noqa: S608
    for row in store.sql(query).to_pylist():
        yield Entry(row["seq"], 0.0, FOUND, None, None, None, json.loads(row["detail"]))


def _in_words(value: str, origin: Origin) -> str:
    if origin.run is not None:
        return f"start_from {value}: trial {origin.trial} of run {origin.run}, {origin.weights}"
    return f"start_from {value}: {origin.weights if origin.is_file else 'offered for the model'}"
