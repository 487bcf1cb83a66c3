"""Rules for `provider.type: gcp`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hpo.engine.cluster_file import clouds
from hpo.engine.cluster_file.clouds import Node
from hpo.engine.cluster_file.finding import Costs, Finding, mapping, sequence, unknown_names
from hpo.engine.cluster_file.machines import GCP, GCP_REGIONS, GCP_USD_PER_GB_MONTH

# Fields of an instance that Compute Engine's insert takes (cloud.google.com/compute/docs/reference/rest/v1/instances).
_INSTANCE = {
    "advancedMachineFeatures",
    "canIpForward",
    "confidentialInstanceConfig",
    "deletionProtection",
    "description",
    "disks",
    "displayDevice",
    "guestAccelerators",
    "hostname",
    "instanceEncryptionKey",
    "keyRevocationActionType",
    "labels",
    "machineType",
    "metadata",
    "minCpuPlatform",
    "networkInterfaces",
    "networkPerformanceConfig",
    "params",
    "privateIpv6GoogleAccess",
    "reservationAffinity",
    "resourcePolicies",
    "scheduling",
    "serviceAccounts",
    "shieldedInstanceConfig",
    "sourceMachineImage",
    "tags",
}
_SCHEDULING = {
    "automaticRestart",
    "instanceTerminationAction",
    "locationHint",
    "maxRunDuration",
    "minNodeCpus",
    "nodeAffinities",
    "onHostMaintenance",
    "preemptible",
    "provisioningModel",
}
PLACEHOLDER = "YOUR-PROJECT"
_DRIVER = 580  # the first that runs CUDA 13, which the pinned torch is built for


def rules(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Everything that Compute Engine, Ray's bootstrap on it, or prudence says about the file."""
    provider, nodes = mapping(config.get("provider")), clouds.nodes_of(config)
    yield from clouds.shared_rules(config, nodes)
    for name in ("region", "availability_zone", "project_id"):
        if not provider.get(name):
            yield Finding(f"provider.{name}", "not given", "name it")
    if PLACEHOLDER in str(config):
        yield Finding("provider.project_id", f"{PLACEHOLDER} is an example", "write the id of your project, throughout")
    zone, region = str(provider.get("availability_zone", "")), str(provider.get("region", ""))
    if zone and region and not zone.startswith(f"{region}-"):
        yield Finding("provider.availability_zone", f"{zone} is not in {region}", "name a zone of the region")
    for node in nodes:
        yield from _node(node)


def _node(node: Node) -> Iterator[Finding]:
    where = f"{node.where}.node_config"
    yield from unknown_names(node.node_config, _INSTANCE, where=where)
    yield from clouds.claims(node, node.node_config.get("machineType"), GCP, field="machineType")
    scheduling = _scheduling(node)
    yield from unknown_names(scheduling, _SCHEDULING, where=f"{where}.scheduling")
    if node.gpus and scheduling.get("onHostMaintenance") != "TERMINATE":
        remedy = "write onHostMaintenance: TERMINATE"
        yield Finding(f"{where}.scheduling", "a machine with GPUs cannot be moved while it runs", remedy)
    if not node.node_config.get("networkInterfaces"):
        problem = "not given: the project's first network is taken, whose rules may open port 22 to 0.0.0.0/0"
        remedy = "name a subnetwork of your own, as clusters/gcp.yaml says how"
        yield Finding(f"{where}.networkInterfaces", problem, remedy)
    if not node.is_head and not node.node_config.get("serviceAccounts"):
        yield Finding(f"{where}.serviceAccounts", "not given: the node can reach no bucket", "name one")
    yield from _disks(node, where)


def _scheduling(node: Node) -> Mapping[str, Any]:
    """As one mapping: Ray's examples write a list of them."""
    given = node.node_config.get("scheduling")
    merged: dict[str, Any] = {}
    for each in sequence(given) or [given]:
        merged.update(mapping(each))
    return merged


def _disks(node: Node, where: str) -> Iterator[Finding]:
    disks = [mapping(each) for each in sequence(node.node_config.get("disks"))]
    if not any(mapping(disk.get("initializeParams")).get("sourceImage") for disk in disks):
        yield Finding(f"{where}.disks", "none has a sourceImage to start from", "name the image")
    for index, disk in enumerate(disks):
        image = str(mapping(disk.get("initializeParams")).get("sourceImage", ""))
        driver = re.search(r"-nvidia-(\d+)", image)
        if driver and int(driver[1]) < _DRIVER:
            problem = f"the driver of {image.rpartition('/')[2]} cannot run CUDA 13, which torch is built for"
            remedy = f"name a family whose name ends with nvidia-{_DRIVER} or more"
            yield Finding(f"{where}.disks[{index}].initializeParams.sourceImage", problem, remedy)
        if disk.get("autoDelete") is not True:
            problem = "the disk stays, and is paid for, when its machine is gone"
            yield Finding(f"{where}.disks[{index}].autoDelete", problem, "write autoDelete: true")


def costs(config: Mapping[str, Any]) -> Costs | None:
    """What the cluster costs an hour, by the list prices of us-central1."""
    region = str(mapping(config.get("provider")).get("region"))
    shown = region if region in GCP_REGIONS else f"us-central1 ({region} may cost more)"
    return clouds.costs(config, clouds.nodes_of(config), _price, region=shown)


def _price(node: Node) -> float | None:
    disks = [mapping(mapping(each).get("initializeParams")) for each in sequence(node.node_config.get("disks"))]
    sizes = [(_kind(disk.get("diskType", "pd-standard")), disk.get("diskSizeGb")) for disk in disks]
    return clouds.price(GCP.get(str(node.node_config.get("machineType"))), sizes, GCP_USD_PER_GB_MONTH)


def _kind(disk_type: Any) -> str:
    return str(disk_type).rpartition("/")[2]
