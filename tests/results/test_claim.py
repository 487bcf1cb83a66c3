"""Claims on a run: at most one driver holds it, a dead one is succeeded, one that was cut off learns of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpo.errors import RunLocked
from hpo.results.claim import Claim, Pace, claims_of, last_owner, read_claims, running_s
from hpo.storage import LocalStorage, Storage, storage_at

PACE = Pace(settle_s=0.05, renew_s=0.04, stale_s=1000.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return storage_at(str(tmp_path / "bucket"))


def claim(storage: Storage, pace: Pace = PACE) -> Claim:
    return Claim(storage, "e", "r", pace=pace)


def held(storage: Storage, pace: Pace = PACE) -> Claim:
    made = claim(storage, pace)
    made.take()
    made.hold()
    return made


@contextmanager
def living(driver: Claim) -> Iterator[None]:
    """The driver gives signs of life as long as the context lasts."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            driver.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    yield
    ended.set()
    thread.join()


def names(storage: Storage) -> list[str]:
    return [stored.name for stored in storage.below("drivers")]


def test_the_first_has_nobody_before_it(storage: Storage) -> None:
    first = claim(storage)
    assert first.take() is None
    first.hold()
    assert first.owner.term == 1
    assert names(storage) == [f"drivers/e/r/{first.token}.json"]


def test_a_living_driver_is_named(storage: Storage) -> None:
    first = held(storage)
    who = rf"run r: process {first.owner.pid} on \S+ drives it since .* UTC; it was heard of \d+ s ago"
    with living(first), pytest.raises(RunLocked, match=rf"(?s){who}.*hpo stop r.*counts as dead 1000 s after"):
        claim(storage).take()
    assert names(storage) == [f"drivers/e/r/{first.token}.json"]


def test_one_that_gives_no_sign_of_life_is_waited_for_and_succeeded(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    first = held(storage)
    assert claim(storage, Pace(settle_s=0.0, renew_s=0.04, stale_s=0.5)).take() == first.owner
    assert f"process {first.owner.pid} on " in caplog.text
    assert "it is waited for a sign of life" in caplog.text


def test_one_that_asked_first_is_waited_for_until_it_withdraws(storage: Storage) -> None:
    first = claim(storage)
    assert first.take() is None
    threading.Timer(0.2, first.withdraw).start()
    assert claim(storage).take() is None


def test_a_released_run_is_free_at_once(storage: Storage) -> None:
    first = held(storage)
    first.release()
    second = claim(storage)
    assert second.take() == first.owner
    second.hold()
    assert second.owner.term == 2
    assert names(storage) == [f"drivers/e/r/{second.token}.json"]


def test_one_that_is_known_to_be_dead_is_succeeded_at_once(storage: Storage) -> None:
    first = held(storage)
    assert claim(storage).take(dead=[first.token]) == first.owner


def test_one_that_was_not_heard_of_is_succeeded_and_learns_of_it(storage: Storage) -> None:
    first = held(storage)
    patient = Pace(settle_s=0.05, stale_s=0.01)
    second = claim(storage, patient)
    assert second.take() == first.owner
    second.hold()
    with pytest.raises(RunLocked, match=r"(?s)has taken the run over, since this driver could not be heard of.*left"):
        first.renew()
    second.renew()


def test_of_many_at_once_one_holds_it(storage: Storage) -> None:
    outcomes: list[object] = []
    begin = threading.Barrier(6)

    def drive() -> None:
        mine = claim(storage, Pace(settle_s=0.5, renew_s=0.4))
        begin.wait()
        try:
            mine.take()
            mine.hold()
            outcomes.append(mine.token)
            while len(outcomes) < len(threads):
                time.sleep(0.05)
                mine.renew()
        except RunLocked as error:
            outcomes.append(error)

    threads = [threading.Thread(target=drive) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert names(storage) == [f"drivers/e/r/{winner}.json"]


class Refusing(LocalStorage):
    """A bucket that carries out what it is asked for, and says that it did not."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.refused = ""
        self.before_held: list[Claim] = []

    def write(self, name: str, data: bytes) -> None:
        if b'"held"' in data and self.before_held:
            self.before_held.pop().hold()
        super().write(name, data)
        if self.refused and self.refused.encode() in data:
            raise OSError("no answer")

    def delete(self, name: str) -> None:
        super().delete(name)
        if self.refused == "delete":
            raise OSError("no answer")
        if self.refused == "end":
            raise KeyboardInterrupt


@pytest.fixture
def refusing(tmp_path: Path) -> Refusing:
    return Refusing(tmp_path / "bucket")


def test_a_refusal_to_delete_old_claims_does_not_keep_the_next_from_holding_the_run(refusing: Refusing) -> None:
    held(refusing).release()
    refusing.refused = "delete"
    second = held(refusing)
    assert (second.owner.state, names(refusing)) == ("held", [f"drivers/e/r/{second.token}.json"])


def test_one_that_could_not_come_to_hold_the_run_leaves_it_to_the_one_before(refusing: Refusing) -> None:
    first = held(refusing)
    refusing.refused = '"held"'  # though it is written
    second = claim(refusing)
    second.take(dead=[first.token])
    with pytest.raises(OSError, match="no answer"):
        second.hold()
    second.withdraw()
    assert names(refusing) == [f"drivers/e/r/{first.token}.json"]
    refusing.refused = ""
    first.renew()


def test_one_that_was_ended_while_it_came_to_hold_the_run_leaves_its_claim(refusing: Refusing) -> None:
    held(refusing).release()
    second = claim(refusing)
    second.take()
    refusing.refused = "end"
    with pytest.raises(KeyboardInterrupt):
        second.hold()
    second.withdraw()
    assert names(refusing) == [f"drivers/e/r/{second.token}.json"]
    assert (second.owner.term, second.owner.state) == (2, "released")


def test_one_that_took_too_long_does_not_hold_what_another_does(storage: Storage) -> None:
    slow, quick = claim(storage), claim(storage)
    slow.take()
    quick.take(dead=[slow.token])
    quick.hold()
    for late in (slow.renew, slow.hold):
        with pytest.raises(RunLocked, match="has taken the run over"):
            late()
    slow.withdraw()
    quick.renew()
    assert names(storage) == [f"drivers/e/r/{quick.token}.json"]


def test_of_two_that_come_to_hold_it_in_one_moment_the_one_that_asked_first_does(refusing: Refusing) -> None:
    early, late = claim(refusing), claim(refusing)
    early.take()
    late.take(dead=[early.token])
    refusing.before_held = [early]  # between the look of the late one and its claim
    with pytest.raises(RunLocked, match="has taken the run over"):
        late.hold()
    late.withdraw()
    early.renew()
    assert names(refusing) == [f"drivers/e/r/{early.token}.json"]


def test_forgotten_questions_are_removed(storage: Storage) -> None:
    claim(storage).take()
    made = held(storage, Pace(settle_s=0.05, stale_s=0.01))
    assert names(storage) == [f"drivers/e/r/{made.token}.json"]


def test_a_machine_that_slept_has_not_stood_still() -> None:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert now <= running_s() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_what_is_no_claim_is_passed_over(storage: Storage) -> None:
    storage.write("drivers/e/r/odd.json", b"not a claim")
    first = held(storage)
    assert [owner for _, owner in read_claims(storage, claims_of("e", "r"))] == [first.owner]


def test_the_last_driver_is_that_of_the_newest_term(storage: Storage) -> None:
    first = held(storage)
    first.release()
    second = held(storage)
    assert last_owner([second.owner, first.owner, claim(storage).owner]) == second.owner
    assert last_owner([]) is None
