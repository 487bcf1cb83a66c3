"""Plain data between the driver and the processes that train: where these live, and what they measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Dataset:
    """The data that a run uses, found once by the driver and found again, and compared, by every worker.

    Attributes:
        name: What rows in the store call it.
        fingerprint: Changes when the data does.
        fell_back: One line for people where this is not the data that was asked for.
        located: JSON that the task needs to open it.
        pieces: Fingerprints of the shards that it comes in, in their order; empty where it does not come in shards.
            `fingerprint` covers all of them.
        piece_names: What people call the shards, in the same order; empty where they have no names.
    """

    name: str
    fingerprint: str
    fell_back: str | None = None
    located: Mapping[str, Any] = field(default_factory=dict)
    pieces: tuple[str, ...] = ()
    piece_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """The processes that train one trial together, and the place of this one ("rank") among them.

    Attributes:
        rank: From 0; the first one's snapshots are the trial's.
        size: Processes, at least 2.
        address: "host:port", as the first one's `Task.host` gave it.
        hang_s: Seconds that an exchange waits for the others before it is given up.
        interface_of: Address of this node, whose network they talk through; empty: whichever.
        shares_gpu: Whether several of them may be on one GPU.
    """

    rank: int
    size: int
    address: str
    hang_s: float = 300.0
    interface_of: str = ""
    shares_gpu: bool = False


@dataclass(frozen=True)
class Setting:
    """Where a trainer lives.

    Attributes:
        device: "cpu" or "cuda" (the one device that the process may see).
        num_threads: Intra-op threads, at least 1.
        dataset: What `Task.locate` found on the driver.
        cache_dir: Folder of this node for decoded data.
        metric: Name of the goal metric.
        sign: 1 where larger metric values are better, -1 where smaller ones are.
        gpus: GPUs of the process: a share below 1 where several share one, 0 on a CPU.
        data_memory_fraction: Share of the GPU's memory, or of the trial's share of it, that data may take, in (0, 1].
        planned_epochs: Epochs that each process is likely to train until the study ends, of all its trials together;
            None where nobody knows.
        group: The processes that train each trial together; None: this one alone.
        max_steps: Steps after which each trial has surely ended, where that is known; of a policy that counts epochs,
            those of a trial whose steps are epochs.
        max_epochs: Epochs after which each trial has surely ended, where that is known.
    """

    device: str
    num_threads: int
    dataset: Dataset
    cache_dir: Path
    metric: str
    sign: int = 1
    gpus: float = 0
    data_memory_fraction: float = 0.25
    planned_epochs: float | None = None
    group: Group | None = None
    max_steps: int | None = None
    max_epochs: int | None = None


@dataclass(frozen=True)
class Step:
    """What a trainer measured in one step.

    Attributes:
        metrics: Finite or not, by name; holds at least the goal metric.
        epoch: Passes over the training data so far, from 1; the one under way counts.
        num_samples: Samples trained on in this step, by all processes of the trial.
        lr: Learning rate at the end of the step, where there is one.
        chunk: Piece of growing data that the step trained on, from 1, where there is one.
        num_epochs: Passes over the training data that the trial's state has completed; one that the step ends in the
            middle of is not. None: each step is one.
        num_chunks: Pieces of growing data that it has had all epochs of; None: there are none.
        finished: The trial has had all the steps that its own configuration gives it.
        device_memory_mb: Peak memory of the process on its device in MiB, where it is known.
        device_memory_total_mb: Memory of the whole device in MiB, where it is known.
        notes: How the trial trains, by name, where that was a choice; each told once, and again when it changes.
    """

    metrics: Mapping[str, float]
    epoch: int
    num_samples: int = 0
    lr: float | None = None
    chunk: int | None = None
    num_epochs: int | None = None
    num_chunks: int | None = None
    finished: bool = False
    device_memory_mb: float | None = None
    device_memory_total_mb: float | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
