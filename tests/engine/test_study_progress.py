"""What policies learn of epochs and chunks, from steps that are less than that; and that a journal keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hpo import Asha, NoStopping
from hpo.engine.plan import expected
from hpo.engine.study import Study
from hpo.engine.trials import Checkpoint
from hpo.errors import ExperimentError
from hpo.protocols import Dataset, Step
from hpo.trial import Exploit, GoOn, Stop
from tests.engine.crew import Scripted
from tests.engine.test_study import Notes, begin, experiment, replayed, same
from tests.engine.toy import TOY, Toy


@dataclass(frozen=True)
class GrowingToy(Toy):
    """Its data come in four chunks, of two epochs each."""

    @property
    def grows(self) -> bool:
        return True

    def num_chunks(self, dataset: Dataset) -> int:
        return 4

    def num_epochs(self, config: Any, dataset: Dataset) -> int:
        return 8


def part(score: float, num_parts: int, *, parts: int = 2, per_chunk: int = 2, **metrics: float) -> Step:
    """The step that ends with so many parts of epochs had, of which an epoch has `parts`."""
    num_epochs = num_parts // parts
    epoch = -(-num_parts // parts)
    return Step(
        {"score": score, "loss": -score, **metrics},
        epoch,
        chunk=(epoch - 1) // per_chunk + 1,
        num_epochs=num_epochs,
        num_chunks=num_epochs // per_chunk,
        finished=num_epochs == 4 * per_chunk,
    )


def train(study: Study, number: int, scores: list[float], *, first: int = 1, before: int = 0) -> list[Any]:
    """Decisions on steps from `first`; the state had had so many parts `before` it was the trial's."""
    return [study.report(number, step, part(score, before + step)) for step, score in enumerate(scores, start=first)]


def rungs(study: Study) -> Any:
    return study._judges[0].state()


def test_rungs_of_epochs_hold_what_complete_epochs_scored() -> None:
    study, notes = begin(policy=Asha(3), trials=2)
    for _ in range(2):
        study.lease()
    assert all(isinstance(one, GoOn) for one in train(study, 0, [0.9, 0.5, 0.9, 0.6, 0.9]))
    assert rungs(study) == {"1": {"0": 0.5}, "3": {}}
    last = study.report(0, 6, part(0.7, 6))
    assert isinstance(last, Stop)
    assert (last.completed, last.reason) == (True, "all 3 epochs trained")
    decisions = train(study, 1, [0.9, 0.4])
    assert isinstance(decisions[0], GoOn)
    assert isinstance(decisions[1], Stop)
    assert rungs(study) == {"1": {"0": 0.5, "1": 0.4}, "3": {"0": 0.7}}
    assert same(replayed(study, notes), study)


def test_rungs_of_chunks_hold_what_complete_chunks_scored() -> None:
    policy = Asha(4, reduction_factor=2, resource="chunk")
    study, notes = begin(task=GrowingToy(), policy=policy, trials=1)
    study.lease()
    scores = [0.1 * step for step in range(1, 17)]
    decisions = train(study, 0, scores)
    assert all(isinstance(one, GoOn) for one in decisions[:-1])
    assert rungs(study) == {"1": {"0": scores[3]}, "2": {"0": scores[7]}, "4": {"0": scores[15]}}
    assert decisions[-1] == Stop("all 4 chunks trained", completed=True, policy="asha")
    assert same(replayed(study, notes), study)


def test_all_epochs_are_trained_when_they_are_complete() -> None:
    study, _ = begin(policy=NoStopping(2), trials=1)
    study.lease()
    decisions = train(study, 0, [0.1, 0.2, 0.3, 0.4])
    assert [isinstance(one, Stop) for one in decisions] == [False, False, False, True]


