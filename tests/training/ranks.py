"""Trains trials by several processes together: `python -m tests.training.ranks '<JSON of a Rank>'` is one of them."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from hpo.errors import HpoError
from hpo.protocols import Group, Setting, Task
from hpo.training import Classification
from hpo.training.data import Digits
from hpo.training.models import ConvNet, Mlp
from tests.training.fresh import task_of


@dataclass(frozen=True)
class Order:
    """One trial: `take_over` and `load` are files, `save` is where the first rank writes after the last step."""

    name: str
    task: str
    config: dict[str, Any]
    steps: int = 2
    seed: int = 5
    metric: str = "val_loss"
    load: str | None = None
    take_over: str | None = None
    save: str | None = None


@dataclass(frozen=True)
class Rank:
    """One process of a group, and what it is to train."""

    rank: int
    size: int
    folder: str
    orders: list[dict[str, Any]] = field(default_factory=list)
    hang_s: float = 60.0
    address: str = "127.0.0.1"
    device: str = "cpu"


def mlp() -> Task:
    return Classification(model=functools.partial(Mlp, hidden=(32,)), data=Digits())


def conv() -> Task:
    return Classification(model=functools.partial(ConvNet, filters=(4, 8)), data=Digits())


class Partly(nn.Module):
    """Uses one of its layers."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(in_features, num_classes), nn.Linear(in_features, num_classes)

    def forward(self, inputs: Any) -> Any:
        return self.used(inputs.flatten(1))


def partly() -> Task:
    return Classification(model=Partly, data=Digits())


def together(
    size: int, orders: Sequence[Order], folder: Path, *, hang_s: float = 60.0, device: str = "cpu"
) -> list[dict[str, Any]]:
    """What each of `size` processes that train the orders together says: outcomes by the order's name."""
    folder.mkdir(parents=True, exist_ok=True)
    said = [asdict(order) for order in orders]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.training.ranks",
                json.dumps(asdict(Rank(rank, size, str(folder), said, hang_s, device=device))),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def trained(order: Order, setting: Setting) -> dict[str, Any]:
    trainer = task_of(order.task).begin(setting)
    trainer.begin(order.config, seed=order.seed)
    if order.load:
        trainer.load(_there(order.load))
    if order.take_over:
        trainer.take_over(_there(order.take_over))
    steps = [trainer.step() for _ in range(order.steps)]
    if order.save and (setting.group is None or setting.group.rank == 0):
        trainer.save(Path(order.save))
    return {
        "metrics": [dict(step.metrics) for step in steps],
        "epochs": [step.epoch for step in steps],
        "num_samples": [step.num_samples for step in steps],
        "lr": [step.lr for step in steps],
        "finished": [step.finished for step in steps],
        "notes": {name: note for step in steps for name, note in step.notes.items()},
    }


def _there(file: str) -> Path:
    """The file, once the first rank has written it."""
    until = time.monotonic() + 60
    while not Path(file).exists() and time.monotonic() < until:
        time.sleep(0.02)
    return Path(file)


def setting_of(order: Order, folder: Path, group: Group | None, *, device: str = "cpu") -> Setting:
    sign = -1 if "loss" in order.metric else 1
    dataset = task_of(order.task).locate(None)
    return Setting(device, 1, dataset, folder / "cache", order.metric, sign=sign, group=group)


def alone(orders: Sequence[Order], folder: Path, *, device: str = "cpu") -> dict[str, Any]:
    """Outcomes by the order's name, of this process by itself."""
    return {order.name: trained(order, setting_of(order, folder, None, device=device)) for order in orders}


def main() -> None:
    rank = Rank(**json.loads(sys.argv[1]))
    folder = Path(rank.folder)
    orders = [Order(**order) for order in rank.orders]
    met = folder / "address"
    if rank.rank == 0:
        (folder / "new").write_text(task_of(orders[0].task).host(rank.address))
        (folder / "new").rename(met)
    while not met.exists():
        time.sleep(0.01)
    group = Group(
        rank.rank,
        rank.size,
        met.read_text(),
        hang_s=rank.hang_s,
        interface_of="127.0.0.1",
        shares_gpu=rank.device == "cuda",
    )
    outcomes: dict[str, Mapping[str, Any]] = {}
    for order in orders:
        try:
            outcomes[order.name] = trained(order, setting_of(order, folder, group, device=rank.device))
        except HpoError as error:
            outcomes[order.name] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(outcomes), flush=True)
    # As Ray ends a rank. While Python finalizes, one of gloo's threads may let go of its last tensor, which wants the
    # interpreter, and the process is aborted: seen with torch 2.14, one in ten of those whose threads come last.
    os._exit(0)


if __name__ == "__main__":
    main()
