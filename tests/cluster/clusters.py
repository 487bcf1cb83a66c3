"""Ray on the pretended hosts: by `ray up`, and by hand."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.cluster.hosts import Hosts, finished

if TYPE_CHECKING:
    from tests.cluster.conftest import Laptop

PORT = 6379
_SMALL = "--num-cpus=1 --num-gpus=0 --object-store-memory=80000000"
_NOTICED_SOON = (
    "RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=500 RAY_health_check_timeout_ms=1500 "
    "RAY_health_check_failure_threshold=3"
)
_NOT_HERE = (".local/bin/uv", "astral.sh")


def until(true: Callable[[], Any], *, within_s: float, what: str) -> Any:
    """The first true answer.

    Raises:
        TimeoutError: It takes longer.
    """
    end = time.monotonic() + within_s
    while not (answer := true()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {within_s} s")
        time.sleep(0.5)
    return answer


def until_line(process: subprocess.Popen[str], words: str, *, within_s: float = 120.0) -> str:
    """What the process prints, up to a line with these words.

    Raises:
        AssertionError: It ends without, or prints for longer.
    """
    assert process.stdout is not None
    said, end = "", time.monotonic() + within_s
    for line in process.stdout:
        said += line
        if words in line:
            return said
        assert time.monotonic() < end, said
    raise AssertionError(said)


def nodes_of(hosts: Hosts) -> list[str]:
    """Addresses of the nodes alive, as the head tells them."""
    ask = "from ray.util.state import list_nodes; found = list_nodes(filters=[('state', '=', 'ALIVE')]); "
    ask += "print('NODES', *(node.node_ip for node in found))"
    said = hosts.run(0, f'RAY_AUTH_MODE=token python -c "{ask}"')
    return next(line for line in said.splitlines() if line.startswith("NODES")).split()[1:]


def file_for(hosts: Hosts, laptop: Laptop, original: Path) -> Path:
    """A YAML of `clusters/` with these hosts' addresses and key, less the installation of what they see anyway."""
    told = yaml.safe_load(original.read_text())
    told["cluster_name"] = hosts.name(0)
    told["provider"] |= {"head_ip": hosts.ip(0), "worker_ips": [hosts.ip(1), hosts.ip(2)]}
    told["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    told["file_mounts"] = {place: source for place, source in told["file_mounts"].items() if "auth_token" in place}
    told["setup_commands"] = [line for line in told["setup_commands"] if not any(word in line for word in _NOT_HERE)]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        told[name] = [
            line.replace("ray start", f"ray start {_SMALL}") if " start " in line else line for line in told[name]
        ]
    file = laptop.home / "clusters" / original.name
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(told, sort_keys=False))
    return file


@contextmanager
def by_ray_up(hosts: Hosts, laptop: Laptop, original: Path) -> Iterator[Path]:
    """The YAML of a cluster that is up, with all of its nodes; `ray down` and a cut of the power end it."""
    file = file_for(hosts, laptop, original)
    laptop.run("ray", "up", "--yes", "--no-config-cache", str(file))
    try:
        until(lambda: len(nodes_of(hosts)) == 3, within_s=120, what="all nodes")
        yield file
        laptop.run("ray", "down", "--yes", str(file))
    finally:
        for host in range(hosts.number):
            hosts.power_off(host)
            hosts.power_on(host)


def give_token(hosts: Hosts, host: int, token: str) -> None:
    """Let a host have the cluster's token."""
    hosts.run(host, f"umask 077; mkdir -p ~/.ray; echo {token} > ~/.ray/auth_token")


def start_worker(hosts: Hosts, host: int) -> None:
    """Have a host join the head's cluster."""
    hosts.run(host, f"ray stop --force; {_join(hosts)}")


def _join(hosts: Hosts) -> str:
    return f"ulimit -c 0; RAY_AUTH_MODE=token ray start --address={hosts.ip(0)}:{PORT} {_SMALL}"


@contextmanager
def by_hand(hosts: Hosts, token: str) -> Iterator[None]:
    """A cluster of all hosts for as long as the context lasts, whose head notices soon that a node is gone."""
    for host in range(hosts.number):
        give_token(hosts, host, token)
    start = f"ulimit -c 0; RAY_AUTH_MODE=token {_NOTICED_SOON} ray start {_SMALL}"
    try:
        hosts.run(0, f"{start} --head --port={PORT} --include-dashboard=false")
        joining = [hosts.start(host, _join(hosts)) for host in range(1, hosts.number)]
        for process in joining:
            finished(process, within_s=120)
        yield
    finally:
        for host in range(hosts.number):
            hosts.power_off(host)
            hosts.power_on(host)
