"""One rank of an all-reduce that proves that nodes reach each other: a process of its own, so that it can be ended.

    python -m hpo.training.all_reduce_probe '{"rank": 0, …}'

It prints one line of JSON: an `Outcome`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

Backend = Literal["gloo", "nccl"]
NUM_VALUES = {"gloo": 2**21, "nccl": 2**26}
"""Length of the vector that is summed up, float32: 8 MiB over gloo, 256 MiB over NCCL."""
_ROUNDS = 3


@dataclass(frozen=True)
class Rank:
    """What one process of the all-reduce is told.

    Attributes:
        rank: Its number, from 0; the first hosts the store where all meet.
        size: Processes.
        backend: "nccl" for GPUs.
        at: Address of the first rank's node, as the others reach it.
        port: Where its store listens.
        address: Address of this rank's node: gloo talks through the network that it is on.
        limit_s: The process ends itself when this is over, whatever it waits for.
        device: Number of its GPU, among those that it sees.
        listening: Descriptor of a socket that listens at `port`, for the first rank.
    """

    rank: int
    size: int
    backend: Backend
    at: str
    port: int
    address: str
    limit_s: int
    device: int = 0
    listening: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How it went.

    Attributes:
        gb_per_s: Bytes that each rank sent in a second, in 10^9; 0 for one rank alone.
        error: Why there is no result, or what is wrong with it; empty where all is well.
    """

    gb_per_s: float = 0.0
    error: str = ""


def reduce(rank: Rank) -> Outcome:
    """Meet the others, and sum one vector up with them."""
    on_gpu = rank.backend == "nccl"
    try:
        device = torch.device("cuda", rank.device) if on_gpu else torch.device("cpu")
        pattern = (torch.arange(NUM_VALUES[rank.backend], device=device) % 7).float()
        all_reduce = _joined(rank, device)
        expected = pattern * (rank.size * (rank.size + 1) // 2)
        took_s = []
        for _ in range(_ROUNDS):
            sums = pattern * (rank.rank + 1)
            wrong, seconds = _once(all_reduce, sums, expected)
            if wrong:
                return Outcome(error=f"{wrong} of {sums.numel()} sums are wrong")
            took_s.append(seconds)
        sent = 2 * (rank.size - 1) / rank.size * pattern.nbytes  # by each rank of a ring
        return Outcome(gb_per_s=sent / min(took_s) / 1e9)
    except (RuntimeError, OSError, ValueError) as error:
        return Outcome(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _joined(rank: Rank, device: torch.device) -> Callable[[Tensor], object]:
    """The all-reduce of a process group of all ranks."""
    patience = timedelta(seconds=max(rank.limit_s // 2, 1))  # whoever waits in vain has time left to say for whom
    store = TCPStore(
        rank.at,
        rank.port,
        rank.size,
        is_master=rank.rank == 0,
        timeout=patience,
        master_listen_fd=rank.listening,
    )
    if rank.backend == "nccl":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", store=store, rank=rank.rank, world_size=rank.size, timeout=patience)
        return dist.all_reduce
    # By the node's address and not the host's name, which often means loopback.
    gloo: Any = dist.ProcessGroupGloo  # torch does not tell mypy all of it
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=rank.address)]
    options._timeout = patience
    group = gloo(store, rank.rank, rank.size, options)
    return lambda tensor: group.allreduce([tensor]).wait()


def _once(all_reduce: Callable[[Tensor], object], sums: Tensor, expected: Tensor) -> tuple[int, float]:
    """Number of wrong sums, and the seconds that they took once all ranks had come."""
    all_reduce(torch.zeros(1, device=sums.device))
    if sums.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    all_reduce(sums)
    if sums.is_cuda:
        torch.cuda.synchronize()
    took_s = time.perf_counter() - began
    return int((sums != expected).sum()), took_s


def main() -> int:
    """Be the rank that the command line says; 0 where the sums were right."""
    rank = Rank(**json.loads(sys.argv[1]))
    signal.alarm(rank.limit_s)  # nothing in Python runs while a process waits in NCCL
    outcome = reduce(rank)
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    sys.stdout.flush()
    return 1 if outcome.error else 0


if __name__ == "__main__":
    sys.exit(main())
