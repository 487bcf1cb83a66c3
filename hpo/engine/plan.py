"""What a study is likely to take: the same study, fed with made-up scores."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hpo.engine.study import Study
from hpo.experiment import Experiment
from hpo.protocols import Step
from hpo.seeds import stream
from hpo.trial import GoOn


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


def expected(experiment: Experiment, *, seed: int = 0) -> Plan:
    """The plan of an experiment whose trials differ by a constant, drawn at random, and end only by its policies.

    Trials come one after the other; with several at a time ASHA lets a few more go on.
    """
    made_up = stream(seed, "plan")
    study = Study(experiment, _nowhere)
    ends: list[int] = []
    without = 0
    while (lease := study.lease()) is not None:
        longest = _longest(experiment, lease.config)
        without += longest
        ends.append(_train(study, lease.trial, longest, made_up))
    levels = sorted({1, *(step for policy in experiment.policies for step in policy.rungs), max(ends, default=1)})
    reached = Counter({level: sum(end >= level for end in ends) for level in levels})
    return Plan(len(ends), dict(reached), sum(ends), without)


def sketched(experiment: Experiment) -> Plan:
    """The plan of so few of the trials that it is there in a tenth of a second: good for means per trial."""
    longest = experiment.max_steps or int(experiment.fixed.get("epochs", 100))
    few = max(4, 10_000 // longest)
    return expected(experiment if few >= experiment.num_trials else replace(experiment, trials=few))


def _train(study: Study, trial: int, longest: int, made_up: random.Random) -> int:
    """Steps that the trial trains. Its score rises by a hair each step, so that nobody loses patience."""
    quality = made_up.random()
    for step in range(1, longest + 1):
        score = quality + 1e-6 * step
        metric = study.experiment.goal.sign * score
        measured = Step({study.experiment.goal.metric: metric}, epoch=step, finished=step == longest)
        if not isinstance(study.report(trial, step, measured), GoOn):
            return step
    return longest


def _longest(experiment: Experiment, config: Mapping[str, Any]) -> int:
    limits = [limit for limit in (experiment.max_steps, config.get("epochs")) if limit is not None]
    return int(min(limits))


def _nowhere(kind: str, **_: Any) -> None:
    """Record nothing."""
