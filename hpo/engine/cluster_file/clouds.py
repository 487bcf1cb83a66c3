"""What AWS and Google have in common: node types, their claims against what the machines hold, and their prices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpo.engine.cluster_file.finding import Costs, Finding, mapping
from hpo.engine.cluster_file.machines import HOURS_A_MONTH, PRICES_OF, Machine, Rented, bounds
from hpo.engine.cluster_file.source import commands


@dataclass(frozen=True)
class Node:
    """One of `available_node_types`."""

    name: str
    is_head: bool
    node_config: Mapping[str, Any]
    resources: Mapping[str, Any]
    fewest: int
    most: int
    priority: int

    @property
    def where(self) -> str:
        """How the file names it."""
        return f"available_node_types.{self.name}"

    @property
    def gpus(self) -> int:
        """GPUs that the file claims."""
        return int(self.resources.get("GPU", 0))


def nodes_of(config: Mapping[str, Any]) -> list[Node]:
    """The node types, the head first; whoever has no `max_workers` of its own may have all of them."""
    most = int(config.get("max_workers") or 0)
    found = [
        Node(
            name=name,
            is_head=name == config.get("head_node_type"),
            node_config=mapping(mapping(each).get("node_config")),
            resources=mapping(mapping(each).get("resources")),
            fewest=int(mapping(each).get("min_workers") or 0),
            most=int(mapping(each).get("max_workers", most) or 0),
            priority=int(mapping(each).get("priority") or 0),
        )
        for name, each in mapping(config.get("available_node_types")).items()
    ]
    return sorted(found, key=lambda node: not node.is_head)


def shared_rules(config: Mapping[str, Any], nodes: list[Node]) -> Iterator[Finding]:
    """Rules that hold on every cloud that is paid by the hour."""
    if "idle_timeout_minutes" not in config:
        yield Finding("idle_timeout_minutes", "not given", "name the minutes after which an idle machine is given back")
    if "max_workers" not in config:
        yield Finding("max_workers", "not given, so Ray allows 2", "name the most machines you will pay for")
    workers = [node for node in nodes if not node.is_head]
    if not workers:
        yield Finding("available_node_types", "there is no type of worker", "add one: the head runs no trials")
    shapes = {tuple(sorted(mapping(node.resources).items())) for node in workers if node.gpus}
    if len(shapes) > 1:
        problem = f"the GPU workers have {len(shapes)} different shapes"
        remedy = "give all the same resources: the autoscaler takes many small machines where one large was wanted"
        yield Finding("available_node_types", problem, remedy)
    if shapes and not any(map(_uses_gpu, commands(config, "setup_commands", "worker_setup_commands"))):
        problem = "no command has torch use a GPU: the first trial would find a driver that is too old"
        remedy = """add: python -c 'import torch; torch.zeros(1, device="cuda")'"""
        yield Finding("worker_setup_commands", problem, remedy, serious=False)
    for node in nodes:
        if node.is_head and node.resources.get("CPU") != 0:
            remedy = 'resources: {"CPU": 0} keeps trials off the machine that the study depends on'
            yield Finding(f"{node.where}.resources", "the head may run trials", remedy, serious=False)


def _uses_gpu(command: str) -> bool:
    """`nvidia-smi` alone is content with a driver that is too old for the torch that was installed."""
    return "torch" in command and "cuda" in command


def claims(node: Node, machine_type: Any, catalogue: Mapping[str, Machine], *, field: str) -> Iterator[Finding]:
    """Whether the type of machine is known, and holds the GPUs and cores that the file claims for it."""
    where = f"{node.where}.node_config.{field}"
    if not machine_type:
        yield Finding(where, "not given", "name the type of machine")
        return
    machine = catalogue.get(str(machine_type))
    if machine is None:
        remedy = "see that its GPUs are those of `resources`, or add it to hpo/engine/cluster_file/machines.py"
        yield Finding(where, f"{machine_type} is not in the table of machines", remedy, serious=False)
        return
    if node.gpus != machine.gpus:
        holds = f"{machine.gpus} {machine.gpu}" if machine.gpus else "no GPU"
        remedy = f'write "GPU": {machine.gpus} under resources, or name another machine'
        yield Finding(f"{node.where}.resources.GPU", f"{node.gpus} claimed, but {machine_type} has {holds}", remedy)
    if (cpus := node.resources.get("CPU")) is not None and int(cpus) > machine.cpus:
        problem = f"{cpus} claimed, but {machine_type} has {machine.cpus} cores"
        yield Finding(f"{node.where}.resources.CPU", problem, f"write at most {machine.cpus}")


def costs(
    config: Mapping[str, Any], nodes: list[Node], price: Callable[[Node], float | None], *, region: str
) -> Costs | None:
    """What the cluster costs an hour; None where the price of one of its machines is not known."""
    prices = {node.name: price(node) for node in nodes}
    known = {name: usd for name, usd in prices.items() if usd is not None}
    heads = [node for node in nodes if node.is_head]
    if len(known) < len(nodes) or not heads:
        return None
    workers = [Rented(known[node.name], node.fewest, node.most) for node in nodes if not node.is_head]
    idle, most = bounds(known[heads[0].name], workers, max_workers=int(config.get("max_workers") or 2))
    return Costs(idle, most, f"{PRICES_OF} of {region}, disks included, spot counted as on demand")


def price(
    machine: Machine | None, disks: Iterable[tuple[str, Any]], usd_per_gb_month: Mapping[str, float]
) -> float | None:
    """What a machine costs an hour; None where it is not known.

    Args:
        machine: Of the table.
        disks: Kind and gigabytes of each; one of an unknown kind is counted as the dearest.
        usd_per_gb_month: Of each kind of disk.
    """
    if machine is None:
        return None
    dearest = max(usd_per_gb_month.values())
    usd_per_month = sum(float(size or 0) * usd_per_gb_month.get(kind, dearest) for kind, size in disks)
    return machine.usd_per_h + usd_per_month / HOURS_A_MONTH
