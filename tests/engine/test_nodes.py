"""Who the nodes are, and what they answer."""

from __future__ import annotations

import os
import time

import pytest

from hpo.engine.findings import Seen
from hpo.engine.nodes import Node, alive_nodes, answers


def test_a_node_without_cores_and_gpus_runs_no_trials() -> None:
    assert not Node("id", "head", "10.0.0.1").runs_trials
    assert Node("id", "worker", "10.0.0.2", num_cpus=1).runs_trials
    assert Node("id", "worker", "10.0.0.2", num_gpus=1).runs_trials


@pytest.mark.integration
def test_answers_errors_and_silence(ray_cluster: None) -> None:
    import ray

    [node] = alive_nodes()
    assert node.name.endswith(f"({node.address})")

    def fails() -> None:
        raise ValueError("first line\nlast line")

    def dies() -> None:
        os._exit(1)

    calls = {"good": lambda: 3, "fails": fails, "silent": lambda: time.sleep(60), "dies": dies}
    refs = {name: ray.remote(max_retries=0)(call).options(**node.here).remote() for name, call in calls.items()}
    said = answers({name: refs[name] for name in ("good", "fails", "dies")}, within_s=60)
    assert said["good"] == 3
    assert said["fails"] == Seen(problem="it cannot be asked: last line", short="no answer")
    assert said["dies"].problem.startswith("it cannot be asked: ")
    late = answers({"silent": refs["silent"]}, within_s=0.1)
    assert late == {"silent": Seen(problem="no answer within 0.1 s", short="no answer")}
    ray.cancel(refs["silent"], force=True)
    gone = Node("0" * 55 + "1", "gone", "10.0.0.9")
    said = answers({"gone": ray.remote(max_retries=0)(fails).options(**gone.here).remote()}, within_s=60)
    assert "doesn't exist" in said["gone"].problem
    assert answers({}, within_s=1) == {}
