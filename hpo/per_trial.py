"""What one trial may use."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpo.declared import Declared, positive_int
from hpo.errors import ExperimentError

STRATEGIES = ("pack", "spread")
UNITS = 10_000
"""Shares of a device are counted in ten-thousandths, by Ray as well."""


@dataclass(frozen=True)
class PerTrial(Declared):
    """The resources of one trial, per worker.

    Args:
        gpus: GPUs of each worker: a whole number, or a share below 1 where several trials share one. Where there
            is no GPU at all, a trial gets `cpus` alone.
        workers: Processes that train one trial together (`DistributedDataParallel`), on one node or several. The
            hyper-parameter `batch_size` is what all of them together train on in one step.
        cpus: CPU cores of each worker; it trains with as many threads, with at least one.
        strategy: "pack": workers are placed on as few nodes as possible; "spread": on as many.
        hang_s: A worker that keeps the others waiting for so many seconds has hung: the attempt is ended, and the
            trial goes on from its last checkpoint.
        data_memory_fraction: Share of a GPU's memory, or of the trial's share of one, that its data may take, in
            (0, 1]; what does not fit is streamed.
    """

    gpus: float = 1
    workers: int = 1
    cpus: float = 1
    strategy: str = "pack"
    hang_s: float = 300.0
    data_memory_fraction: float = 0.25

    def check(self) -> None:
        """Raise ExperimentError for resources that no machine can give."""
        for name in ("gpus", "cpus"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ExperimentError(f"{value!r} is not a number of at least 0", where=name, remedy="e.g. 1 or 0.25")
            if value > 1 and value != int(value):
                raise ExperimentError(
                    f"{value!r} is neither whole nor below 1",
                    where=name,
                    remedy="a trial gets whole devices, or a share of one: e.g. 2 or 0.5",
                )
            if 0 < value < 1 / UNITS:
                raise ExperimentError(
                    f"{value!r} is a share below {1 / UNITS:g}, the smallest that Ray gives out",
                    where=name,
                    remedy="give a larger share, e.g. 0.25",
                )
        if self.cpus == 0:
            raise ExperimentError(
                "0 leaves the trial no CPU core", where="cpus", remedy="give at least a share, e.g. 0.5"
            )
        positive_int(vars(self), "workers")
        if self.strategy not in STRATEGIES:
            raise ExperimentError(
                f"{self.strategy!r} is not one of {', '.join(STRATEGIES)}",
                where="strategy",
                remedy='"pack" keeps a trial\'s workers together, "spread" puts them on different nodes',
            )
        patience = self.hang_s
        if isinstance(patience, bool) or not isinstance(patience, (int, float)) or not 1 <= patience < math.inf:
            raise ExperimentError(f"{patience!r} is not a number of at least 1", where="hang_s", remedy="e.g. 300")
        share = self.data_memory_fraction
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ExperimentError(
                f"{share!r} is not a number above 0 and up to 1", where="data_memory_fraction", remedy="e.g. 0.25"
            )


def check_concurrent(value: object, *, per_trial: PerTrial) -> None:
    """Raise ExperimentError for what cannot be a number of trials at a time."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return
    if value != "auto":
        raise ExperimentError(
            f'{value!r} is neither an integer of at least 1 nor "auto"',
            where="concurrent",
            remedy='e.g. concurrent=4, concurrent="auto", or leave it out for as many trials as fit',
        )
    if per_trial.workers > 1:
        raise ExperimentError(
            f'"auto" finds how many trials share a GPU, but per_trial.workers={per_trial.workers} has one use several',
            where="concurrent",
            remedy="train each trial in one process, or leave concurrent out",
        )
    if per_trial.gpus > 1:
        raise ExperimentError(
            f'"auto" finds how many trials share a GPU, but per_trial.gpus={per_trial.gpus:g} gives a trial several',
            where="concurrent",
            remedy="lower per_trial.gpus to 1 or less, or leave concurrent out",
        )
