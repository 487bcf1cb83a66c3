"""The dry run that `ray up` lacks: Ray's own bootstrap of clusters/gpu.yaml, and its launches, against moto."""

from __future__ import annotations

import copy
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo.engine.prepare_aws import Wanted, prepare
from tests.engine.cluster_file.conftest import loaded

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")
pytestmark = pytest.mark.integration


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """EC2 of a pretended account, and a home for the key that Ray makes."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with moto.mock_aws():
        yield boto3.client("ec2", region_name="us-west-2")


def bootstrapped(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray makes of the file before it launches anything."""
    from ray.autoscaler._private.aws import utils
    from ray.autoscaler._private.commands import _bootstrap_config

    utils.resource_cache.cache_clear()  # clients of an account pretended earlier
    return dict(_bootstrap_config(copy.deepcopy(config), no_config_cache=True))


def launch(ready: dict[str, Any]) -> None:
    """Launch one machine of each type, as Ray does."""
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import (
        TAG_RAY_NODE_KIND,
        TAG_RAY_NODE_NAME,
        TAG_RAY_NODE_STATUS,
        TAG_RAY_USER_NODE_TYPE,
    )

    provider = _get_node_provider(ready["provider"], ready["cluster_name"], use_cache=False)
    for name, node_type in ready["available_node_types"].items():
        kind = "head" if name == ready["head_node_type"] else "worker"
        tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name, TAG_RAY_NODE_NAME: name}
        provider.create_node(copy.deepcopy(node_type["node_config"]), tags | {TAG_RAY_NODE_STATUS: "uninitialized"}, 1)


def machines(ec2: Any) -> dict[str, dict[str, Any]]:
    found = [each for row in ec2.describe_instances()["Reservations"] for each in row["Instances"]]
    return {next(tag["Value"] for tag in each["Tags"] if tag["Key"] == "ray-user-node-type"): each for each in found}


def test_ray_launches_what_the_file_means(ec2: Any, tmp_path: Path) -> None:
    wanted = Wanted.of_file(loaded("gpu.yaml"), ssh_from="203.0.113.0/24", bucket="results", vpc=None)
    list(prepare(wanted))
    before = ec2.describe_security_groups()["SecurityGroups"]
    ready = bootstrapped(loaded("gpu.yaml"))
    launch(ready)
    found = machines(ec2)
    assert {name: each["InstanceType"] for name, each in found.items()} == {
        "head.cpu": "m7i.xlarge",
        "gpu.spot": "g6.12xlarge",
        "gpu.ondemand": "g6.12xlarge",
    }
    assert {name for name, each in found.items() if each.get("InstanceLifecycle") == "spot"} == {"gpu.spot"}
    assert ec2.describe_security_groups()["SecurityGroups"] == before, "Ray made or changed a group"
    for name, machine in found.items():
        assert machine["IamInstanceProfile"]["Arn"].endswith("instance-profile/hpo-ray-node"), name
        assert [each["GroupName"] for each in machine["SecurityGroups"]] == ["hpo-gpu"], name
        assert machine["MetadataOptions"]["HttpTokens"] == "required", name
    for volume in ec2.describe_volumes()["Volumes"]:
        assert (volume["Encrypted"], volume["Size"], volume["VolumeType"]) == (True, 150, "gp3")
    _no_secret_in(ready, tmp_path)
    _gpus_as_described(ec2, ready)


def _no_secret_in(ready: dict[str, Any], home: Path) -> None:
    """The file names the token and the key, and holds neither; the key is for its owner alone."""
    text = json.dumps(ready)
    place = "~/.ray/auth_token"
    assert ready["file_mounts"][place] == place
    assert "PRIVATE KEY" not in text
    assert "testing" not in text
    [key] = (home / ".ssh").glob("*.pem")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def _gpus_as_described(ec2: Any, ready: dict[str, Any]) -> None:
    for name, node_type in ready["available_node_types"].items():
        kind = node_type["node_config"]["InstanceType"]
        [described] = ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
        gpus = sum(gpu["Count"] for gpu in described.get("GpuInfo", {}).get("Gpus", []))
        assert node_type["resources"].get("GPU", 0) == gpus, name


def test_a_group_that_ray_makes_is_open_to_the_world(ec2: Any) -> None:
    """Why the check refuses a file that names none."""
    config = loaded("gpu.yaml")
    del config["provider"]["security_group"]
    bootstrapped(config)
    groups = {each["GroupName"]: each for each in ec2.describe_security_groups()["SecurityGroups"]}
    rules = groups["ray-autoscaler-hpo-gpu"]["IpPermissions"]
    assert [each["CidrIp"] for rule in rules for each in rule["IpRanges"]] == ["0.0.0.0/0"]
