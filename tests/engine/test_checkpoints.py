"""When checkpoints are written, and which stay."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from hpo import NoStopping
from hpo.engine.checkpoint_files import LocalFiles
from hpo.engine.checkpoint_writer import Written
from hpo.engine.checkpoints import PATIENCE_S, CheckpointKeeper
from hpo.engine.study import Study
from hpo.engine.trials import Checkpoint
from hpo.results import RunPaths
from hpo.trial import GO_ON, Exploit, Pause, Stop
from tests.engine.crew import Scripted
from tests.engine.loose import LOOSE_FILES
from tests.engine.test_study import Notes, begin, step
from tests.engine.toy import Promoting


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(LocalFiles):
    """Files that are known when the test says so."""

    def __init__(self, paths: RunPaths) -> None:
        super().__init__(paths)
        self.looked: Future[None] = Future()

    def look_again(self) -> Future[None]:
        return self.looked


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keeping(study: Study, notes: Notes, clock: Clock, kept: int | None = None) -> CheckpointKeeper:
    return CheckpointKeeper(
        study,
        LOOSE_FILES,
        appended=lambda: len(notes.entries) - 1,
        kept=lambda: len(notes.entries) - 1 if kept is None else kept,
        clock=clock,
    )


def save(
    folder: Path, keeper: CheckpointKeeper, trial: int, at: int, *, attempt: int = 1, cost_s: float = 0.0
) -> Written:
    """A snapshot is taken; what its process will tell of the write."""
    path = str(folder / f"{trial}-{attempt}-{at}.pt")
    keeper.begun(trial, Checkpoint(path, attempt, at, 0), blocked_s=cost_s, process=f"process of {trial}")
    return Written(trial, attempt, at, path, size=5, write_s=0.5)


def write(folder: Path, keeper: CheckpointKeeper, trial: int, at: int, cost_s: float = 0.0) -> Path:
    written = save(folder, keeper, trial, at, cost_s=cost_s)
    Path(written.path).write_text("state")
    assert keeper.told(written)
    return Path(written.path)


def trained(study: Study, keeper: CheckpointKeeper, *scores: float) -> None:
    """A trial for each score, each with one report."""
    for score in scores:
        lease = study.lease()
        assert lease is not None
        keeper.begin(lease.trial)
        study.report(lease.trial, 1, step(score))


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


def test_a_newer_checkpoint_replaces_the_older_once_the_journal_is_kept(clock: Clock, tmp_path: Path) -> None:
    study, notes = begin(policy=NoStopping(9))
    late = keeping(study, notes, clock, kept=0)
    study.lease()
    study.report(0, 1, step(0.5))
    first = write(tmp_path, late, 0, 1)
    study.report(0, 2, step(0.6))
    second = write(tmp_path, late, 0, 2)
    late.delete_doomed()
    assert first.exists()
    late.kept = lambda: len(notes.entries)
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


class TestDue:
    def test_a_short_trial_alone_writes_nothing_before_it_ends(self, clock: Clock) -> None:
        study, notes = begin(policy=NoStopping(9), trials=1)
        keeper = keeping(study, notes, clock)
        study.lease()
        keeper.begin(0)
        for number in range(1, 9):
            clock.now += 3.0
            assert not keeper.due(0, study.report(0, number, step(0.1 * number)))
        clock.now += 3.0
        assert keeper.due(0, study.report(0, 9, step(0.9)))

    def test_the_first_of_a_trial_is_as_rare_as_the_last_one_was_slow(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9), checkpoint_every_s=1.0)
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)
        write(tmp_path, keeper, 0, 1, cost_s=2.0)
        trained(study, keeper, 0.5)
        clock.now = 199.0
        assert not keeper.due(1, GO_ON)
        clock.now = 200.0
        assert keeper.due(1, GO_ON)

    def test_one_dear_write_says_nothing_of_the_trials_to_come(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9), checkpoint_every_s=1.0)
        keeper = keeping(study, notes, clock)
        for trial, cost_s in enumerate((0.01, 0.01, 5.0)):  # a bucket refused for a while
            trained(study, keeper, 0.5)
            write(tmp_path, keeper, trial, 1, cost_s=cost_s)
        began = clock.now
        trained(study, keeper, 0.5)
        clock.now = began + 0.9
        assert not keeper.due(3, GO_ON)
        clock.now = began + 1.1
        assert keeper.due(3, GO_ON)

    def test_the_seconds_that_writing_took_from_a_core_count(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9), checkpoint_every_s=1.0)
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)
        written = save(tmp_path, keeper, 0, 1, cost_s=1.0)
        keeper.told(replace(written, cpu_s=3.0))
        study.report(0, 2, step(0.6))
        clock.now = 399.0
        assert not keeper.due(0, GO_ON)
        clock.now = 400.0
        assert keeper.due(0, GO_ON)
        assert (keeper.spent.num, keeper.spent.blocked_s, keeper.spent.cpu_s) == (1, 1.0, 3.0)

    def test_not_while_the_one_before_is_being_written(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9), checkpoint_every_s=0.0)
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)
        assert keeper.due(0, GO_ON)
        written = save(tmp_path, keeper, 0, 1)
        study.report(0, 2, step(0.6))
        assert not keeper.due(0, GO_ON)
        keeper.told(written)
        assert keeper.due(0, GO_ON)

    def test_not_at_the_end_where_the_best_weights_are_in_a_file(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9))
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)
        write(tmp_path, keeper, 0, 1)
        study.report(0, 2, step(0.4))
        assert not keeper.due(0, Stop("end"))
        study.report(0, 3, step(0.6))
        assert keeper.due(0, Stop("end"))


class TestPending:
    def test_it_exists_once_its_process_says_so(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9))
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)
        written = save(tmp_path, keeper, 0, 1, cost_s=0.25)
        assert study.trials[0].checkpoint is None
        assert keeper.waits()
        assert keeper.told(written)
        assert study.trials[0].checkpoint == Checkpoint(written.path, 1, 1, 5)
        assert notes.entries[-1].detail == {"path": written.path, "bytes": 5, "blocked_s": 0.25, "write_s": 0.5}
        assert not keeper.waits()

    def test_it_exists_once_its_file_is_there(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9))
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)
        written = save(tmp_path, keeper, 0, 1)
        keeper.look()
        assert study.trials[0].checkpoint is None
        Path(written.path).write_text("state of 7")
        keeper.look()
        assert study.trials[0].checkpoint == Checkpoint(written.path, 1, 1, 10)
        assert not keeper.told(written)  # what the process says later adds nothing
        assert notes.kinds().count("checkpoint") == 1

    def test_an_error_leaves_the_older_one(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9))
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)
        first = write(tmp_path, keeper, 0, 1)
        study.report(0, 2, step(0.6))
        assert keeper.told(replace(save(tmp_path, keeper, 0, 2), error="OSError: full"))
        keeper.delete_doomed()
        assert study.trials[0].checkpoint is not None
        assert study.trials[0].checkpoint.path == str(first)
        assert first.exists()

    def test_that_of_a_trial_that_ended_and_is_no_longer_among_the_best_is_deleted(
        self, clock: Clock, tmp_path: Path
    ) -> None:
        study, notes = begin(policy=NoStopping(1), keep_checkpoints=1)
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)
        written = save(tmp_path, keeper, 0, 1)
        trained(study, keeper, 0.9)
        Path(written.path).write_text("state")
        assert keeper.told(written)
        assert not Path(written.path).exists()
        assert study.trials[0].checkpoint is None
        assert "checkpoint" not in notes.kinds()

    def test_what_a_process_leaves_unwritten_is_no_longer_waited_for(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9))
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5, 0.6)
        whole, half, other = (save(tmp_path, keeper, trial, at) for trial, at in ((0, 1), (0, 2), (1, 1)))
        Path(whole.path).write_text("state")
        keeper.leave("process of 0")
        assert [pending.checkpoint.path for pending in keeper.gone()] == [half.path]
        assert study.trials[0].checkpoint is not None
        assert keeper.waits()
        keeper.leave()
        assert [pending.checkpoint.path for pending in keeper.gone()] == [other.path]
        assert not keeper.waits()

    def test_what_a_process_leaves_is_looked_for_without_waiting(self, clock: Clock, tmp_path: Path) -> None:
        files = Slow(RunPaths(Path("nowhere"), "toy", "run"))
        study, notes = begin(policy=NoStopping(9))
        keeper = replace(keeping(study, notes, clock), files=files)
        trained(study, keeper, 0.5, 0.6)
        whole, half = (save(tmp_path, keeper, trial, 1) for trial in (0, 1))
        keeper.leave()
        assert keeper.gone() == []
        assert keeper.waits(for_paused=True)  # no trial goes on from an older one meanwhile
        Path(whole.path).write_text("state")
        files.looked.set_result(None)
        assert [pending.checkpoint.path for pending in keeper.gone()] == [half.path]
        assert study.trials[0].checkpoint is not None
        assert not keeper.waits(for_paused=True)

    @pytest.mark.parametrize("wait", [True, False])
    def test_what_cannot_be_looked_for_is_given_up(
        self, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, wait: bool
    ) -> None:
        monkeypatch.setattr("hpo.engine.checkpoints.FRESH_WITHIN_S", 0.01)
        study, notes = begin(policy=NoStopping(9))
        keeper = replace(keeping(study, notes, clock), files=Slow(RunPaths(Path("nowhere"), "toy", "run")))
        trained(study, keeper, 0.5)
        half = save(tmp_path, keeper, 0, 1)
        keeper.leave()
        clock.now += 0.0 if wait else 0.01
        assert [pending.checkpoint.path for pending in keeper.gone(wait=wait)] == [half.path]

    def test_one_of_a_replaced_attempt_is_deleted(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(9))
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)
        written = save(tmp_path, keeper, 0, 1)
        study.failed(0, cause="node_lost", message="gone")
        study.lease()
        Path(written.path).write_text("state")
        keeper.look()
        assert not Path(written.path).exists()
        assert study.trials[0].checkpoint is None

    def test_given_up_is_only_what_others_wait_for(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=Promoting(9))
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.5)  # pauses
        paused = save(tmp_path, keeper, 0, 1)
        study.lease()
        training = save(tmp_path, keeper, 1, 1)
        assert keeper.waits(for_paused=True)
        clock.now = PATIENCE_S - 1
        assert keeper.overdue() == []
        clock.now = PATIENCE_S
        assert [pending.checkpoint.path for pending in keeper.overdue()] == [paused.path]
        assert not keeper.waits(for_paused=True)
        study.interrupted(1, reason="the end")
        assert [pending.checkpoint.path for pending in keeper.overdue()] == [training.path]

    def test_a_journal_with_late_checkpoints_gives_the_same_study_again(self, clock: Clock, tmp_path: Path) -> None:
        study, notes = begin(policy=NoStopping(2), keep_checkpoints=2, trials=5)
        keeper = keeping(study, notes, clock)
        late: list[Written] = []
        for score in (0.3, 0.1, 0.9, 0.5, 0.7):
            trained(study, keeper, score)
            number = len(study.trials) - 1
            late.append(save(tmp_path, keeper, number, 1))
            Path(late[-1].path).write_text("state")
            study.report(number, 2, step(score / 2))
            if len(late) == 2:
                for written in late:
                    keeper.told(written)
                late.clear()
            keeper.sweep()
            keeper.delete_doomed()
        keeper.look()
        keeper.delete_doomed()
        again = Study(study.experiment, Notes())
        again.replay(notes.entries)
        assert repr(again.trials) == repr(study.trials)
        kept = {trial.checkpoint.path for trial in study.trials if trial.checkpoint is not None}
        assert kept == {str(path) for path in tmp_path.iterdir()}
        assert [trial.number for trial in study.trials if trial.checkpoint is not None] == [2, 4]


class TestExploiting:
    @pytest.fixture
    def taken_over(self, clock: Clock, tmp_path: Path) -> tuple[Study, CheckpointKeeper, Written]:
        """Trial 1 exploits trial 0 while a checkpoint of its own is still being written."""
        script = (1, 2, ("exploit", 0, 0.1))
        study, notes = begin(policy=Scripted(script=(script,), max_epochs=9), trials=3, keep_checkpoints=1)
        keeper = keeping(study, notes, clock)
        trained(study, keeper, 0.9, 0.5)
        write(tmp_path, keeper, 0, 1)
        pending = save(tmp_path, keeper, 1, 1)
        decision = study.report(1, 2, step(0.4))
        assert isinstance(decision, Exploit)
        assert not keeper.due(1, decision)
        keeper.holds(1)
        return study, keeper, pending

    def test_a_file_of_before_comes_too_late(
        self, taken_over: tuple[Study, CheckpointKeeper, Written], tmp_path: Path
    ) -> None:
        study, keeper, pending = taken_over
        Path(pending.path).write_text("state")
        assert keeper.told(pending)
        assert study.trials[1].checkpoint == Checkpoint(str(tmp_path / "0-1-1.pt"), 1, 2, 5, source=0)
        assert not Path(pending.path).exists()

    def test_the_file_stays_as_long_as_either_needs_it(
        self, taken_over: tuple[Study, CheckpointKeeper, Written], tmp_path: Path
    ) -> None:
        study, keeper, _ = taken_over
        study.report(0, 2, step(0.95))
        write(tmp_path, keeper, 0, 2)
        keeper.delete_doomed()
        assert (tmp_path / "0-1-1.pt").exists()  # trial 1 is to go on from it
        assert study.lease() is not None
        study.report(1, 3, step(0.3, finished=True))  # it ends before it has a file of its own
        keeper.sweep()
        keeper.delete_doomed()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0-1-2.pt"]
