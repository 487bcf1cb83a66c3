"""A cluster that is nothing but a head until trials wait: nodes come for them, and go when idle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from hpo.engine.autoscaling import BOOTSTRAP_CONFIG
from hpo.results import Store
from tests.cluster.clusters import PORT, until
from tests.cluster.conftest import Laptop
from tests.cluster.hosts import Hosts

pytestmark = [pytest.mark.cluster, pytest.mark.integration]


def _autoscaler(head: str) -> dict[str, Any]:
    """The settings that `ray up` leaves on a head, of nodes that are processes beside it."""
    provider = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
    lists = ("cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands")
    lists += ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return {
        **{name: [] for name in lists},
        "auth": {},
        "file_mounts": {},
        "cluster_name": "from-zero",
        "max_workers": 2,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "external",
            "module": provider,
            "gcs_address": f"{head}:{PORT}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
    }


@pytest.fixture
def head(hosts: Hosts) -> Iterator[int]:
    """A host that is a head without a core for trials, and may start nodes."""
    host = 0
    settings = json.dumps(_autoscaler(hosts.ip(host)))
    hosts.run(host, f"echo '{settings}' > {BOOTSTRAP_CONFIG}")
    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    words = " ".join(f"{name}={value}" for name, value in environment.items())
    hosts.run(
        host,
        f"ulimit -c 0; {words} ray start --head --port={PORT} --num-cpus=0 --num-gpus=0 --include-dashboard=false "
        f"--object-store-memory=80000000 --autoscaling-config={BOOTSTRAP_CONFIG}",
    )
    try:
        yield host
    finally:
        hosts.run(host, f"rm {BOOTSTRAP_CONFIG}")  # else a later driver here waits for these nodes
        hosts.power_off(host)
        hosts.power_on(host)


def test_nodes_come_for_pending_trials_and_go_when_idle(head: int, hosts: Hosts, laptop: Laptop) -> None:
    folder = hosts.shared / "from-zero"
    shutil.copytree(laptop.study.parent, folder)
    assert _nodes(hosts, head) == 1
    run = "python -m hpo.run study.py --address auto --results results --trials 6"
    said = hosts.run(head, f"cd {folder} && RAY_AUTH_MODE=disabled {run}", within_s=240)
    store = Store(folder / "results")
    assert store.find_run("study")["state"] == "finished", said
    # Here both nodes unpack the code into one folder, so that the later may pull it from under the earlier's trial.
    failed = store.sql("SELECT detail->>'cause' AS cause FROM events WHERE kind = 'failed'").column("cause")
    assert set(failed.to_pylist()) <= {"error"}, said
    assert int(hosts.run(head, "ls /tmp/ray/session_latest/logs/raylet.*.out | wc -l")) == 2
    until(lambda: _nodes(hosts, head) == 1, within_s=120, what="idle nodes go")


def _nodes(hosts: Hosts, head: int) -> int:
    """So many nodes run: each is a process of this name."""
    return int(hosts.run(head, "pgrep --count --exact raylet"))
