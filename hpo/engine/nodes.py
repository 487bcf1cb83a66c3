"""The nodes of a cluster one by one: who they are, and what each of them answers to a call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hpo.engine.findings import Seen


@dataclass(frozen=True)
class Node:
    """One node that is alive.

    Attributes:
        node_id: Ray's name of it.
        name: What people are told: host name and address, and the beginning of `node_id` where that is not enough.
        address: Its IP address, as the other nodes know it.
        num_cpus: Cores that Ray counts on it.
        num_gpus: GPUs that Ray counts on it.
    """

    node_id: str
    name: str
    address: str
    num_cpus: float = 0
    num_gpus: int = 0

    @property
    def runs_trials(self) -> bool:
        """Whether a trial can be placed on it."""
        return self.num_cpus > 0 or self.num_gpus > 0

    @property
    def here(self) -> dict[str, Any]:
        """Ray's options for what has to run on this node or nowhere, and takes nothing from trials."""
        place = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        return {"scheduling_strategy": place, "num_cpus": 0, "num_gpus": 0}


def alive_nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to, by name."""
    found = [node for node in ray.nodes() if node["Alive"]]
    names = [f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in found]
    several = {name for name, count in Counter(names).items() if count > 1}
    nodes = [
        Node(
            node["NodeID"],
            f"{name[:-1]}, {node['NodeID'][:6]})" if name in several else name,
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            int(node["Resources"].get("GPU", 0)),
        )
        for node, name in zip(found, names, strict=True)
    ]
    return sorted(nodes, key=lambda node: node.name)


def answers(calls: Mapping[str, Any], *, within_s: float) -> dict[str, Any]:
    """What each node's call returns; a `Seen` with a problem where it raises, or takes longer than `within_s`."""
    refs: Sequence[Any] = list(calls.values())
    done = set(ray.wait(refs, num_returns=len(refs), timeout=within_s)[0]) if refs else set()
    late = Seen(problem=f"no answer within {within_s:g} s", short="no answer")
    return {node: _answer(ref) if ref in done else late for node, ref in calls.items()}


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except Exception as error:  # noqa: BLE001 - a node that cannot be asked is what is looked for
        cause = error.cause if isinstance(error, RayTaskError) else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return Seen(problem=f"it cannot be asked: {lines[-1] if lines else type(cause).__name__}", short="no answer")
