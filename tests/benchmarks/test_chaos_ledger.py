from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_ledger import Cost, Ledger, cost, verdict
from hpo.engine.study import Study
from hpo.experiment_file import load
from hpo.protocols import Step
from hpo.results import Entry, RunStore, read_entries

HERE = {"node": "a", "step_s": 0.5}
THERE = {"node": "b", "step_s": 0.5}


@pytest.fixture
def study(repository: Path) -> Path:
    return repository / "benchmarks" / "chaos_study.py"


def _reports(store: RunStore, *scores: float) -> None:
    for step, score in enumerate(scores, 1):
        detail = {"score": score, "epoch": step, "metrics": {"val_accuracy": score}}
        store.append("report", trial=0, attempt=1, step=step, detail=detail)
    store.flush()


def test_what_is_shown_and_stays_is_not_lost(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.show() == 0
    with RunStore.create(tmp_path, experiment="chaos_study") as store:
        _reports(store, 0.5, 0.6)
        assert ledger.show() == 2
        store.seal()
        assert ledger.show() == 2
    ledger.check()
    assert not ledger.lost


def test_what_is_not_there_any_more_or_says_something_else_is_lost(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "first", experiment="chaos_study") as store:
        _reports(store, 0.5, 0.6, 0.7)
    with RunStore.create(tmp_path / "second", experiment="chaos_study") as store:
        _reports(store, 0.5, 0.65)
    ledger = Ledger(tmp_path / "first")
    ledger.show()
    ledger.results = tmp_path / "second"
    ledger.check()
    assert ledger.lost == {(0, 2), (0, 3)}


def _trained(store: RunStore, study: Path) -> None:
    judged = Study(load(study).experiment, store.append)
    store.append("run_started", detail={"trials": judged.num_trials})
    lease = judged.lease()
    assert lease is not None
    extra = {"step_s": 0.1, "node": "a"}
    for step in range(1, 8):
        judged.report(lease.trial, step, Step({"val_accuracy": 0.5, "val_loss": 1.0}, float(step)), extra)
        if not judged.is_leased(lease.trial):
            break


def test_a_journal_that_decides_again_as_it_says_has_no_wrong_decisions(study: Path, tmp_path: Path) -> None:
    with RunStore.create(tmp_path, experiment="chaos_study") as store:
        _trained(store, study)
        ledger = Ledger(tmp_path)
        store.flush()
        shown = ledger.show()
    found = verdict(ledger, study)
    assert shown == found["acknowledged"] == found["reports"] > 3
    assert found["decisions"] == 1
    assert (found["reports lost"], found["reports double"], found["wrong decisions"]) == (0, 0, 0)


def test_a_decision_that_nothing_asked_for_is_wrong(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunStore.create(tmp_path, experiment="chaos_study") as store:
        _trained(store, study)
        store.append("stopped", trial=0, step=7, detail={"state": "stopped", "policy": "asha"})
    assert verdict(Ledger(tmp_path), study)["wrong decisions"] == 1
    assert "stopped" in capsys.readouterr().out


def test_a_step_that_stands_there_twice_is_double(study: Path, tmp_path: Path) -> None:
    with RunStore.create(tmp_path, experiment="chaos_study") as store:
        _trained(store, study)
        store.flush()
        first = next(entry for entry in read_entries(store.paths) if entry.kind == "report")
        store.append("report", trial=0, attempt=2, step=1, detail=first.detail)
    assert verdict(Ledger(tmp_path), study)["reports double"] == 1


def _journal(*told: tuple[float, str, int, dict[str, Any]]) -> list[Entry]:
    return [Entry(seq, at, kind, trial, 1, None, detail) for seq, (at, kind, trial, detail) in enumerate(told, 1)]


BEGUN = (
    (1.0, "started", 0, {}),
    (1.0, "started", 1, {}),
    (5.0, "report", 0, HERE),
    (5.0, "report", 1, THERE),
)


def test_time_is_lost_until_the_trial_that_was_hit_has_a_new_report() -> None:
    journal = _journal(
        *BEGUN,
        (11.0, "report", 1, THERE),
        (12.0, "failed", 0, {"retry": True}),
        (13.0, "started", 0, {}),
        (20.0, "report", 0, THERE),
    )
    assert cost(journal, at=10.0, host="a").time_lost_s == 10.0
    assert cost(journal, at=10.0, host="b").time_lost_s == 1.0
    assert cost(journal, at=10.0).time_lost_s == 10.0


def test_a_report_of_a_step_that_had_begun_before_is_not_new() -> None:
    journal = _journal(*BEGUN, (10.3, "report", 0, HERE), (14.0, "report", 0, HERE))
    assert cost(journal, at=10.0, host="a").time_lost_s == 4.0


@pytest.mark.parametrize("kind", ["stopped", "paused"])
def test_a_trial_that_ends_by_what_was_in_flight_was_not_hit(kind: str) -> None:
    journal = _journal(*BEGUN, (10.2, "report", 0, HERE), (10.2, kind, 0, {}), (15.0, "report", 1, THERE))
    assert cost(journal, at=10.0, host="a") == Cost(None, frozenset())
    assert cost(journal, at=10.0).time_lost_s == 5.0


def test_a_trial_is_hit_where_nobody_knows_where_it_trains() -> None:
    journal = _journal(*BEGUN, (6.0, "interrupted", 0, {}), (7.0, "started", 0, {}), (12.0, "report", 0, THERE))
    assert cost(journal, at=10.0, host="a").time_lost_s == 2.0


def test_a_driver_that_is_killed_hits_all_that_train() -> None:
    journal = _journal(
        *BEGUN,
        (15.0, "interrupted", 0, {}),
        (15.0, "interrupted", 1, {}),
        (16.0, "started", 0, {}),
        (16.0, "started", 1, {}),
        (18.0, "report", 1, THERE),
        (19.5, "report", 0, THERE),
    )
    assert cost(journal, at=10.0).time_lost_s == 9.5


def test_a_trial_waits_for_as_long_as_it_has_no_new_report() -> None:
    journal = _journal(*BEGUN, (12.0, "failed", 0, {"retry": True}), (13.0, "report", 1, THERE))
    assert cost(journal[:4], at=10.0, host="a").waiting == {0}
    assert cost(journal[:4], at=10.0).waiting == {0, 1}
    assert cost(journal, at=10.0) == Cost(3.0, frozenset({0}))


def test_a_trial_that_is_not_tried_again_waits_for_nothing() -> None:
    journal = _journal(*BEGUN, (12.0, "failed", 0, {"retry": False}))
    assert cost(journal, at=10.0, host="a") == Cost(None, frozenset())


def test_nothing_is_lost_where_nothing_trained() -> None:
    assert cost([], at=10.0) == Cost(None, frozenset())
    assert cost(_journal(*BEGUN), at=0.5) == Cost(None, frozenset())
