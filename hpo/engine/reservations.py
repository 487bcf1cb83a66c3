"""Tune's requests for resources, given back in a way that Ray does not lose them.

Ray 2.60 forgets what it has set aside for a placement group that is removed in the moment between "prepared" and
"committed": the cores or GPUs stay taken until the node goes. Tune asks for a group for every trial and takes it back
as soon as a trial goes on in a process that is there already, often within milliseconds: precisely that moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.air.execution.resources.placement_group import PlacementGroupResourceManager
from ray.tune.execution import tune_controller
from ray.util import remove_placement_group

SETTLED_S = 1.0
"""A group that has not come so long after resources became free does not come: there is no room for it."""
PATIENCE_S = 5.0
"""No longer than this is a group kept that nobody wants: an autoscaler would start a node for it."""


@dataclass(frozen=True)
class _Unwanted:
    request: Any
    ready: ray.ObjectRef[Any]
    since: float


class Reservations(PlacementGroupResourceManager):  # type: ignore[misc]  # Ray has no types there
    """Placement groups for Tune's requests; one that is not wanted any more serves the next request that it fits.

    It is removed when it has come, or when it is plain that it does not.
    """

    def __init__(self, update_interval_s: float = 0.1) -> None:
        super().__init__(update_interval_s)
        self._unwanted: dict[Any, _Unwanted] = {}
        self._stirred = time.monotonic()

    def request_resources(self, resource_request: Any) -> None:
        """Ask for them, or go on waiting for those that were asked for before."""
        group = next((pg for pg, one in self._unwanted.items() if one.request == resource_request), None)
        if group is None:
            self._stirred = time.monotonic()
            super().request_resources(resource_request)
            return
        ready = self._unwanted.pop(group).ready
        self._pg_to_request[group] = resource_request
        self._request_to_staged_pgs[resource_request].add(group)
        self._staging_future_to_pg[ready] = group
        self._pg_to_staging_future[group] = ready

    def cancel_resource_request(self, resource_request: Any) -> None:
        """Take one request for them back."""
        staged = self._request_to_staged_pgs[resource_request]
        if not staged:
            super().cancel_resource_request(resource_request)
            return
        group = staged.pop()
        ready = self._pg_to_staging_future.pop(group)
        self._staging_future_to_pg.pop(ready)
        self._pg_to_request.pop(group)
        self._unwanted[group] = _Unwanted(resource_request, ready, time.monotonic())

    def free_resources(self, acquired_resource: Any) -> None:
        """Give back what an actor has used."""
        self._stirred = time.monotonic()
        super().free_resources(acquired_resource)

    def update_state(self) -> None:
        """Learn which groups have come, and give back what nobody wants."""
        super().update_state()
        self._give_back()

    def clear(self) -> None:
        """Give everything back."""
        if not ray.is_initialized():
            return
        for request, staged in self._request_to_staged_pgs.items():
            for _ in range(len(staged)):
                self.cancel_resource_request(request)
        while self._give_back():
            ray.wait([one.ready for one in self._unwanted.values()], timeout=0.05)
        super().clear()

    def _give_back(self) -> int:
        """Remove the groups that can be; the number of those that are left."""
        now = time.monotonic()
        settled = now - self._stirred > SETTLED_S
        for group, one in list(self._unwanted.items()):
            came, _ = ray.wait([one.ready], timeout=0)
            if came or settled or now - one.since > PATIENCE_S:
                del self._unwanted[group]
                if not came:
                    ray.cancel(one.ready)
                remove_placement_group(group)
        return len(self._unwanted)


def reserve_safely() -> None:
    """Have Tune reserve through `Reservations`. Calling this twice changes nothing."""
    tune_controller.PlacementGroupResourceManager = Reservations
