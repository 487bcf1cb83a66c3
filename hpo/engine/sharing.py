"""How many trials a GPU gets where `concurrent` is "auto": what is known before, and what is to be measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from hpo.engine.calibration import MOST
from hpo.engine.cluster import Resources
from hpo.engine.desk import Desk
from hpo.engine.plan import Plan
from hpo.engine.progress import progress_of
from hpo.engine.replay import Entry
from hpo.engine.study import Study

Nodes = Sequence[Mapping[str, float]]


def shared_out(desk: Desk, resources: Resources, *, nodes: Nodes, plan: Plan, entries: Iterable[Entry]) -> Resources:
    """What each trial gets to begin with; the desk calibrates where the run has not measured before and can.

    Args:
        desk: Whose watcher is told why nothing is measured, where that is so.
        resources: What the experiment gives each trial.
        nodes: Resources of each node.
        plan: Of the study.
        entries: The run's journal.
    """
    slots = resources.slots(nodes)
    if not resources.gpus:
        desk.watcher.said(f"no GPU is to be shared: {slots} at a time, as many trials as the cores bear")
        return resources
    if (known := measured_before(entries)) is not None:
        desk.watcher.said(f"{known} on each GPU at a time, as this run has measured before")
        return resources.sharing(known)
    numbers = places_by_number(resources, nodes, num_trials=trials_left(desk.study))
    if len(numbers) == 1:
        desk.watcher.said(f"{slots} at a time: cores or trials for more on each GPU are not there")
    else:
        desk.calibrate(numbers, epochs_left=lambda: epochs_left(desk, plan))
    return resources


def places_by_number(resources: Resources, nodes: Nodes, *, num_trials: int) -> dict[int, int]:
    """Trials at a time by number of trials a GPU: that of `resources`, and twice as many as long as they fill all GPUs.

    Ray fills a GPU before it takes the next: where cores or trials are too few for all of them, some would have less
    to do than others.
    """
    number = resources.trials_per_gpu
    places = {number: resources.slots(nodes)}
    gpus = sum(math.floor(node.get("GPU", 0)) for node in nodes)
    while (number := 2 * number) <= MOST:
        slots = resources.sharing(number).slots(nodes)
        if slots < number * gpus or slots > num_trials:
            break
        places[number] = slots
    return places


def measured_before(entries: Iterable[Entry]) -> int | None:
    """Trials a GPU that an earlier driver of the run chose; None where none did."""
    chosen = [entry.detail["trials_per_gpu"] for entry in entries if entry.kind == "concurrent"]
    return int(chosen[-1]) if chosen else None


def trials_left(study: Study) -> int:
    """Trials that have not ended, those that have not begun included."""
    return max(study.num_trials, len(study.trials)) - sum(trial.state.ended for trial in study.trials)


def epochs_left(desk: Desk, plan: Plan) -> float:
    """Epochs that the study is likely to take from now on."""
    progress = progress_of(desk, plan, now=desk.began)
    return progress.epochs_expected - progress.epochs_all
