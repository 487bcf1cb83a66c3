"""The desk between Ray and the study: what it makes of the news of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpo import NoStopping
from hpo.engine.checkpoint_writer import Written
from hpo.engine.checkpoints import PATIENCE_S, CheckpointKeeper
from hpo.engine.desk import Desk
from hpo.engine.standstill import FIRST_WORD_S
from hpo.engine.trials import Lease
from hpo.engine.worker import Saved, Trained
from hpo.protocols import Step
from tests.engine.loose import LOOSE_FILES
from tests.engine.test_checkpoints import Clock
from tests.engine.test_study import begin, step
from tests.engine.toy import Promoting


class Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def happened(self, line: str) -> None:
        self.lines.append(line)

    said = happened

    def round(self, desk: Desk) -> None: ...


class Place:
    """A desk, and a process of its own for each trial."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.study, self.notes = begin(**settings)
        self.clock, self.folder = Clock(), folder
        count = lambda: len(self.notes.entries)  # noqa: E731
        self.keeper = CheckpointKeeper(self.study, LOOSE_FILES, appended=count, kept=count, clock=self.clock)
        self.heard = Heard()
        self.desk = Desk(
            self.study,
            self.keeper,
            self.heard,
            num_gpus=0,
            stop_request=folder / "stop",
            shortage=lambda: "each needs a GPU",
            clock=self.clock,
        )

    def lease(self) -> Lease:
        lease = self.desk.lease()
        assert lease is not None
        return lease

    def report(self, lease: Lease, number: int, score: float, *written: Written) -> bool:
        return self.desk.report(lease, Trained(number, step(score), 0.1, "node", 1, written))

    def save(self, lease: Lease, number: int, *written: Written) -> Written:
        """The snapshot is taken; the news when it is written."""
        path = str(self.folder / f"{lease.trial}-{number}.pt")
        self.desk.saved(lease, Saved(path, number, 0.01, written=written), process=f"process of {lease.trial}")
        return Written(lease.trial, lease.attempt, number, path, size=5)

    def failures(self) -> list[tuple[int | None, Mapping[str, Any]]]:
        return [(entry.trial, entry.detail) for entry in self.notes.entries if entry.kind == "checkpoint_failed"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, policy=NoStopping(9), checkpoint_every_s=0.0)


def test_news_of_a_checkpoint_come_with_a_report_of_another_trial(place: Place) -> None:
    first, second = place.lease(), place.lease()
    assert place.report(first, 1, 0.5)
    assert place.desk.wants_checkpoint(first)
    news = place.save(first, 1)
    assert place.study.trials[0].checkpoint is None
    place.report(second, 1, 0.5, news)
    assert place.study.trials[0].checkpoint is not None


def test_an_error_is_noted_and_told(place: Place) -> None:
    lease = place.lease()
    place.report(lease, 1, 0.5)
    news = place.save(lease, 1)
    failed = Written(news.trial, news.attempt, news.step, news.path, error="OSError: full")
    place.report(lease, 2, 0.5, failed)
    assert place.failures() == [(0, {"error": "OSError: full"})]
    assert "trial 0: its checkpoint could not be written: OSError: full" in place.heard.lines


def test_a_snapshot_that_could_not_be_taken_is_noted(place: Place) -> None:
    lease = place.lease()
    place.report(lease, 1, 0.5)
    place.desk.saved(lease, Saved("x.pt", 1, 0.1, "OutOfMemoryError: full"))
    assert place.failures() == [(0, {"error": "OutOfMemoryError: full"})]
    assert not place.keeper.waits()


def test_the_last_news_of_a_process_come_with_its_error(place: Place) -> None:
    lease = place.lease()
    place.report(lease, 1, 0.5)
    news = place.save(lease, 1)
    place.desk.failed(lease, cause="error", message="told to", trace="", process="process of 0", written=(news,))
    again = place.lease()
    assert (again.attempt, again.checkpoint and again.checkpoint.step) == (2, 1)


