"""The laws of every policy, as a class to inherit: give `policies` and `first_stop`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Sequence, Set
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.protocols import Judge, Policy
from hpo.trial import Decision, Ended, Pause, Report, Stop
from tests.strategies import LAW, TURNS, Fate, Turn

PLACE = "a place is free"
Told = Report | Ended | str
Answer = Decision | int | None


def tell(judge: Judge, told: Told) -> Answer:
    """What the judge answers."""
    if isinstance(told, Report):
        return judge.on_report(told)
    if isinstance(told, Ended):
        judge.on_end(told)
        return None
    return judge.promote()


class Play:
    """Tells a judge what an engine would: nothing of a trial that has ended or waits, an end of each trial once.

    Where a policy counts chunks, two steps are an epoch, and two epochs a chunk; else a step is an epoch.
    """

    def __init__(self, policy: Policy) -> None:
        self.judge = policy.begin()
        self._grows = policy.resource == "chunk"
        self.told: list[Told] = []
        self.answers: list[Answer] = []
        self._steps: dict[int, int] = defaultdict(int)
        self._best: dict[int, float] = {}
        self._paused: set[int] = set()
        self._ended: set[int] = set()

    def take(self, turn: Turn) -> None:
        if turn.fate is Fate.PLACE:
            promoted = self._tell(PLACE)
            assert promoted is None or promoted in self._paused
            self._paused.discard(promoted)
        elif turn.trial in self._ended | self._paused:
            return
        elif turn.fate is Fate.FAILS:
            self._end(turn.trial, failed=True)
        else:
            self._report(turn)

    def _report(self, turn: Turn) -> None:
        self._steps[turn.trial] += 1
        if math.isfinite(turn.score):
            self._best[turn.trial] = max(turn.score, self._best.get(turn.trial, -math.inf))
        step = self._steps[turn.trial]
        decision = self._tell(Report(turn.trial, step, turn.score, **self._had(step)))
        if isinstance(decision, Stop):
            self._end(turn.trial, by_itself=decision.by_itself)
        elif turn.fate in (Fate.ALONE, Fate.STOPPED):
            self._end(turn.trial, by_itself=turn.fate is Fate.ALONE)
        elif isinstance(decision, Pause):
            self._paused.add(turn.trial)

    def _end(self, trial: int, *, by_itself: bool = False, failed: bool = False) -> None:
        self._ended.add(trial)
        best = self._best.get(trial)
        step = self._steps[trial]
        self._tell(Ended(trial, step, best, by_itself=by_itself, failed=failed, **self._had(step)))

    def _had(self, step: int) -> dict[str, int]:
        return {"num_epochs": step // 2, "num_chunks": step // 4} if self._grows else {"num_epochs": step}

    def _tell(self, told: Told) -> Any:
        self.told.append(told)
        self.answers.append(tell(self.judge, told))
        return self.answers[-1]


def play(policy: Policy, turns: Sequence[Turn], *, restore_before: Set[int] = frozenset()) -> Play:
    """The turns played; before each of the given ones the judge is replaced by one made of its state's JSON."""
    played = Play(policy)
    for number, turn in enumerate(turns):
        if number in restore_before:
            state = json.loads(as_json(played.judge))
            played.judge = policy.begin()
            played.judge.restore(state)
        played.take(turn)
    return played


def as_json(judge: Judge) -> str:
    return json.dumps(judge.state(), sort_keys=True)


def reports(policy: Policy, turns: Sequence[Turn]) -> list[tuple[Report, Decision]]:
    """What was reported and decided when the turns were played."""
    played = play(policy, turns)
    pairs = zip(played.told, played.answers, strict=True)
    return [(told, answer) for told, answer in pairs if isinstance(told, Report)]  # type: ignore[misc]


def rivals(told: Sequence[Told], report: Report, resource: str) -> list[float]:
    """Finite scores that `report` meets at its rung: those told there before, and the best of who ended alone."""
    had = report.had(resource)
    there = [t.score for t in told if isinstance(t, Report) and t.had(resource) == had and t.finite]
    alone = [t for t in told if isinstance(t, Ended) and t.by_itself and t.had(resource) < had]
    return there + [ended.best_score for ended in alone if ended.best_score is not None]


DRAWN = st.runner().flatmap(lambda contract: contract.policies)


