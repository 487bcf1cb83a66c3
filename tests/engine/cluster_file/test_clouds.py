"""Files of `ray up` for AWS and Google Cloud."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.engine.cluster_file import Report
from hpo.engine.cluster_file.machines import AWS, GCP, Rented, bounds
from tests.engine.cluster_file.conftest import CLUSTERS, changed, errors, loaded, notes

Checked = Callable[..., Report]
SPOT = "available_node_types__gpu.spot__"
NODE = f"{SPOT}node_config__"
GCP_SPOT = "available_node_types__gpu_spot__node_config__"


@pytest.fixture
def google() -> str:
    """The text of clusters/gcp.yaml, filled in."""
    return (CLUSTERS / "gcp.yaml").read_text().replace("YOUR-PROJECT", "a-project")


def test_gpu_yaml_is_accepted_and_costs_what_its_head_says(checked: Checked) -> None:
    text = (CLUSTERS / "gpu.yaml").read_text()
    report = checked(text)
    assert (errors(report), notes(report), report.kind) == ([], [], "Ray cluster on aws")
    assert report.costs is not None
    assert f"${report.costs.idle:.2f} an hour while nothing runs" in text
    assert f"at most ${report.costs.most:.2f}" in text
    assert re.search(r"^\$0\.22 an hour while nothing runs, at most \$18\.69 \(list prices", str(report.costs))


def test_gcp_yaml_is_accepted_and_costs_what_its_head_says(checked: Checked, google: str) -> None:
    report = checked(google)
    assert (errors(report), notes(report), report.kind) == ([], [], "Ray cluster on gcp")
    assert report.costs is not None
    assert f"${report.costs.idle:.2f} an hour while nothing runs" in google
    assert f"at most ${report.costs.most:.2f}" in google


def test_gcp_yaml_as_it_is_asks_for_the_project(checked: Checked) -> None:
    [error] = errors(checked((CLUSTERS / "gcp.yaml").read_text()))
    assert re.search("project_id: YOUR-PROJECT is an example", error)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"provider__regon": "x"}, r"provider\.regon: .* nobody\n  did you mean region\?"),
        ({"provider__region": ...}, r"provider\.region: not given"),
        ({"provider__cache_stopped_nodes": ...}, "stopped machines are kept, and their disks paid for"),
        (
            {"provider__security_group": ...},
            r"provider\.security_group: not given: Ray makes a group that opens port 22",
        ),
        (
            {"provider__security_group": {"GroupName": "x", "IpPermissions": []}},
            "rules that stand here are added to a group of Ray's",
        ),
        ({"idle_timeout_minutes": ...}, "idle_timeout_minutes: not given"),
        ({"max_workers": ...}, "max_workers: not given, so Ray allows 2"),
        ({"setup_commands": ...}, "setup_commands: not given, so Ray installs packages of its own choice"),
        ({"head_start_ray_commands": ...}, "head_start_ray_commands: no command starts Ray"),
        ({"head_node_type": "none"}, "Ray refuses it: `head_node_type` must be one of `available_node_types`"),
        ({f"{SPOT}resources__GPU": 8}, r"gpu\.spot\.resources\.GPU: 8 claimed, but g6\.12xlarge has 4 L4"),
        ({f"{SPOT}resources__CPU": 64}, r"resources\.CPU: 64 claimed, but g6\.12xlarge has 48 cores"),
        ({f"{NODE}InstanceType": "m7i.xlarge"}, r"resources\.GPU: 4 claimed, but m7i\.xlarge has no GPU"),
        ({f"{NODE}InstanceType": ...}, r"node_config\.InstanceType: not given"),
        (
            {f"{NODE}InstanceType": "g6.xlarge", f"{SPOT}resources": {"CPU": 4, "GPU": 1}},
            "the GPU workers have 2 different shapes",
        ),
        ({f"{SPOT}priority": 0}, "spot machines are not taken before those on demand"),
        ({f"{NODE}IamInstanceProfile": ...}, r"IamInstanceProfile: not given: the node can reach no S3"),
        ({f"{NODE}ImageId": ...}, r"ImageId: not given: Ray's default image is of Ubuntu 18\.04"),
        ({f"{NODE}MetadataOptions__HttpTokens": "optional"}, r"HttpTokens: the node's credentials can be read"),
        ({f"{NODE}BlockDeviceMappings__0__Ebs__Encrypted": ...}, r"\[0\]\.Ebs\.Encrypted: the disk is not encrypted"),
        ({f"{NODE}BlockDeviceMappings": ...}, "BlockDeviceMappings: not given"),
        ({f"{NODE}InstanceTyp": "x"}, 'EC2 would refuse it: Unknown parameter in input: "InstanceTyp"'),
        ({f"{NODE}MetadataOptions__HttpTokn": "x"}, 'EC2 would refuse it: Unknown parameter in MetadataOptions: "Htt'),
        ({f"{NODE}BlockDeviceMappings__0__Ebs__VolumeSize": "150"}, "EC2 would refuse it: Invalid type for parameter"),
    ],
)
def test_aws_says(checked: Checked, change: dict[str, Any], says: str) -> None:
    found = "\n".join(errors(checked(changed(loaded("gpu.yaml"), **change))))
    assert re.search(says, found), found


def test_a_cluster_without_workers(checked: Checked) -> None:
    config = loaded("gpu.yaml")
    del config["available_node_types"]["gpu.spot"], config["available_node_types"]["gpu.ondemand"]
    assert any(re.search("there is no type of worker", each) for each in errors(checked(changed(config))))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{NODE}InstanceType": "x9.large"}, r"x9\.large is not in the table of machines"),
        ({"worker_setup_commands": []}, "no command has torch use a GPU"),
        (
            {"worker_setup_commands": ["nvidia-smi -L"]},
            r"no command has torch use a GPU.*\n  add: python -c 'import torch",
        ),
        ({"available_node_types__head.cpu__resources": {}}, "the head may run trials"),
    ],
)
def test_aws_notes(checked: Checked, change: dict[str, Any], says: str) -> None:
    report = checked(changed(loaded("gpu.yaml"), **change))
    assert errors(report) == []
    assert re.search(says, "\n".join(notes(report)))


def test_no_price_no_costs(checked: Checked) -> None:
    assert checked(changed(loaded("gpu.yaml"), **{f"{NODE}InstanceType": "x9.large"})).costs is None


def test_groups_by_id_need_no_name(checked: Checked) -> None:
    config = loaded("gpu.yaml")
    for each in config["available_node_types"].values():
        each["node_config"]["SecurityGroupIds"] = ["sg-1"]
    assert errors(checked(changed(config, provider__security_group=...))) == []


def test_other_regions_cost_more(checked: Checked) -> None:
    costs = checked(changed(loaded("gpu.yaml"), provider__region="eu-west-1")).costs
    assert re.search(r"of us-west-2 \(eu-west-1 costs up to a half more\)", str(costs))


def test_without_boto3_the_names_cannot_be_checked(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "botocore" else find(name))
    found = errors(checked(changed(loaded("gpu.yaml"))))
    assert re.search(r"cannot be checked without boto3\n  pip install 'hpo\[aws\]'", found[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"provider__project": "x"}, r"provider\.project: .* nobody\n  did you mean project_id\?"),
        ({"provider__region": ...}, r"provider\.region: not given"),
        ({"provider__availability_zone": "us-west1-a"}, "us-west1-a is not in us-central1"),
        (
            {f"{GCP_SPOT}disks__0__initializeParams__sourceImage": "x/family/common-cu128-ubuntu-2204-nvidia-570"},
            r"(?s)sourceImage: the driver of .*-nvidia-570 cannot run CUDA 13.*nvidia-580",
        ),
        ({f"{GCP_SPOT}machinetype": "x"}, r"node_config\.machinetype: .* nobody\n  did you mean machineType\?"),
        ({f"{GCP_SPOT}scheduling__onHostMaintenence": "x"}, "did you mean onHostMaintenance"),
        ({f"{GCP_SPOT}scheduling": [{"preemptible": True}]}, "a machine with GPUs cannot be moved while it runs"),
        ({f"{GCP_SPOT}machineType": "a2-highgpu-8g"}, "4 claimed, but a2-highgpu-8g has 8 A100"),
        ({f"{GCP_SPOT}networkInterfaces": ...}, "networkInterfaces: not given: the project's first network is taken"),
        ({f"{GCP_SPOT}serviceAccounts": ...}, "serviceAccounts: not given: the node can reach no bucket"),
        ({f"{GCP_SPOT}disks__0__autoDelete": False}, "the disk stays, and is paid for"),
        ({f"{GCP_SPOT}disks": []}, "none has a sourceImage to start from"),
    ],
)
def test_gcp_says(checked: Checked, google: str, change: dict[str, Any], says: str) -> None:
    import yaml

    found = "\n".join(errors(checked(changed(yaml.safe_load(google), **change))))
    assert re.search(says, found), found


def test_the_table_of_machines_is_that_of_aws() -> None:
    moto = pytest.importorskip("moto")
    path = Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz"
    described = json.loads(gzip.decompress(path.read_bytes()))
    for name, machine in AWS.items():
        gpus = described[name].get("GpuInfo", {}).get("Gpus", [])
        assert machine.cpus == described[name]["VCpuInfo"]["DefaultVCpus"], name
        assert (machine.gpus, machine.gpu) == (sum(gpu["Count"] for gpu in gpus), gpus[0]["Name"] if gpus else ""), name
    assert all(machine.usd_per_h > 0 for machine in [*AWS.values(), *GCP.values()])


def test_bounds() -> None:
    workers = [Rented(4.0, 1, 3), Rented(5.0, 0, 2)]
    assert bounds(1.0, workers, max_workers=4) == (5.0, 5.0 + 2 * 5.0 + 4.0)
    assert bounds(1.0, workers, max_workers=100) == (5.0, 5.0 + 2 * 5.0 + 2 * 4.0)
    assert bounds(1.0, [], max_workers=9) == (1.0, 1.0)


_RENTED = st.builds(
    lambda usd, fewest, more: Rented(float(usd), fewest, fewest + more),
    st.integers(0, 9),
    st.integers(0, 3),
    st.integers(0, 3),
)


@given(st.lists(_RENTED, max_size=4), st.integers(0, 12), st.data())
def test_no_allowed_cluster_costs_more_or_less(workers: list[Rented], extra: int, data: st.DataObject) -> None:
    """Law: whatever cluster the limits allow costs something between the bounds."""
    max_workers = sum(each.fewest for each in workers) + extra
    idle, most = bounds(1.0, workers, max_workers=max_workers)
    left, price = max_workers - sum(each.fewest for each in workers), 1.0
    for each in workers:
        more = data.draw(st.integers(0, min(left, each.most - each.fewest)))
        left, price = left - more, price + (each.fewest + more) * each.usd_per_h
    assert idle <= price <= most