def test_what_a_dead_process_wrote_whole_counts_and_the_rest_does_not(place: Place) -> None:
    lease, other = place.lease(), place.lease()
    place.report(lease, 1, 0.5)
    Path(place.save(lease, 1).path).write_text("state")
    place.report(lease, 2, 0.6)
    place.save(lease, 2)
    place.report(other, 1, 0.5)
    place.save(other, 1)
    place.desk.failed(lease, cause="killed", message="died", trace="", process="process of 0")
    assert place.failures() == [(0, {"error": "its process ended"})]
    again = place.lease()
    assert (again.why, again.checkpoint and again.checkpoint.step) == ("retry", 1)
    assert place.keeper.waits()  # for that of the other process


def test_no_lease_is_given_while_the_state_of_a_paused_trial_is_missing(tmp_path: Path) -> None:
    place = Place(tmp_path, policy=Promoting(9), checkpoint_every_s=0.0)
    paused, training = place.lease(), place.lease()
    assert not place.report(paused, 1, 0.5)
    assert place.desk.lease() is None
    news = place.save(paused, 1)
    assert place.desk.lease() is None
    place.report(training, 1, 0.4, news)
    place.save(training, 1)
    (tmp_path / "1-1.pt").write_text("state")
    assert place.lease().trial == 2


def test_the_next_trial_does_not_wait_for_the_file_of_one_that_ended(tmp_path: Path) -> None:
    place = Place(tmp_path, policy=NoStopping(1))
    ended = place.lease()
    assert not place.report(ended, 1, 0.5)
    assert place.desk.wants_checkpoint(ended)
    place.save(ended, 1)
    assert place.lease().trial == 1
    assert place.keeper.waits()


def test_a_file_that_never_comes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, policy=Promoting(9), checkpoint_every_s=0.0)
    paused = place.lease()
    place.report(paused, 1, 0.5)
    place.save(paused, 1)

    def pass_time(seconds: float) -> None:
        place.clock.now += PATIENCE_S / 2

    monkeypatch.setattr("time.sleep", pass_time)
    assert place.lease().trial == 1
    assert place.failures() == [(0, {"error": "there is no file after 120 s"})]


def test_at_the_end_the_last_files_are_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = place.lease()
    place.desk.close_down("the test asks")
    assert not place.report(lease, 1, 0.5)
    assert place.desk.wants_checkpoint(lease)
    path = Path(place.save(lease, 1).path)
    looked: list[float] = []

    def write_at_the_third(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) == 3:
            path.write_text("state")

    monkeypatch.setattr("time.sleep", write_at_the_third)
    place.desk.await_files()
    assert 3 <= len(looked) <= 4
    assert place.study.trials[0].checkpoint is not None
    place.desk.settle()
    assert place.failures() == []


def test_what_is_not_there_when_the_processes_have_ended_is_noted(place: Place) -> None:
    lease = place.lease()
    place.report(lease, 1, 0.5)
    place.save(lease, 1)
    place.desk.settle()
    assert place.failures() == [(0, {"error": "its process ended"})]
    assert not place.keeper.waits()


def test_trials_that_nobody_trains_are_spoken_of(place: Place) -> None:
    lease = place.lease()
    for _ in range(2):
        place.clock.now += FIRST_WORD_S
        place.desk.round()
    place.clock.now += 1
    place.desk.round()
    assert place.heard.lines == ["nothing trains: the next trial waits for a place since 1 min; each needs a GPU"]
    place.desk.training.add((lease.trial, lease.attempt))
    place.clock.now += 100 * FIRST_WORD_S
    place.desk.round()
    assert len(place.heard.lines) == 1


def test_a_diagnosis_is_told_once_in_one_line(place: Place) -> None:
    lease = place.lease()
    for number, loss in enumerate((2.0, 1.0, 9.0, 9.0, 9.0, 9.0), 1):
        measured = Step({"score": 0.1 * number, "train_loss": loss}, number)
        place.desk.report(lease, Trained(number, measured, 0.1, "node", 1))
    assert place.heard.lines == ["trial 0 diverges: train_loss is 9, after 2 at first and 1 at its best"]