class PolicyContract:
    """Laws of a policy and of the judge that it begins.

    Attributes:
        policies: Draws any policy of the kind.
    """

    policies: st.SearchStrategy[Policy]

    def first_stop(self, policy: Policy) -> int:
        """The earliest step at which a finite score may stop its trial."""
        raise NotImplementedError

    # --- the declaration ---

    @LAW
    @given(policy=DRAWN)
    def test_declaration_passes_its_own_check(self, policy: Policy) -> None:
        policy.check()

    @LAW
    @given(policy=DRAWN)
    def test_declaration_is_frozen(self, policy: Policy) -> None:
        for setting in dataclasses.fields(policy):  # type: ignore[arg-type]
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(policy, setting.name, 1)

    @LAW
    @given(policy=DRAWN)
    def test_description_is_json_and_tells_declarations_apart(self, policy: Policy) -> None:
        described = policy.describe()
        assert json.loads(json.dumps(described)) == described
        assert dataclasses.replace(policy).describe() == described  # type: ignore[type-var]
        for setting in dataclasses.fields(policy):  # type: ignore[arg-type]
            value = getattr(policy, setting.name)
            other = {setting.name: value + ("s" if isinstance(value, str) else 1)}
            assert dataclasses.replace(policy, **other).describe() != described  # type: ignore[type-var]

    @LAW
    @given(policy=DRAWN)
    def test_rungs_rise_to_the_last_step(self, policy: Policy) -> None:
        assert list(policy.rungs) == sorted(set(policy.rungs))
        assert not policy.rungs or policy.max_steps in (None, policy.rungs[-1])

    # --- purity ---

    @LAW
    @given(policy=DRAWN, turns=TURNS)
    def test_same_reports_get_same_decisions(self, policy: Policy, turns: list[Turn]) -> None:
        """Also where two judges of one policy, and a third of an equal one, are told in alternation."""
        alone = play(policy, turns)
        equal: Policy = dataclasses.replace(policy)  # type: ignore[type-var]
        together = [Play(policy), Play(policy), Play(equal)]
        for turn in turns:
            for each in together:
                each.take(turn)
        assert all(each.answers == alone.answers for each in together)

    @LAW
    @given(policy=DRAWN, turns=TURNS)
    def test_replayed_journal_gets_same_decisions(self, policy: Policy, turns: list[Turn]) -> None:
        played = play(policy, turns)
        judge = policy.begin()
        assert [tell(judge, told) for told in played.told] == played.answers
        assert as_json(judge) == as_json(played.judge)

    @LAW
    @given(policy=DRAWN, turns=TURNS, cuts=st.sets(st.integers(0, 59), min_size=1, max_size=8))
    def test_restored_from_json_decides_alike(self, policy: Policy, turns: list[Turn], cuts: set[int]) -> None:
        whole, cut = play(policy, turns), play(policy, turns, restore_before=cuts)
        assert cut.answers == whole.answers
        assert as_json(cut.judge) == as_json(whole.judge)

    @LAW
    @given(policy=DRAWN, turns=TURNS)
    def test_asking_for_the_state_changes_nothing(self, policy: Policy, turns: list[Turn]) -> None:
        whole, asked = play(policy, turns), Play(policy)
        for turn in turns:
            asked.judge.state()
            asked.take(turn)
        assert asked.answers == whole.answers

    @LAW
    @given(policy=DRAWN, turns=TURNS, later=TURNS)
    def test_state_once_taken_stays(self, policy: Policy, turns: list[Turn], later: list[Turn]) -> None:
        """Nothing in it is the judge's own: neither it, nor one restored from it, changes what it says."""
        played = play(policy, turns)
        state = played.judge.state()
        before = json.dumps(state)
        restored = policy.begin()
        restored.restore(state)
        for turn in later:
            played.take(turn)
        for number, turn in enumerate(later):
            restored.on_report(Report(100 + number, 1, turn.score))
        assert json.dumps(state) == before

    # --- decisions ---

    @LAW
    @given(policy=DRAWN, turns=TURNS)
    def test_nothing_stops_before_grace(self, policy: Policy, turns: list[Turn]) -> None:
        for report, decision in reports(policy, turns):
            if isinstance(decision, Stop) and report.finite:
                assert report.had(policy.resource) >= self.first_stop(policy)

    @LAW
    @given(policy=DRAWN, turns=TURNS)
    def test_best_of_its_rung_on_arrival_is_not_stopped(self, policy: Policy, turns: list[Turn]) -> None:
        played = play(policy, turns)
        for number, (told, answer) in enumerate(zip(played.told, played.answers, strict=True)):
            if isinstance(told, Report) and told.finite and told.had(policy.resource) in policy.rungs:
                before = rivals(played.told[:number], told, policy.resource)
                best = all(told.score > score for score in before)
                assert not (best and isinstance(answer, Stop) and not answer.completed)

    @LAW
    @given(policy=DRAWN, turns=TURNS)
    def test_trial_completes_at_the_last_step_and_only_there(self, policy: Policy, turns: list[Turn]) -> None:
        last = policy.rungs[-1] if policy.rungs else policy.max_steps
        for report, decision in reports(policy, turns):
            completed = isinstance(decision, Stop) and decision.completed
            assert completed == (report.had(policy.resource) == last) or not report.finite
            assert last is None or report.had(policy.resource) <= last

    @LAW
    @given(policy=DRAWN, turns=TURNS)
    def test_stop_says_who_and_why(self, policy: Policy, turns: list[Turn]) -> None:
        for report, decision in reports(policy, turns):
            if isinstance(decision, Stop):
                assert decision.policy == type(policy).__name__.lower()
                assert str(report.had(policy.resource)) in decision.reason or not decision.completed
                assert decision.reason
                assert not (decision.diverged and report.finite)
            elif isinstance(decision, Pause):
                assert policy.may_pause
