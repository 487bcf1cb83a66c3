"""From `ray up` to `ray down`, as `clusters/gpu.yaml` says: GPU hosts come for a study's trials, and go when idle."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from hpo.engine.study import LOST_NODE
from hpo.results import Store
from tests.cluster.clusters import until, until_line
from tests.cluster.conftest import ENVIRONMENT, SHOWN, Laptop, furnished
from tests.cluster.fake_ec2 import FakeEc2
from tests.cluster.hosts import finished

pytestmark = [pytest.mark.cluster(long=True), pytest.mark.integration]
_ORIGINAL = Path(__file__).parents[2] / "clusters" / "gpu.yaml"
_NOT_HERE = (".local/bin/uv", "astral.sh", "nvidia-smi", "torch.zeros")
_BUCKET = "results-of-tests"


@pytest.fixture
def cloud() -> Iterator[FakeEc2]:
    with tempfile.TemporaryDirectory(prefix="hpo-ec2-", dir="/var/tmp") as folder:
        shared, home = Path(folder) / "shared", Path(folder) / "laptop"
        shared.mkdir()
        with FakeEc2(5, Path(folder), keys=home / ".ssh", shared=shared, shown=SHOWN, environment=ENVIRONMENT) as cloud:
            yield cloud


@pytest.fixture
def laptop(cloud: FakeEc2) -> Laptop:
    return furnished(cloud.folder / "laptop", **cloud.account)


def _file_for(laptop: Laptop) -> Path:
    """The YAML, for machines of two cores and one GPU that is only told of, and which see our packages anyway."""
    told = yaml.safe_load(_ORIGINAL.read_text())
    told["idle_timeout_minutes"] = 0.2
    told["max_workers"] = 2
    told["provider"]["use_internal_ips"] = True
    told["auth"]["ssh_user"] = "root"
    told["file_mounts"] = {place: source for place, source in told["file_mounts"].items() if "auth_token" in place}
    for name, kind in told["available_node_types"].items():
        if name != told["head_node_type"]:
            kind |= {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 2}
    for name in ("setup_commands", "worker_setup_commands"):
        told[name] = [line for line in told[name] if not any(word in line for word in _NOT_HERE)]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        told[name] = [
            line.replace("ray start", "ray start --object-store-memory=80000000").replace("ulimit -n 65536; ", "")
            for line in told[name]
        ]
    file = laptop.home / "gpu.yaml"
    file.write_text(yaml.safe_dump(told, sort_keys=False))
    return file


def test_hosts_come_are_reclaimed_and_go(cloud: FakeEc2, laptop: Laptop) -> None:
    file = str(_file_for(laptop))
    network = f"{cloud.ip(0).rpartition('.')[0]}.0/24"
    laptop.run("hpo", "cluster", "prepare", file, "--ssh-from", network, "--bucket", _BUCKET, "--vpc", cloud.vpc)
    laptop.run("ray", "up", "--yes", "--no-config-cache", file)
    assert [instance["InstanceType"] for instance in cloud.instances()] == ["m7i.xlarge"]
    results = f"s3://{_BUCKET}/results?endpoint_override={cloud.endpoint}&scheme=http"
    options = ("--results", results, "--set", "per_trial.gpus=1", "--set", "sleep_s=1.0", "--trials", "32")
    store = Store(results)
    with _running(laptop, "hpo", "submit", str(laptop.study), "--cluster", file, *options) as following:
        until(lambda: len(_gpu_hosts(cloud)) == 2, within_s=120, what="GPU hosts")
        said = until_line(following, " completed: ")
        cloud.reclaim(_gpu_hosts(cloud)[0])
        said += finished(following, within_s=400)
    assert "SUCCEEDED" in said
    assert store.find_run("study")["state"] == "finished"
    failed = store.sql("SELECT detail->>'cause' AS cause FROM events WHERE kind = 'failed'").column("cause")
    assert failed.to_pylist() == [LOST_NODE], said
    until(lambda: not _gpu_hosts(cloud), within_s=180, what="idle hosts go")
    laptop.run("ray", "down", "--yes", file)
    assert not cloud.instances()
    spot = [instance.get("InstanceLifecycle") for instance in _gpu_hosts(cloud, "terminated")]
    assert spot == ["spot"] * 3, "one in place of that which was taken, and none on demand"


@contextmanager
def _running(laptop: Laptop, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command of the laptop, which ends with the context at the latest."""
    with laptop.start(*words) as process:
        try:
            yield process
        finally:
            process.kill()


def _gpu_hosts(cloud: FakeEc2, state: str = "running") -> list[dict[str, object]]:
    return [instance for instance in cloud.instances(state) if instance["InstanceType"].startswith("g6")]
