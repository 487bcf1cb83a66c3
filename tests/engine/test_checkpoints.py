"""When checkpoints are written, and which stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo import NoStopping
from hpo.engine.checkpoints import CheckpointKeeper
from hpo.engine.study import Checkpoint, Study
from hpo.trial import GO_ON, Pause, Stop
from tests.engine.test_study import Notes, begin, step


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keeping(study: Study, notes: Notes, clock: Clock, synced: int | None = None) -> CheckpointKeeper:
    return CheckpointKeeper(
        study,
        appended=lambda: len(notes.entries) - 1,
        synced=lambda: len(notes.entries) - 1 if synced is None else synced,
        clock=clock,
    )


def write(folder: Path, keeper: CheckpointKeeper, trial: int, at: int, cost_s: float = 0.0) -> Path:
    path = folder / f"{trial}-{at}.pt"
    path.write_text("state")
    keeper.written(trial, Checkpoint(str(path), 1, at, 5), cost_s=cost_s)
    return path


def test_is_due_when_so_much_training_could_be_lost(clock: Clock) -> None:
    study, notes = begin(policy=NoStopping(9), checkpoint_every_s=30.0)
    keeper = keeping(study, notes, clock)
    study.lease()
    keeper.begin(0)
    study.report(0, 1, step(0.5))
    assert not keeper.due(0, GO_ON)
    clock.now = 30.0
    assert keeper.due(0, GO_ON)


def test_is_due_more_rarely_where_writing_is_slow(clock: Clock, tmp_path: Path) -> None:
    study, notes = begin(policy=NoStopping(9), checkpoint_every_s=1.0)
    keeper = keeping(study, notes, clock)
    study.lease()
    keeper.begin(0)
    study.report(0, 1, step(0.5))
    write(tmp_path, keeper, 0, 1, cost_s=2.0)
    study.report(0, 2, step(0.6))
    clock.now = 199.0
    assert not keeper.due(0, GO_ON)
    clock.now = 200.0
    assert keeper.due(0, GO_ON)


def test_a_pause_always_and_an_end_among_the_best_are_kept(clock: Clock) -> None:
    study, notes = begin(policy=NoStopping(9), keep_checkpoints=1)
    keeper = keeping(study, notes, clock)
    for number, score in enumerate((0.9, 0.1)):
        study.lease()
        keeper.begin(number)
        study.report(number, 1, step(score))
    assert keeper.due(1, Pause("rung"))
    assert keeper.due(0, Stop("end"))
    assert not keeper.due(1, Stop("end"))


def test_a_newer_checkpoint_replaces_the_older_once_the_journal_is_synced(clock: Clock, tmp_path: Path) -> None:
    study, notes = begin(policy=NoStopping(9))
    late = keeping(study, notes, clock, synced=0)
    study.lease()
    study.report(0, 1, step(0.5))
    first = write(tmp_path, late, 0, 1)
    study.report(0, 2, step(0.6))
    second = write(tmp_path, late, 0, 2)
    late.delete_doomed()
    assert first.exists()
    late.synced = lambda: len(notes.entries)
    late.delete_doomed()
    assert not first.exists()
    assert second.exists()
    assert study.trials[0].checkpoint is not None
    assert study.trials[0].checkpoint.path == str(second)
    assert notes.kinds()[-1] == "deleted"


def test_of_ended_trials_only_the_best_keep_theirs(clock: Clock, tmp_path: Path) -> None:
    study, notes = begin(policy=NoStopping(1), keep_checkpoints=2, trials=4)
    keeper = keeping(study, notes, clock)
    paths = []
    for number, score in enumerate((0.3, 0.1, 0.9, 0.5)):
        study.lease()
        study.report(number, 1, step(score))
        paths.append(write(tmp_path, keeper, number, 1))
    keeper.delete_doomed()
    assert [path.exists() for path in paths] == [False, False, True, True]
    again = Study(study.experiment, Notes())
    again.replay(notes.entries)
    assert [trial.checkpoint is not None for trial in again.trials] == [False, False, True, True]