def test_a_journal_of_whole_epochs_alone_is_still_read() -> None:
    """One of before there were steps within an epoch: each step is one, whatever number its state gave to it."""
    study, notes = begin(policy=Asha(9), trials=4)
    for number, score in enumerate((0.5, 0.4, 0.6, 0.3)):
        study.lease()
        for epoch in range(1, 4):
            if isinstance(study.report(number, epoch, Step({"score": score, "loss": 1.0}, epoch)), Stop):
                break
    entries = []
    for entry in notes.entries:
        kept = {name: value for name, value in entry.detail.items() if name not in ("num_epochs", "num_chunks")}
        assert (entry.kind == "report") == (len(kept) == len(entry.detail) - 2)
        entries.append(replace(entry, detail=kept))
    again = Study(study.experiment, Notes())
    again.replay(entries)
    assert same(again, study)
    assert (
        rungs(again)
        == rungs(study)
        == {"1": {"0": 0.5, "1": 0.4, "2": 0.6, "3": 0.3}, "3": {"0": 0.5, "2": 0.6}, "9": {}}
    )


def test_a_state_that_is_taken_over_leaves_the_count_of_epochs() -> None:
    study, notes = begin(policy=Scripted(script=((1, 2, ("exploit", 0, 0.1)),), max_epochs=50), trials=2)
    for number in (0, 1):
        study.lease()
        train(study, number, [0.5])
    train(study, 0, [0.5] * 4, first=2)
    study.checkpointed(0, Checkpoint("0.pt", 1, 5, 5))
    assert isinstance(study.report(1, 2, part(0.4, 2)), Exploit)
    study.lease()
    progress = study.trials[1].progress
    assert progress.num_epochs == 1
    # The other's state has had five halves of an epoch: the next step completes the third, of which one half is new.
    counted = []
    for step, had in enumerate(range(6, 10), start=3):
        study.report(1, step, part(0.6, had))
        counted.append((progress.num_epochs, progress.num_chunks))
    assert counted == [(2, 0), (2, 0), (3, 1), (3, 1)]
    assert same(replayed(study, notes), study)


def test_trials_that_know_more_chunks_rank_before_those_that_know_fewer() -> None:
    study, notes = begin(task=GrowingToy(), policy=(), trials=3)
    for _ in range(3):
        study.lease()
    train(study, 0, [0.9])
    train(study, 1, [0.8, 0.8, 0.8, 0.8, 0.3, 0.4])
    train(study, 2, [0.7, 0.7, 0.7, 0.7, 0.35, math.nan])
    assert [trial.number for trial in study.top] == [1, 2, 0]
    assert [(trial.best_score, trial.best_step, trial.best_chunk) for trial in study.trials] == [
        (0.9, 1, 1),
        (0.4, 6, 2),
        (0.35, 5, 2),
    ]
    assert same(replayed(study, notes), study)


def test_what_comes_with_a_new_chunk_is_diagnosed_by_itself() -> None:
    study, notes = begin(task=GrowingToy(), policy=Asha(4, resource="chunk"), trials=1)
    study.lease()
    train(study, 0, [0.5] * 4)
    course = study.trials[0].course
    assert course.scores.num == 4
    train(study, 0, [0.1], first=5)
    assert (course.scores.num, course.scores.first) == (1, 0.1)
    assert same(replayed(study, notes), study)


def test_a_plan_has_rungs_of_chunks_at_their_epochs() -> None:
    made = experiment(task=GrowingToy(), policy=Asha(4, reduction_factor=2, resource="chunk"), trials=40)
    plan = expected(made, TOY)
    assert list(plan.trials_at) == [1, 2, 4, 8]
    assert plan.trials_at[1] == plan.trials_at[2] == 40
    assert plan.trials_at[8] < plan.trials_at[4] < 40
    assert plan.epochs_without_stopping == 320


def test_chunks_are_counted_only_of_data_that_come_in_chunks() -> None:
    with pytest.raises(
        ExperimentError, match=r"policy: Asha counts chunks, but the data come all at once\n  leave out"
    ):
        experiment(policy=Asha(4, resource="chunk")).check()
    experiment(task=GrowingToy(), policy=Asha(4, resource="chunk")).check()
    experiment(task=GrowingToy(), policy=()).check()


def test_what_limits_a_trial_in_steps_and_in_epochs() -> None:
    made = experiment(policy=(Asha(9), NoStopping(7), Asha(5, resource="step")))
    assert (made.max_steps, made.max_epochs) == (5, 7)
    chunks = experiment(task=GrowingToy(), policy=Asha(4, resource="chunk"))
    assert (chunks.max_steps, chunks.max_epochs) == (None, None)
