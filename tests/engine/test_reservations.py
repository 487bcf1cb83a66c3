from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import ray
from ray.air.execution import ResourceRequest

from hpo.engine import reservations
from hpo.engine.reservations import Reservations

pytestmark = pytest.mark.integration
ONE = ResourceRequest([{"CPU": 1.0}])
TOO_MUCH = ResourceRequest([{"CPU": 1000.0}])


def free() -> float:
    return float(ray.available_resources().get("CPU", 0))


def groups() -> set[str]:
    table = ray.util.placement_group_table()
    return {group for group, known in table.items() if known["state"] != "REMOVED"}


def within(seconds: float, true: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def given_back(held: Reservations) -> bool:
    held.update_state()
    return not groups()


@pytest.fixture
def held(ray_cluster: None) -> Iterator[Reservations]:
    assert within(30, lambda: not groups())  # the last run's processes have ended
    one = Reservations(update_interval_s=0.0)
    yield one
    one.clear()
    assert within(10, lambda: not groups())


def test_what_is_taken_back_at_once_is_not_lost(held: Reservations) -> None:
    before = free()
    for each in range(80):
        held.request_resources(ONE)
        time.sleep(0.00005 * each)
        held.cancel_resource_request(ONE)
        held.clear()
    assert within(10, lambda: free() >= before)


def test_what_is_not_wanted_serves_the_next(held: Reservations) -> None:
    held.request_resources(ONE)
    asked = groups()
    held.cancel_resource_request(ONE)
    held.request_resources(ONE)
    assert groups() == asked
    assert within(10, lambda: held.has_resources_ready(ONE))
    acquired = held.acquire_resources(ONE)
    assert acquired is not None
    assert {acquired.placement_group.id.hex()} == asked
    held.free_resources(acquired)
    assert within(10, lambda: not groups())


def test_what_came_and_is_not_wanted_is_given_back(held: Reservations) -> None:
    held.request_resources(ONE)
    assert within(10, lambda: held.has_resources_ready(ONE))
    held.request_resources(ONE)
    held.cancel_resource_request(ONE)  # the one that is not known to have come
    held.cancel_resource_request(ONE)
    assert within(10, lambda: given_back(held))


def test_what_cannot_come_is_given_back(held: Reservations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "SETTLED_S", 0.2)
    held.request_resources(TOO_MUCH)
    held.cancel_resource_request(TOO_MUCH)
    assert len(groups()) == 1
    assert within(10, lambda: given_back(held))


def test_no_longer_than_patience_while_others_come_and_go(held: Reservations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "PATIENCE_S", 0.2)
    held.request_resources(TOO_MUCH)
    held.cancel_resource_request(TOO_MUCH)
    time.sleep(0.3)
    held.request_resources(ONE)  # something stirs
    held.update_state()
    assert within(10, lambda: len(groups()) == 1)
