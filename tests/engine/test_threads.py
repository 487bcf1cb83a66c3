"""Threads of a trial follow the cores that it was given, whatever the environment says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpo.engine import driver
from hpo.engine.driver import Options
from hpo.experiment_file import load
from tests.engine.test_driver import Quiet

pytestmark = pytest.mark.integration

BODY = """
import json, os
import torch
from hpo import *
from hpo.training import Classification
from hpo.training.data import Digits

class Told(torch.nn.Module):
    \"\"\"Says once, in training, how many threads there are.\"\"\"
    def __init__(self, num_classes):
        super().__init__()
        self.out = torch.nn.Linear(1, num_classes)
        self.told = False

    def forward(self, images_BCHW):
        if not self.told:
            self.told = True
            told = {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
            print("threads", json.dumps(told))
        return self.out(images_BCHW.mean((1, 2, 3))[:, None])

experiment = Experiment(
    task=Classification(model=Told, data=Digits()), space={"lr": uniform(0.1, 0.2)}, goal=Maximize("val_accuracy"),
    fixed={"train_samples": 100, "val_samples": 50, "batch_size": 50},
    trials=1, policy=NoStopping(1), per_trial=PerTrial(cpus=CPUS), max_failures=0,
)
"""


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (2, 2), (0.5, 1)])
def test_follow_the_cores(ray_cluster: None, tmp_path: Path, cpus: float, threads: int) -> None:
    path = tmp_path / "threads_study.py"
    path.write_text(BODY.replace("CPUS", str(cpus)))
    opened = driver.run(load(path), Options(results=tmp_path / "results", cache_dir=tmp_path / "cache"), Quiet())
    [line] = [line for line in opened.paths.log(0).read_text().splitlines() if line.startswith("threads")][:1]
    assert json.loads(line.removeprefix("threads")) == {"torch": threads, "OMP_NUM_THREADS": str(threads)}
