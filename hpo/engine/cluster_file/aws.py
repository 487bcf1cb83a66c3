"""Rules for `provider.type: aws`."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from hpo.engine.cluster_file import clouds
from hpo.engine.cluster_file.clouds import Node
from hpo.engine.cluster_file.finding import Costs, Finding, mapping, sequence
from hpo.engine.cluster_file.machines import AWS, AWS_REGIONS, AWS_USD_PER_GB_MONTH

_RAYS_OWN = {"SubnetIds"}  # Ray takes it out and puts one SubnetId in
_PREPARE = "`hpo cluster prepare FILE --ssh-from YOUR.NETWORK/24` makes it"


def rules(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Everything that AWS, Ray's bootstrap on AWS, or prudence says about the file."""
    provider, nodes = mapping(config.get("provider")), clouds.nodes_of(config)
    yield from clouds.shared_rules(config, nodes)
    if not provider.get("region"):
        yield Finding("provider.region", "not given", "name the region, such as us-west-2")
    if provider.get("cache_stopped_nodes", True):
        remedy = "write cache_stopped_nodes: false"
        yield Finding("provider.cache_stopped_nodes", "stopped machines are kept, and their disks paid for", remedy)
    yield from _security_group(provider, nodes)
    yield from _spot_first(nodes)
    for node in nodes:
        yield from _node(node)


def _security_group(provider: Mapping[str, Any], nodes: list[Node]) -> Iterator[Finding]:
    if nodes and all(node.node_config.get("SecurityGroupIds") for node in nodes):
        return
    group = mapping(provider.get("security_group"))
    where = "provider.security_group"
    if not group.get("GroupName"):
        problem = "not given: Ray makes a group that opens port 22 to 0.0.0.0/0"
        yield Finding(where, problem, f"name one that was made before; {_PREPARE}")
    if "IpPermissions" in group:
        problem = "rules that stand here are added to a group of Ray's, which opens port 22 to 0.0.0.0/0 as well"
        yield Finding(f"{where}.IpPermissions", problem, f"leave them out and make the group before; {_PREPARE}")


def _spot_first(nodes: list[Node]) -> Iterator[Finding]:
    workers = [node for node in nodes if not node.is_head]
    spot = [node.priority for node in workers if _is_spot(node)]
    demand = [node.priority for node in workers if not _is_spot(node)]
    if spot and demand and min(spot) <= max(demand):
        remedy = "give spot the higher priority (10 and 0): Ray takes the highest first"
        yield Finding("available_node_types", "spot machines are not taken before those on demand", remedy)


def _is_spot(node: Node) -> bool:
    return mapping(node.node_config.get("InstanceMarketOptions")).get("MarketType") == "spot"


def _node(node: Node) -> Iterator[Finding]:
    where = f"{node.where}.node_config"
    yield from clouds.claims(node, node.node_config.get("InstanceType"), AWS, field="InstanceType")
    yield from _misspelt(node)
    if not node.node_config.get("ImageId"):
        yield Finding(f"{where}.ImageId", "not given: Ray's default image is of Ubuntu 18.04", "name one")
    if not node.node_config.get("IamInstanceProfile"):
        problem = "not given: the node can reach no S3, and the head launch no workers with a profile"
        yield Finding(f"{where}.IamInstanceProfile", problem, f"name one; {_PREPARE}")
    if mapping(node.node_config.get("MetadataOptions")).get("HttpTokens") != "required":
        problem = "the node's credentials can be read without a token (IMDSv1)"
        yield Finding(f"{where}.MetadataOptions.HttpTokens", problem, "write HttpTokens: required")
    yield from _disks(node, where)


def _disks(node: Node, where: str) -> Iterator[Finding]:
    disks = [mapping(each) for each in sequence(node.node_config.get("BlockDeviceMappings"))]
    if not disks:
        yield Finding(f"{where}.BlockDeviceMappings", "not given: the disk is the image's", "name size and encryption")
    for index, disk in enumerate(disks):
        if "Ebs" in disk and mapping(disk["Ebs"]).get("Encrypted") is not True:
            place = f"{where}.BlockDeviceMappings[{index}].Ebs.Encrypted"
            yield Finding(place, "the disk is not encrypted", "write Encrypted: true")


def _misspelt(node: Node) -> Iterator[Finding]:
    """Names and types that EC2 would refuse, deep down as well; from the description of its API that boto3 carries."""
    where = f"{node.where}.node_config"
    if importlib.util.find_spec("botocore") is None:
        yield Finding(where, "its names cannot be checked without boto3", "pip install 'hpo[aws]' (`ray up` needs it)")
        return
    from botocore.validate import ParamValidator

    given = {name: value for name, value in node.node_config.items() if name not in _RAYS_OWN}
    problems = ParamValidator().validate(given | {"MinCount": 1, "MaxCount": 1}, _run_instances())
    for line in problems.generate_report().splitlines():
        yield Finding(where, f"EC2 would refuse it: {line}", "correct that name or value")


@functools.cache
def _run_instances() -> Any:
    """What EC2's RunInstances takes; reading it takes a third of a second."""
    import botocore.session

    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def costs(config: Mapping[str, Any]) -> Costs | None:
    """What the cluster costs an hour, by the list prices of three regions; elsewhere up to a half more."""
    region = str(mapping(config.get("provider")).get("region"))
    shown = region if region in AWS_REGIONS else f"us-west-2 ({region} costs up to a half more)"
    return clouds.costs(config, clouds.nodes_of(config), _price, region=shown)


def _price(node: Node) -> float | None:
    disks = [mapping(mapping(each).get("Ebs")) for each in sequence(node.node_config.get("BlockDeviceMappings"))]
    sizes = [(str(disk.get("VolumeType", "gp2")), disk.get("VolumeSize")) for disk in disks]
    return clouds.price(AWS.get(str(node.node_config.get("InstanceType"))), sizes, AWS_USD_PER_GB_MONTH)
