"""From `ray up` to `ray down`, as `clusters/local.yaml` says: a study over head and two workers, submitted as a job."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hpo.results import Store
from tests.cluster.clusters import by_ray_up, until_line
from tests.cluster.conftest import Laptop
from tests.cluster.hosts import Hosts, finished

pytestmark = [pytest.mark.cluster, pytest.mark.integration]


@pytest.fixture(scope="module")
def cluster(hosts: Hosts, laptop: Laptop) -> Iterator[Path]:
    with by_ray_up(hosts, laptop, Path(__file__).parents[2] / "clusters" / "local.yaml") as file:
        yield file


def test_a_job_is_left_alone_and_comes_back_to(cluster: Path, hosts: Hosts, laptop: Laptop) -> None:
    results = hosts.shared / "submitted"
    submit = ("hpo", "submit", str(laptop.study), "--cluster", str(cluster), "--results", str(results))
    following = laptop.start(*submit, "--trials", "110")  # long enough for the slowest host to take part
    said = until_line(following, "first epochs under way")
    following.send_signal(signal.SIGINT)  # the laptop is closed
    said += finished(following, within_s=60)
    assert "hpo attach study-" in said
    again = laptop.run("hpo", "attach", "study")
    assert "run " in again
    assert "SUCCEEDED" in again
    store = Store(results)
    run = store.find_run("study")
    assert run["state"] == "finished"
    nodes = {row["node"] for row in store.sql("SELECT DISTINCT node FROM reports").to_pylist()}
    assert nodes == {hosts.name(host) for host in range(3)}
    listed = laptop.run("hpo", "jobs")
    assert run["run_id"] in listed


def test_a_job_is_stopped_softly(cluster: Path, hosts: Hosts, laptop: Laptop) -> None:
    results = hosts.shared / "stopped"
    following = laptop.start(
        "hpo", "submit", str(laptop.study), "--trials", "500", "--results", str(results), "--cluster", str(cluster)
    )
    said = until_line(following, "first epochs under way")
    _cut_tunnels(hosts)
    said += until_line(following, "trying again")
    laptop.run("hpo", "jobs", "--stop", "study")
    rest, _ = following.communicate(timeout=120)
    assert following.returncode == 130, said + rest
    assert "STOPPED" in rest
    assert (said + rest).count(" begins on toy") == 1  # what was shown is not shown again
    assert Store(results).find_run("study")["state"] == "interrupted"


def _cut_tunnels(hosts: Hosts) -> None:
    """End the connections to the head: those of SSH's own background process, which several commands share."""
    ours = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.raddr and (connection.raddr.ip, connection.raddr.port) == (hosts.ip(0), 22) and connection.pid
    }
    for pid in ours:
        psutil.Process(pid).kill()
