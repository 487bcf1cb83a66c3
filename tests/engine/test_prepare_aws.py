"""What an AWS cluster names is made beforehand; against moto, no cloud."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.engine.cluster_file import ClusterFileError
from hpo.engine.prepare_aws import Wanted, _refuse_others, policy, prepare

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")

WANTED = Wanted("us-west-2", "hpo-gpu", "hpo-ray-node", "a-bucket", "203.0.113.0/24")


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """EC2 of a pretended account; its security groups."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with moto.mock_aws():
        yield boto3.client("ec2", region_name="us-west-2")


def group(ec2: Any) -> dict[str, Any]:
    found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["hpo-gpu"]}])["SecurityGroups"]
    assert len(found) == 1
    return dict(found[0])


def test_everything_is_made_and_once_more_changes_nothing(ec2: Any) -> None:
    first = list(prepare(WANTED))
    made = group(ec2)
    assert first == [
        f"security group hpo-gpu: {made['GroupId']} in {made['VpcId']}, SSH from 203.0.113.0/24 only",
        "instance profile hpo-ray-node: role made, its policy allows a-bucket and machines in us-west-2",
        "bucket a-bucket: private",
    ]
    assert "role was there" in list(prepare(WANTED))[1]
    assert group(ec2) == made


def test_only_ssh_from_the_network_is_open(ec2: Any) -> None:
    list(prepare(WANTED))
    rules = {rule["IpProtocol"]: rule for rule in group(ec2)["IpPermissions"]}
    assert set(rules) == {"tcp", "-1"}
    assert (rules["tcp"]["FromPort"], rules["tcp"]["ToPort"]) == (22, 22)
    assert [each["CidrIp"] for each in rules["tcp"]["IpRanges"]] == ["203.0.113.0/24"]
    assert rules["-1"]["IpRanges"] == []
    assert [each["GroupId"] for each in rules["-1"]["UserIdGroupPairs"]] == [group(ec2)["GroupId"]]


def test_the_bucket_is_private_and_the_profile_has_its_role(ec2: Any) -> None:
    list(prepare(WANTED))
    blocked = boto3.client("s3").get_public_access_block(Bucket="a-bucket")["PublicAccessBlockConfiguration"]
    assert set(blocked.values()) == {True}
    iam = boto3.client("iam", region_name="us-west-2")
    [role] = iam.get_instance_profile(InstanceProfileName="hpo-ray-node")["InstanceProfile"]["Roles"]
    assert role["RoleName"] == "hpo-ray-node"
    assert iam.get_role_policy(RoleName="hpo-ray-node", PolicyName="hpo-ray-node")["PolicyDocument"] == policy(WANTED)


def test_the_role_may_use_its_bucket_and_no_other() -> None:
    text = json.dumps(policy(WANTED))
    assert '"s3:*"' not in text
    assert '"iam:*"' not in text
    for statement in policy(WANTED)["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if any(action.startswith("s3:") for action in actions):
            assert statement["Resource"].startswith("arn:aws:s3:::a-bucket")
        elif statement["Resource"] == "*":
            assert "Condition" in statement


@pytest.mark.parametrize(
    ("cidr", "port", "says"),
    [
        ("0.0.0.0/0", 22, r"hpo-gpu: it opens port 22 to 0\.0\.0\.0/0\n  remove that rule"),
        ("203.0.113.0/24", 8265, r"it opens port 8265 to 203\.0\.113\.0/24"),
    ],
)
def test_a_group_that_lets_others_in_is_refused(ec2: Any, cidr: str, port: int, says: str) -> None:
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    there = ec2.create_security_group(GroupName="hpo-gpu", Description="x", VpcId=vpc)["GroupId"]
    rule = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": cidr}]}
    ec2.authorize_security_group_ingress(GroupId=there, IpPermissions=[rule])
    with pytest.raises(ClusterFileError, match=says):
        list(prepare(WANTED))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"ToPort": 65535}, r"hpo-gpu: it opens ports 22 to 65535 to 203\.0\.113\.0/24"),
        ({"FromPort": 0, "ToPort": 22}, r"it opens ports 0 to 22 to 203"),
        ({"IpProtocol": "udp"}, "it opens port 22 to 203"),
        ({"IpProtocol": "-1"}, "it opens every port to 203"),
        ({"IpRanges": [], "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}, "it opens port 22 to ::/0"),
        ({"PrefixListIds": [{"PrefixListId": "pl-1"}]}, "it opens port 22 to pl-1"),
        ({"UserIdGroupPairs": [{"GroupId": "sg-1"}, {"GroupId": "sg-2"}]}, "it opens port 22 to sg-2\n"),
    ],
)
def test_a_rule_that_lets_others_in(rule: dict[str, Any], says: str) -> None:
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.0/24"}]}
    among = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-1"}]}
    _refuse_others([ssh, among], WANTED, group="sg-1")
    others = {
        name: value for name, value in (ssh | rule).items() if rule.get("IpProtocol") != "-1" or "Port" not in name
    }
    with pytest.raises(ClusterFileError, match=says):
        _refuse_others([ssh, others, among], WANTED, group="sg-1")


