"""A trial that several processes train: how they meet, what each of them takes, and how their sums become one.

Each process ("rank") holds the same weights and trains on its share of each batch; `DistributedDataParallel` averages
the gradients. The process group is made once and serves all trials of the processes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from hpo.errors import ExperimentError, WorkerLost
from hpo.protocols import Group
from hpo.training.learning import Batch, Stream
from hpo.training.share import WHOLE, Share
from hpo.training.sync_batch_norm import synchronised

MEETING_S = 1800.0
"""So long a rank waits for the others to come: they may have data to decode first."""
_SIOCGIFADDR = 0x8915
_SIGNS_OF_AN_EXCHANGE = ("gloo", "Gloo", "NCCL", "TCPStore", "pair closure", "by peer")

_hosted: list[Any] = []


def host(at: str) -> str:
    """The address ("host:port") at which ranks meet from now on, in this process; `at` is how they reach its node."""
    store = TCPStore(at, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=MEETING_S))
    _hosted[:] = [store]
    return f"{at}:{store.port}"


class Portion(NamedTuple):
    """What one process trains on, of a batch.

    Attributes:
        inputs: Of its samples.
        targets: Of its samples.
        weight: Of its mean loss, so that the mean over processes is that over all samples.
        sizes: Samples of the smallest and of the largest portion.
        counts: Whether it tallies them.
    """

    inputs: Tensor
    targets: Tensor
    weight: float = 1.0
    sizes: tuple[int, int] = (0, 0)
    counts: bool = True


class Team:
    """The processes that train a trial together, as one of them sees it; a process alone is a team as well.

    Attributes:
        share: Which of the processes this is.
    """

    def __init__(self, share: Share = WHOLE) -> None:
        self.share = share

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.share.size == 1

    def check_batch_size(self, batch_size: int) -> None:
        """Raise ExperimentError where a batch has no sample for some process."""
        if batch_size < self.share.size:
            raise ExperimentError(
                f"{batch_size} samples are too few for {self.share.size} processes that train on a batch together",
                where="batch_size",
                remedy=f"give at least {self.share.size}, or fewer workers: --set per_trial.workers={batch_size}",
            )

    def prepared(self, model: nn.Module, *, sync_batch_norm: bool, device: torch.device) -> nn.Module:
        """The new model, its batch norms over the whole batch if asked; the same parameters under the same names."""
        return model if self.is_alone or not sync_batch_norm else synchronised(model, device=device)

    def around(self, model: nn.Module, *, find_unused_parameters: bool) -> DistributedDataParallel | None:
        """A forward pass whose backward pass averages the gradients over the processes; None where there is one."""
        if self.is_alone:
            return None
        return DistributedDataParallel(
            model, gradient_as_bucket_view=True, find_unused_parameters=find_unused_parameters
        )

    def portion(self, stream: Stream) -> Portion:
        """This process's part of the batch within reach.

        A batch with fewer samples than there are processes is trained on by all of them, and tallied by the first.
        """
        inputs, targets = stream.batch()
        num = stream.whole_batch or len(targets)
        size = self.share.size
        if num < size:
            return Portion(inputs, targets, sizes=(num, num), counts=self.share.rank == 0)
        if size > 1 and stream.whole_batch is None:
            part = self.share.of(num)
            inputs, targets = inputs[part], targets[part]
        return Portion(inputs, targets, weight=len(targets) * size / num, sizes=(num // size, -(-num // size)))

    def dealt(self, batches: Iterable[Batch], *, is_share: bool) -> Iterable[Batch]:
        """The batches that this process measures, of those that all have to; `is_share`: they are its own already."""
        return batches if is_share else islice(batches, self.share.rank, None, self.share.size)

    def reducing(self, model: DistributedDataParallel | None, *, last: bool) -> AbstractContextManager[object]:
        """Where gradients are summed up over several backward passes, only the last one exchanges them."""
        if last or model is None:
            return nullcontext()
        pause: AbstractContextManager[object] = model.no_sync()
        return pause

    def add_up(self, sums: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; the result is the same bits in each of them."""
        if not self.is_alone:
            for tensor in sums:
                dist.all_reduce(tensor)

    def same_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers: running means differ by the last batch."""
        if not self.is_alone:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    @contextlib.contextmanager
    def in_touch(self) -> Iterator[None]:
        """Tell an exchange that failed from what the model raises.

        Raises:
            WorkerLost: Another process ended, or did not answer in time.
            ExperimentError: A parameter has no gradient, and `find_unused_parameters` is off.
        """
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            if not self.is_alone and "find_unused_parameters" in str(error):
                raise ExperimentError(
                    "the model does not use all of its parameters in every step",
                    where="find_unused_parameters",
                    remedy="--set find_unused_parameters=true, which costs a little, or leave those parameters out",
                ) from error
            if self.is_alone or not _is_of_an_exchange(error):
                raise
            words = " ".join(str(error).split())
            raise WorkerLost(
                f"rank {self.share.rank} lost touch with the others ({words[:300]})",
                remedy="the attempt is given up; the trial goes on from its last checkpoint",
            ) from error


ALONE = Team()


def join(group: Group, *, device: torch.device) -> Team:
    """This process as one of the group, once all of its processes have come; one that has joined before stays so.

    On GPUs they talk by NCCL, on CPUs by gloo, and by gloo as well where several share a GPU, which NCCL refuses.

    Raises:
        WorkerLost: Some did not come.
    """
    if dist.is_initialized():
        return Team(Share(group.rank, group.size))
    name, _, port = group.address.rpartition(":")
    if group.interface_of:
        _talk_through(group.interface_of)
    patience = timedelta(seconds=MEETING_S)
    try:
        store = _hosted[0] if group.rank == 0 else TCPStore(name, int(port), is_master=False, timeout=patience)
        # From here on they wait for each other as long as they will in training, and some may have data to decode.
        store.set(f"here/{group.rank}", "1")
        store.wait([f"here/{rank}" for rank in range(group.size)], patience)
        dist.init_process_group(
            "nccl" if device.type == "cuda" and not group.shares_gpu else "gloo",
            store=PrefixStore("ranks", store),
            rank=group.rank,
            world_size=group.size,
            timeout=timedelta(seconds=group.hang_s),
        )
        dist.all_reduce(torch.zeros(1, device=device))  # connects them: NCCL does so with the first exchange
    except (RuntimeError, dist.DistError) as error:
        raise WorkerLost(
            f"rank {group.rank} of {group.size} could not meet the others at {group.address} ({error})",
            remedy="nodes have to reach each other on all ports: `hpo preflight` shows which do not",
        ) from error
    return Team(Share(group.rank, group.size))


def _talk_through(address: str) -> None:
    """Have gloo use the network that the node's address is on: a host's own name often means loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            if _address_of(name, asking) == address:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _address_of(interface: str, asking: socket.socket) -> str | None:
    import fcntl

    request = struct.pack("256s", interface.encode()[:15])
    try:
        return socket.inet_ntoa(fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)[20:24])
    except OSError:
        return None


def _is_of_an_exchange(error: Exception) -> bool:
    text = str(error)
    if "out of memory" in text:
        return False
    return isinstance(error, dist.DistError) or any(sign in text for sign in _SIGNS_OF_AN_EXCHANGE)
