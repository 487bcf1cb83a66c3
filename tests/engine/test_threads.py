"""Threads of a trial follow the cores that it was given, whatever the environment says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("cpus", "threads"), [(2, 2), (0.5, 1)])
def test_follow_the_cores(tmp_path: Path, cpus: float, threads: int) -> None:
    path = tmp_path / "threads_study.py"
    path.write_text(BODY.replace("CPUS", str(cpus)))
    # A Ray of its own: two cores at once are to be had only where no other test's process is still ending.
    done = subprocess.run(
        [sys.executable, "-m", "hpo.run", str(path), "--cpus", "2", "--results", str(tmp_path / "results")],
        env={**os.environ, "OMP_NUM_THREADS": "8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [log] = (tmp_path / "results").rglob("*.log")
    [line] = [line for line in log.read_text().splitlines() if line.startswith("threads")][:1]
    assert json.loads(line.removeprefix("threads")) == {"torch": threads, "OMP_NUM_THREADS": str(threads)}
