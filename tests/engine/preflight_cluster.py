"""Three nodes on one machine that differ in earnest: one in its environment and folder, one that is stopped.

Run as a program of its own, so that this Ray disturbs no other: it prints what was found as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from hpo.engine import preflight as looking
from hpo.engine import shared_storage
from hpo.engine.cluster import tell_ray
from hpo.engine.driver import Options, run
from hpo.engine.nodes import alive_nodes
from hpo.errors import HpoError
from hpo.experiment_file import load

NUM_CPUS = {"head": 1, "differs": 2, "stopped": 3}


def main(folder: Path) -> dict[str, Any]:
    """What is found on the nodes that the test prepared in a folder."""
    tell_ray()
    patient = {"health_check_failure_threshold": 10_000}  # a node that is stopped stays one that is alive
    head = {"num_cpus": NUM_CPUS["head"], "include_dashboard": False, "_system_config": patient}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    stopped = None
    try:
        os.chdir(folder / "elsewhere")
        cluster.add_node(num_cpus=NUM_CPUS["differs"], env_vars=json.loads((folder / "differs.json").read_text()))
        os.chdir(folder / "here")
        node = cluster.add_node(num_cpus=NUM_CPUS["stopped"])
        stopped = node.all_processes["raylet"][0].process.pid
        os.kill(stopped, signal.SIGSTOP)
        return _found(cluster.address, folder)
    finally:
        if stopped is not None:
            os.kill(stopped, signal.SIGCONT)
        ray.shutdown()
        cluster.shutdown()


def _found(address: str, folder: Path) -> dict[str, Any]:
    looking.BEGIN_S = 20.0
    shared_storage.WITHIN_S = 10.0
    file = load(folder / "here" / "toy_study.py")
    report = looking.preflight(file, results=folder / "results", address=address)
    ray.init(address, log_to_driver=False)
    nodes = {node.name: node for node in alive_nodes()}
    kinds = {num: kind for kind, num in NUM_CPUS.items()}
    called = {name: kinds[int(node.num_cpus)] for name, node in nodes.items()} | {"driver": "driver"}
    answering = [node for name, node in nodes.items() if called[name] != "stopped"]
    options = Options(results=folder / "never", cache_dir=folder / "cache")
    return {
        "checks": {
            check.name: {
                called[name]: [finding.state.name, finding.sentence] for name, finding in check.findings.items()
            }
            for check in report.checks
        },
        "called": called,
        # Every process has a folder of this name, and it is its own: results that are local to a node.
        "local": _error(lambda: shared_storage.check_storage("/proc/self/cwd/results", answering)),
        "shared": _error(lambda: shared_storage.check_storage(str(folder / "results"), answering)),
        "run": _error(lambda: run(file, options, watcher=None)),  # type: ignore[arg-type]  # it is not reached
    }


def _error(do: Callable[[], object]) -> str:
    try:
        do()
    except HpoError as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(Path(sys.argv[1]))) + "\n")