def test_a_region_without_a_default_vpc(ec2: Any) -> None:
    other = Wanted("us-west-2", "hpo-gpu", "hpo-ray-node", "a-bucket", "2001:db8::/32")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    made = list(prepare(Wanted(**{**other.__dict__, "vpc": vpc})))
    assert f"in {vpc}, SSH from 2001:db8::/32 only" in made[0]
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    for each in ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]:
        ec2.delete_vpc(VpcId=each["VpcId"])
    with pytest.raises(ClusterFileError, match=r"--vpc: us-west-2 has no default VPC\n  name the VPC to use"):
        list(prepare(other))


def test_what_aws_refuses_is_told_as_such(ec2: Any) -> None:
    with pytest.raises(
        ClusterFileError, match=r"prepare: AWS refuses it: .*InvalidBucketName.*\n  what was said above"
    ):
        list(prepare(Wanted("us-west-2", "hpo-gpu", "hpo-ray-node", "b", "203.0.113.0/24")))


def test_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ClusterFileError, match=r"boto3 is not installed\n  pip install 'hpo\[aws\]'"):
        list(prepare(WANTED))


def test_what_the_file_names(repository: Path) -> None:
    config = yaml.safe_load((repository / "clusters/gpu.yaml").read_text())
    assert Wanted.of_file(config, ssh_from="203.0.113.0/24", bucket="a-bucket", vpc=None) == WANTED
    with pytest.raises(ClusterFileError, match=r"x\.yaml: provider\.type is local, not aws"):
        Wanted.of_file({"provider": {"type": "local"}}, ssh_from="1.0.0.0/8", bucket="b", vpc=None, where="x.yaml")
    config["available_node_types"]["gpu.spot"]["node_config"] = {}
    with pytest.raises(ClusterFileError, match="does not name a region, a security group and one instance profile"):
        Wanted.of_file(config, ssh_from="1.0.0.0/8", bucket="b", vpc=None)


@pytest.mark.parametrize(
    ("cidr", "says"),
    [
        ("0.0.0.0/0", r"--ssh-from: 0\.0\.0\.0/0 is 4,294,967,296 addresses\n  name a network of at most /8"),
        ("203.0.113.7/24", r"--ssh-from: 203\.0\.113\.7/24 is no network \(.*has host bits set"),
        ("everyone", "everyone is no network"),
    ],
)
def test_only_a_named_range_may_log_in(repository: Path, cidr: str, says: str) -> None:
    config = yaml.safe_load((repository / "clusters/gpu.yaml").read_text())
    with pytest.raises(ClusterFileError, match=says):
        Wanted.of_file(config, ssh_from=cidr, bucket="b", vpc=None)
