"""What a study is likely to take: the same study, fed with made-up scores."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpo.engine.growth import Continued
from hpo.engine.study import Study
from hpo.experiment import Experiment
from hpo.protocols import Dataset, Step
from hpo.seeds import stream
from hpo.trial import GoOn

SOME_EPOCHS = 100
"""Of a trial, where nothing says how many."""


@dataclass(frozen=True)
class Plan:
    """Expected work of a study.

    Attributes:
        trials: In total.
        trials_at: Trials that reach each step at which some end, by step; the first entry is step 1.
        epochs: In total.
        epochs_without_stopping: If each trial trained to its end.
    """

    trials: int
    trials_at: Mapping[int, int]
    epochs: int
    epochs_without_stopping: int


def expected(experiment: Experiment, dataset: Dataset, *, continued: Sequence[Continued] = (), seed: int = 0) -> Plan:
    """The plan of an experiment whose trials differ by a constant, drawn at random, and end only by its policies.

    Trials come one after the other; with several at a time ASHA lets a few more go on.

    Args:
        experiment: Checked.
        dataset: What it trains on.
        continued: The trials of an earlier run, where the run goes on with these.
        seed: Of the constants.
    """
    made_up = stream(seed, "plan")
    study = Study(experiment, _nowhere)
    if continued:
        study.go_on_with(continued)
    ends: list[int] = []
    levels = {1}
    without = 0
    while (lease := study.lease()) is not None:
        had = continued[lease.trial].epochs if continued else 0
        longest = _longest(experiment, lease.config, dataset, had=had)
        without += longest
        per_chunk = _epochs_per_chunk(experiment, lease.config, dataset)
        ends.append(_train(study, lease.trial, longest, made_up, per_chunk=per_chunk))
        for policy in experiment.policies:
            epochs = per_chunk if per_chunk and policy.resource == "chunk" else 1
            levels.update(rung * epochs for rung in policy.rungs)
    levels.add(max(ends, default=1))
    reached = Counter({level: sum(end >= level for end in ends) for level in sorted(levels)})
    return Plan(len(ends), dict(reached), sum(ends), without)


def sketched(experiment: Experiment, dataset: Dataset, *, continued: Sequence[Continued] = ()) -> Plan:
    """The plan of so few of the trials that it is there in a tenth of a second: good for means per trial."""
    longest = experiment.max_steps or int(experiment.fixed.get("epochs", SOME_EPOCHS))
    few = max(4, 10_000 // longest)
    some = experiment if few >= experiment.num_trials else replace(experiment, trials=few)
    return expected(some, dataset, continued=continued)


def _train(study: Study, trial: int, longest: int, made_up: random.Random, *, per_chunk: int | None) -> int:
    """Steps that the trial trains. Its score rises by a hair each step, so that nobody loses patience."""
    quality = made_up.random()
    for step in range(1, longest + 1):
        score = quality + 1e-6 * step
        measured = Step(
            {study.experiment.goal.metric: study.experiment.goal.sign * score},
            epoch=step,
            chunk=-(-step // per_chunk) if per_chunk else None,
            num_epochs=step,
            num_chunks=step // per_chunk if per_chunk else None,
            finished=step == longest,
        )
        if not isinstance(study.report(trial, step, measured), GoOn):
            return step
    return longest


def _longest(experiment: Experiment, config: Mapping[str, Any], dataset: Dataset, *, had: int) -> int:
    """Epochs that the trial has at most, after those that it has had in an earlier run."""
    own = experiment.task.num_epochs(experiment.trained(config), dataset)
    limits = [limit for limit in (experiment.max_steps, None if own is None else own - had) if limit is not None]
    return max(min(limits, default=SOME_EPOCHS), 1)


def _epochs_per_chunk(experiment: Experiment, config: Mapping[str, Any], dataset: Dataset) -> int | None:
    """Epochs that a trial trains on each chunk; None where the data come all at once."""
    num_chunks = experiment.task.num_chunks(dataset)
    num_epochs = experiment.task.num_epochs(experiment.trained(config), dataset)
    return num_epochs // num_chunks if num_chunks and num_epochs else None


def _nowhere(kind: str, **_: Any) -> None:
    """Record nothing."""
