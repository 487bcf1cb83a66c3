"""The study without Ray: its decisions, and that a journal of them makes the same study again."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo import Asha, Experiment, GridSearch, Maximize, Minimize, NoStopping, Patience, choice, grid, uniform
from hpo.engine.study import MAX_LOST, Study
from hpo.engine.trials import Checkpoint
from hpo.errors import ReplayError
from hpo.protocols import Step
from hpo.trial import Exploit, GoOn, Pause, Stop, TrialState
from tests.engine.crew import Scripted
from tests.engine.toy import Promoting, Toy


@dataclass(frozen=True)
class Noted:
    seq: int
    kind: str
    trial: int | None
    attempt: int | None
    step: int | None
    detail: Any


class Notes:
    """A journal in memory that holds what JSON would give back."""

    def __init__(self) -> None:
        self.entries: list[Noted] = []

    def __call__(self, kind: str, *, trial=None, attempt=None, step=None, detail=None) -> None:
        plain = json.loads(json.dumps(dict(detail or {})))
        self.entries.append(Noted(len(self.entries), kind, trial, attempt, step, plain))

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.entries]


def experiment(**changes: Any) -> Experiment:
    settings = {
        "task": Toy(),
        "space": {"x": uniform(0.0, 1.0)},
        "goal": Maximize("score"),
        "trials": 6,
        "policy": Asha(9),
    }
    return Experiment(**{**settings, **changes})


def begin(**changes: Any) -> tuple[Study, Notes]:
    notes = Notes()
    made = experiment(**changes)
    notes("run_started", detail={"trials": made.num_trials})
    return Study(made, notes), notes


def step(score: float, epoch: int = 1, *, finished: bool = False) -> Step:
    return Step({"score": score, "loss": -score}, epoch, finished=finished)


def test_a_policys_own_hyper_parameters_reach_it_and_not_the_task() -> None:
    made = experiment(policy=(NoStopping(9), Patience(5)), space={"x": uniform(0, 1), "patience": choice([1, 2])})
    made.check()
    assert set(made.trained({"x": 0.5, "patience": 1})) == {"x"}
    study = Study(made, Notes())
    for _ in range(4):
        lease = study.lease()
        assert lease is not None
        patience = lease.config["patience"]
        decisions = [study.report(lease.trial, epoch, step(0.5, epoch)) for epoch in range(1, patience + 2)]
        assert isinstance(decisions[-1], Stop)
        assert not any(isinstance(one, Stop) for one in decisions[:-1])


def replayed(study: Study, notes: Notes) -> Study:
    again = Study(study.experiment, Notes())
    again.replay(notes.entries)
    return again


def same(one: Study, other: Study) -> bool:
    return repr(one.trials) == repr(other.trials) and repr(one.top) == repr(other.top)


class TestLeases:
    def test_trials_are_proposed_in_order_until_there_are_enough(self) -> None:
        study, _ = begin(trials=2)
        leases = [study.lease(), study.lease(), study.lease()]
        assert [lease.trial if lease else None for lease in leases] == [0, 1, None]
        assert not study.finished

    def test_a_grid_ends_the_study_when_every_cell_was_tried(self) -> None:
        study, _ = begin(space={"x": grid(0.1, 0.2)}, trials=None, search=GridSearch())
        for _ in range(2):
            lease = study.lease()
            assert lease is not None
            study.report(lease.trial, 1, step(0.5, finished=True))
        assert study.lease() is None
        assert study.finished

    def test_the_seed_of_a_trial_depends_on_its_number_alone(self) -> None:
        first, _ = begin()
        second, _ = begin()
        for _ in range(3):
            one, other = first.lease(), second.lease()
            assert one is not None
            assert other is not None
            first.report(one.trial, 1, step(one.trial / 10))
            assert one.seed == other.seed
        assert len({trial.seed for trial in first.trials}) == 3


class TestReports:
    def test_smaller_is_better_where_the_goal_says_so(self) -> None:
        study, _ = begin(goal=Minimize("loss"), policy=NoStopping(2), trials=2)
        for loss in (3.0, 1.0):
            lease = study.lease()
            assert lease is not None
            study.report(lease.trial, 1, Step({"loss": loss, "score": 0.0}, 1))
        assert study.best is not None
        assert study.best.number == 1
        assert study.best.best_score == -1.0

    def test_a_nan_stops_the_trial_and_is_named(self) -> None:
        study, notes = begin()
        study.lease()
        decision = study.report(0, 1, step(math.nan))
        assert isinstance(decision, Stop)
        assert "diverged" in decision.reason
        assert study.trials[0].cause == "diverged"
        assert notes.entries[-1].detail["state"] == "stopped"

    def test_any_stop_wins_over_going_on(self) -> None:
        study, _ = begin(policy=(NoStopping(9), Patience(1)))
        study.lease()
        assert isinstance(study.report(0, 1, step(0.5)), GoOn)
        decision = study.report(0, 2, step(0.4))
        assert isinstance(decision, Stop)
        assert decision.policy == "patience"

    def test_a_completion_wins_over_a_stop(self) -> None:
        study, _ = begin(policy=(Patience(1), NoStopping(2)))
        study.lease()
        study.report(0, 1, step(0.5))
        study.report(0, 2, step(0.4))
        assert study.trials[0].state is TrialState.COMPLETED

    def test_a_configuration_with_its_own_epochs_completes(self) -> None:
        study, _ = begin(policy=(), fixed={"epochs": 1})
        study.lease()
        study.report(0, 1, step(0.5, finished=True))
        assert study.trials[0].state is TrialState.COMPLETED

    def test_a_trial_with_patience_spent_counts_in_later_rungs(self) -> None:
        study, _ = begin(policy=(Asha(9), Patience(1)), trials=2)
        study.lease()
        study.report(0, 1, step(0.9))
        study.report(0, 2, step(0.8))
        assert study.trials[0].state is TrialState.STOPPED
        study.lease()
        study.report(1, 1, step(0.95))
        study.report(1, 2, step(0.955))
        decision = study.report(1, 3, step(0.85))
        assert isinstance(decision, Stop)
        assert "1 of 1 others" in decision.reason

    def test_a_stored_step_is_neither_stored_nor_judged_again(self) -> None:
        study, notes = begin()
        study.lease()
        study.report(0, 1, step(0.5))
        study.failed(0, cause="error", message="no")
        study.lease()
        before = len(notes.entries)
        assert isinstance(study.report(0, 1, step(0.5)), GoOn)
        assert len(notes.entries) == before
        study.report(0, 1, step(0.6))
        assert notes.kinds()[-1] == "differs"
        assert study.trials[0].scores == [0.5]


class TestFailures:
    def test_a_trial_is_tried_again_from_its_checkpoint_then_fails(self) -> None:
        study, notes = begin()
        study.lease()
        study.report(0, 1, step(0.5))
        study.checkpointed(0, Checkpoint("c.pt", 1, 1, 10))
        assert study.failed(0, cause="error", message="broke")
        again = study.lease()
        assert again is not None
        assert (again.trial, again.attempt, again.why) == (0, 2, "retry")
        assert again.checkpoint == Checkpoint("c.pt", 1, 1, 10)
        assert not study.failed(0, cause="error", message="broke again")
        assert study.trials[0].state is TrialState.FAILED
        assert notes.entries[-1].detail["retry"] is False

    def test_a_lost_node_is_not_counted_but_not_for_ever(self) -> None:
        study, _ = begin(max_failures=0, trials=1)
        for _ in range(MAX_LOST):
            study.lease()
            assert study.failed(0, cause="node_lost", message="gone")
        study.lease()
        assert not study.failed(0, cause="node_lost", message="gone")

    def test_an_unusable_checkpoint_is_forgotten(self) -> None:
        study, _ = begin()
        study.lease()
        study.report(0, 1, step(0.5))
        study.checkpointed(0, Checkpoint("c.pt", 1, 1, 10))
        study.forget_checkpoint(0)
        assert study.failed(0, cause="checkpoint", message="damaged")
        again = study.lease()
        assert again is not None
        assert again.checkpoint is None


class TestPromotion:
    def test_paused_trials_do_not_starve_the_search(self) -> None:
        study, _ = begin(policy=Promoting(9), trials=9)
        run_to_end(study, workers=1, seed=0)
        assert len(study.trials) == 9
        assert sum(trial.step >= 3 for trial in study.trials) >= 3
        assert any(trial.state is TrialState.COMPLETED for trial in study.trials)
        assert study.finished

    def test_a_pause_wins_over_going_on_but_not_over_a_stop(self) -> None:
        study, _ = begin(policy=(Promoting(9), NoStopping(9)))
        study.lease()
        assert isinstance(study.report(0, 1, step(0.5)), Pause)


def run_to_end(study: Study, *, workers: int, seed: int, max_events: int = 10**6) -> None:
    """Play a cluster: leases, reports, failures, checkpoints and interruptions in a random order."""
    dice = random.Random(seed)
    open_: dict[int, int] = {}
    for _ in range(max_events):
        if len(open_) < workers and (lease := study.lease()) is not None:
            open_[lease.trial] = lease.checkpoint.step if lease.checkpoint else 0
            continue
        if not open_:
            return
        number = dice.choice(sorted(open_))
        event = dice.random()
        if event < 0.05:
            study.failed(number, cause=dice.choice(["error", "node_lost"]), message="dice")
            del open_[number]
        elif event < 0.08:
            study.interrupted(number, reason="dice")
            del open_[number]
        else:
            open_[number] += 1
            value = study.trials[number].config["x"] * open_[number] / (open_[number] + 1)
            score = math.nan if dice.random() < 0.01 else value
            decision = study.report(number, open_[number], step(score, open_[number]))
            if dice.random() < 0.3 or isinstance(decision, Pause):
                study.checkpointed(number, Checkpoint(f"{number}-{open_[number]}", 1, open_[number], 1))
            if not isinstance(decision, GoOn):
                del open_[number]


POLICIES = [(Asha(9),), (Asha(9), Patience(2)), (NoStopping(4),), (Promoting(9),), (Promoting(9), Patience(2))]


class TestReplay:
    @given(seed=st.integers(0, 10**6), workers=st.integers(1, 8), policy=st.sampled_from(POLICIES))
    def test_a_journal_makes_the_same_study_again(self, seed: int, workers: int, policy: tuple[Any, ...]) -> None:
        study, notes = begin(policy=policy, trials=12, seed=seed)
        run_to_end(study, workers=workers, seed=seed)
        assert same(study, replayed(study, notes))

    @given(seed=st.integers(0, 10**6), cut=st.floats(0, 1), policy=st.sampled_from(POLICIES))
    def test_any_beginning_of_a_journal_is_replayed_and_gone_on_with(
        self, seed: int, cut: float, policy: tuple[Any, ...]
    ) -> None:
        study, notes = begin(policy=policy, trials=12, seed=seed)
        run_to_end(study, workers=3, seed=seed)
        kept = notes.entries[: max(1, round(cut * len(notes.entries)))]
        later = Notes()
        resumed = Study(study.experiment, later)
        resumed.replay(kept)
        for number in resumed.open_leases():
            resumed.interrupted(number, reason="killed")
        run_to_end(resumed, workers=3, seed=seed + 1)
        assert resumed.finished
        both = Notes()
        both.entries = kept + later.entries
        assert same(resumed, replayed(resumed, both))
        reports = [(entry.trial, entry.step) for entry in both.entries if entry.kind == "report"]
        assert len(reports) == len(set(reports))

    @given(seed=st.integers(0, 10**6))
    def test_raising_the_trials_extends_a_finished_study(self, seed: int) -> None:
        study, notes = begin(trials=4, seed=seed)
        run_to_end(study, workers=2, seed=seed)
        first = [trial.config for trial in study.trials]
        study.extend_to(7)
        notes("run_started", detail={"trials": 7})
        run_to_end(study, workers=2, seed=seed)
        assert len(study.trials) == 7
        assert [trial.config for trial in study.trials[:4]] == first
        assert same(study, replayed(study, notes))

    def test_the_journal_says_what_was_tried_again_whatever_is_allowed_now(self) -> None:
        study, notes = begin(trials=2, max_failures=0)
        study.lease()
        study.failed(0, cause="error", message="no")
        generous = Study(experiment(trials=2, max_failures=3), Notes())
        generous.replay(notes.entries)
        assert generous.trials[0].state is TrialState.FAILED

    def test_another_decision_than_the_recorded_one_is_an_error(self) -> None:
        study, notes = begin(trials=3)
        for number, score in enumerate((0.9, 0.5, 0.1)):
            study.lease()
            study.report(number, 1, step(score))
        index = notes.kinds().index("stopped")
        forged = notes.entries[index]
        notes.entries[index] = Noted(forged.seq, "paused", forged.trial, None, forged.step, {"reason": "?"})
        with pytest.raises(ReplayError, match=r"(?s)the journal says paused of trial 1.*--fresh") as error:
            replayed(study, notes)
        assert f"entry {forged.seq}" in str(error.value)

    def test_an_outcome_lost_with_a_torn_tail_is_recorded_anew(self) -> None:
        study, notes = begin(trials=2)
        study.lease()
        study.report(0, 1, step(0.9))
        study.lease()
        study.report(1, 1, step(0.1))
        assert notes.entries.pop().kind == "stopped"
        later = Notes()
        again = Study(study.experiment, later)
        again.replay(notes.entries)
        assert later.kinds() == ["stopped"]
        assert again.trials[1].state is TrialState.STOPPED


class TestDiagnoses:
    def diverged(self) -> tuple[Study, Notes]:
        study, notes = begin(policy=NoStopping(9), trials=1)
        study.lease()
        for number, loss in enumerate((2.0, 1.0, 9.0, 9.0, 9.0, 9.0), 1):
            study.report(0, number, Step({"score": 0.1 * number, "train_loss": loss}, number))
        return study, notes

    def test_are_recorded_with_their_numbers_where_they_first_hold_and_decide_nothing(self) -> None:
        study, notes = self.diverged()
        (diagnosis,) = [entry for entry in notes.entries if entry.kind == "diagnosis"]
        assert (diagnosis.trial, diagnosis.step) == (0, 5)
        assert diagnosis.detail == {
            "name": "diverges",
            "numbers": {"train_loss": 9.0, "best": 1.0, "first": 2.0},
            "sentence": "train_loss is 9, after 2 at first and 1 at its best",
        }
        assert study.trials[0].state is TrialState.RUNNING
        assert same(replayed(study, notes), study)

    def test_are_not_recorded_again_by_steps_that_are_trained_again(self) -> None:
        study, notes = self.diverged()
        study.failed(0, cause="node_lost", message="gone")
        study.lease()
        for number, loss in enumerate((2.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0), 1):
            study.report(0, number, Step({"score": 0.1 * number, "train_loss": loss}, number))
        assert notes.kinds().count("diagnosis") == 1
        assert same(replayed(study, notes), study)

    def test_that_a_torn_tail_took_are_recorded_anew(self) -> None:
        study, notes = self.diverged()
        lost = notes.kinds().index("diagnosis")
        later = Notes()
        again = Study(study.experiment, later)
        again.replay(notes.entries[:lost])
        assert [(entry.kind, entry.step, entry.detail) for entry in later.entries] == [
            ("diagnosis", 5, notes.entries[lost].detail)
        ]

    def test_of_another_name_than_the_recorded_one_are_an_error(self) -> None:
        study, notes = self.diverged()
        index = notes.kinds().index("diagnosis")
        notes.entries[index] = replace(notes.entries[index], detail={"name": "plateaus"})
        with pytest.raises(
            ReplayError, match=r"(?s)the journal says diagnosis of trial 0.*but a replay gives diagnosis"
        ):
            replayed(study, notes)


class TestExploiting:
    def begun(self, *script: tuple[int, int, tuple[Any, ...]]) -> tuple[Study, Notes]:
        study, notes = begin(policy=Scripted(script=script, max_epochs=5), trials=2)
        for number in (0, 1):
            study.lease()
            study.report(number, 1, step(0.5))
        return study, notes

    def test_goes_on_from_the_state_of_another_with_a_count_of_its_own(self) -> None:
        study, notes = self.begun((1, 2, ("exploit", 0, 0.1)))
        study.checkpointed(0, Checkpoint("0.pt", 1, 1, 5))
        assert isinstance(study.report(1, 2, step(0.4)), Exploit)
        assert study.trials[1].state is TrialState.PAUSED
        lease = study.lease()
        assert lease is not None
        assert (lease.trial, lease.attempt, lease.why) == (1, 2, "exploited")
        assert lease.checkpoint == Checkpoint("0.pt", 1, 2, 5, source=0)
        assert dict(lease.config) == {"lr": 0.1, "batch_size": 10}
        assert isinstance(study.report(1, 3, step(0.6)), GoOn)
        assert study.trials[1].scores == [0.5, 0.4, 0.6]
        assert same(replayed(study, notes), study)

    def test_has_what_comes_diagnosed_by_itself(self) -> None:
        study, notes = self.begun((1, 2, ("exploit", 0, 0.1)))
        study.checkpointed(0, Checkpoint("0.pt", 1, 1, 5))
        study.report(1, 2, step(0.4))
        study.lease()
        assert study.trials[1].course.scores.num == 0
        study.report(1, 3, step(0.6))
        assert study.trials[1].course.scores.first == 0.6
        assert same(replayed(study, notes), study)

    def test_goes_on_as_it_is_where_the_other_was_never_saved(self) -> None:
        study, notes = self.begun((1, 2, ("exploit", 0, 0.1)))
        assert isinstance(study.report(1, 2, step(0.4)), GoOn)
        assert "exploited" not in notes.kinds()
        assert same(replayed(study, notes), study)
