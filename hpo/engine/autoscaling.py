"""Nodes that are not there yet: what the cluster's autoscaler may start if trials wait for places.

Ray tells a driver nothing of them. They are read from `HPO_MAY_START`, where that is set (JSON, e.g.
`[{"count": 4, "CPU": 8, "GPU": 1}]`: up to four nodes like this), from what the autoscaler has reported to Ray, or from
the YAML that `ray up` leaves on the head.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.state import state

from hpo.engine.cluster import nodes_alive
from hpo.errors import HpoError

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster's YAML, on the head."""
DECLARED = "HPO_MAY_START"
MOST_NODES = 1000
"""Of a kind that may be started without limit."""

Node = Mapping[str, float]


def places() -> list[Node]:
    """Resources of each node of the cluster, and of those that may come."""
    alive = nodes_alive()
    return [*alive, *still_to_come(_startable(), alive)]


def still_to_come(startable: Sequence[Node], alive: Sequence[Node]) -> list[Node]:
    """The nodes that may be started beyond those that run: one that runs takes the place of one like it."""
    running = [_form(node) for node in alive]
    waiting = []
    for node in startable:
        if _form(node) in running:
            running.remove(_form(node))
        else:
            waiting.append(node)
    return waiting


def _form(node: Node) -> tuple[float, float]:
    return node.get("CPU", 0.0), node.get("GPU", 0.0)


def _startable() -> list[Node]:
    """All nodes that the autoscaler may have at once."""
    if declared := os.environ.get(DECLARED):
        return list(declared_nodes(declared))
    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        groups = [(dict(group.resources), group.max_count) for group in config.node_group_configs]
        return [node for resources, most in groups for node in [resources] * (MOST_NODES if most < 0 else most)]
    path = BOOTSTRAP_CONFIG.expanduser()
    if not path.exists() or not _is_head():
        return []
    return list(nodes_of(yaml.safe_load(path.read_text())))


def declared_nodes(text: str) -> Iterator[Node]:
    """Resources of each node that `HPO_MAY_START` speaks of.

    Raises:
        HpoError: It is not a list of nodes.
    """
    try:
        for kind in json.loads(text):
            resources = {name: float(value) for name, value in kind.items() if name != "count"}
            yield from [resources] * int(kind["count"])
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise HpoError(
            f"{text!r} is not a list of nodes ({type(error).__name__}: {error})",
            where=DECLARED,
            remedy='e.g. [{"count": 4, "CPU": 8, "GPU": 1}]',
        ) from error


def _is_head() -> bool:
    here = ray.util.get_node_ip_address()
    return any(
        node["Alive"] and node["NodeManagerAddress"] == here and "node:__internal_head__" in node["Resources"]
        for node in ray.nodes()
    )


def nodes_of(cluster: Mapping[str, Any]) -> Iterator[Node]:
    """Resources of each worker that a cluster's YAML allows, as far as it names them."""
    left = int(cluster.get("max_workers", 0))
    for name, kind in (cluster.get("available_node_types") or {}).items():
        if name == cluster.get("head_node_type"):
            continue
        resources = {key: float(value) for key, value in (kind.get("resources") or {}).items()}
        for _ in range(min(left, int(kind.get("max_workers", left)))) if resources else ():
            left -= 1
            yield resources
