"""Trains one trial in a process of its own: `python -m tests.training.fresh '<JSON of an Order>'`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpo.protocols import Setting, Step, Task, Trainer


@dataclass(frozen=True)
class Order:
    """What to train: `task` is `module:name` of a task or of a function that returns one."""

    task: str
    config: dict[str, Any]
    seed: int
    steps: int
    metric: str
    cache_dir: str
    save: str
    load: str | None = None


def task_of(name: str) -> Task:
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    return found if isinstance(found, Task) else found()


def trainer_of(name: str, *, metric: str, cache_dir: str, device: str = "cpu") -> Trainer:
    task = task_of(name)
    return task.begin(
        Setting(
            device=device,
            num_threads=1,
            dataset=task.locate(None),
            cache_dir=Path(cache_dir),
            metric=metric,
            sign=-1 if "loss" in metric else 1,
        )
    )


def exact(step: Step) -> dict[str, Any]:
    """The step with its numbers to the last bit, but not how it came about: that is told once."""
    return {**asdict(step), "notes": {}, "metrics": {name: value.hex() for name, value in step.metrics.items()}}


def in_new_process(order: Order) -> list[Mapping[str, Any]]:
    """The exact steps of the order, carried out by a process that knows nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.fresh", json.dumps(asdict(order))],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    trainer = trainer_of(order.task, metric=order.metric, cache_dir=order.cache_dir)
    trainer.begin(order.config, seed=order.seed)
    if order.load:
        trainer.load(Path(order.load))
    steps = [exact(trainer.step()) for _ in range(order.steps)]
    trainer.save(Path(order.save))
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
