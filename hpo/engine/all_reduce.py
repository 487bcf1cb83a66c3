"""Whether the nodes can sum a vector up together, and which of them cannot where they do not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpo.engine.findings import Seen, blamed, rounds
from hpo.engine.nodes import Node, answers

WHOLE_S, PAIR_S = 120, 60
"""Seconds that all ranks together may take, or those of one or two nodes; the first ones wait for others to come that
still import torch, which may lie on a slow disk."""
_SPARE_S = 15


@dataclass(frozen=True)
class Ranks:
    """The processes of one node in an all-reduce.

    Attributes:
        first: Number of the node's first rank; the very first one hosts the store where all meet.
        num: Ranks on the node: one for each GPU, or one.
        size: Ranks on all nodes.
        backend: "nccl" for GPUs, else "gloo".
        at: Address of the very first rank's node.
        port: Where its store listens.
        address: This node's address.
        limit_s: Whoever has no result by then has failed.
    """

    first: int
    num: int
    size: int
    backend: str
    at: str
    port: int
    address: str
    limit_s: int


# --- On a node -------------------------------------------------------------------------------------------------


def reduce(ranks: Ranks, listening: socket.socket | None) -> Seen:
    """Whether the node's ranks got the right sums, and the slowest one's GB/s; each rank is a process of its own.

    Args:
        ranks: Which they are.
        listening: The socket that listens at `ranks.port`, on the very first rank's node; it is closed.
    """
    descriptor = listening.fileno() if listening is not None else None
    processes = [_rank(ranks, number, descriptor if number == 0 else None) for number in range(ranks.num)]
    if listening is not None:
        listening.close()
    outcomes = [_outcome(process, ranks.limit_s) for process in processes]
    problems = [outcome["error"] for outcome in outcomes if outcome["error"]]
    if problems:
        return Seen(problem=problems[0])
    slowest = min(outcome["gb_per_s"] for outcome in outcomes)
    return Seen(shown=f"{slowest:.2g} GB/s" if ranks.size > 1 else "alone")


def _rank(ranks: Ranks, number: int, descriptor: int | None) -> subprocess.Popen[str]:
    told = {
        "rank": ranks.first + number,
        "size": ranks.size,
        "backend": ranks.backend,
        "at": ranks.at,
        "port": ranks.port,
        "address": ranks.address,
        "limit_s": ranks.limit_s,
        "device": number,
        "listening": descriptor,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "hpo.training.all_reduce_probe", json.dumps(told)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=() if descriptor is None else (descriptor,),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )


def _outcome(process: subprocess.Popen[str], limit_s: int) -> dict[str, Any]:
    late = {"error": f"no result within {limit_s} s"}
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return late
    try:
        outcome: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = err.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        return late if process.returncode == -signal.SIGALRM else {"error": last[0][:300]}
    return outcome


# --- On the driver ---------------------------------------------------------------------------------------------


def all_reduce(nodes: Sequence[Node], probes: Mapping[str, Any]) -> dict[str, Seen]:
    """What each node's ranks saw; where all together fail, the nodes alone and in pairs tell which of them it is.

    On GPUs (NCCL, one rank each) where there are any, else on the nodes with CPU cores (gloo, one rank each).

    Args:
        nodes: All of them.
        probes: The process (`hpo.engine.probes.Probe`) on each, by the node's name.
    """
    taking = [node for node in nodes if node.num_gpus] or [node for node in nodes if node.num_cpus]
    nothing = {node.name: Seen(shown="none", nothing=True) for node in nodes if node not in taking}
    together = _met([taking], probes, limit_s=WHOLE_S) if taking else {}
    if any(seen.problem for seen in together.values()):
        together = _explained(taking, probes, together)
    return {**nothing, **together}


def _explained(nodes: Sequence[Node], probes: Mapping[str, Any], together: Mapping[str, Seen]) -> dict[str, Seen]:
    if len(nodes) == 1:
        return dict(together)
    by_name = {node.name: node for node in nodes}
    alone = _met([[node] for node in nodes], probes, limit_s=PAIR_S)
    able = [name for name, seen in alone.items() if not seen.problem]
    errors: dict[frozenset[str], str] = {}
    for pairs in rounds(able):
        seen = _met([[by_name[one], by_name[other]] for one, other in pairs], probes, limit_s=PAIR_S)
        for pair in pairs:
            problems = [seen[name].problem for name in pair if seen[name].problem]
            if problems:
                errors[frozenset(pair)] = problems[0]
    unreached = blamed(errors)
    explained = {name: replace(seen, problem=f"alone: {seen.problem}") for name, seen in alone.items() if seen.problem}
    for name, others in unreached.items():
        error = errors[frozenset((name, others[0]))]
        explained[name] = Seen(problem=f"no all-reduce with {', '.join(others)}: {error}", short="unreached")
    if not explained:
        problem = next(seen.problem for seen in together.values() if seen.problem)
        return {name: Seen(problem=f"all together fail, though any two succeed: {problem}") for name in by_name}
    return {name: explained.get(name, Seen(shown="in pairs")) for name in by_name}


def _met(groups: Sequence[Sequence[Node]], probes: Mapping[str, Any], *, limit_s: int) -> dict[str, Seen]:
    """What each node of each group saw; the groups meet at the same time, no node is in two of them."""
    hosts = {group[0].name: probes[group[0].name].port.remote() for group in groups}
    ports = answers(hosts, within_s=_SPARE_S)
    calls: dict[str, Any] = {}
    silent: dict[str, Seen] = {}
    for group in groups:
        port = ports[group[0].name]
        if isinstance(port, Seen):
            silent |= {node.name: port for node in group}
            continue
        for node, ranks in zip(group, _seated(group, port, limit_s), strict=True):
            calls[node.name] = probes[node.name].reduce.remote(ranks)
    return {**silent, **answers(calls, within_s=limit_s + _SPARE_S)}


def _seated(group: Sequence[Node], port: int, limit_s: int) -> list[Ranks]:
    counts = [max(1, node.num_gpus) for node in group]
    backend = "nccl" if group[0].num_gpus else "gloo"
    return [
        Ranks(sum(counts[:index]), count, sum(counts), backend, group[0].address, port, node.address, limit_s)
        for index, (node, count) in enumerate(zip(group, counts, strict=True))
    ]
