"""How long a trial of several workers takes from its place to its first step: the first one, and those after it.

    python benchmarks/group_start.py [--workers 2] [--trials 12]

The time from `started` in the journal to the first report, less what the step itself took. For the first trial it holds
the start of all processes, the import of torch, the meeting of the ranks and the opening of the data.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from measuring import NoView, machine

from hpo.engine import driver
from hpo.engine.driver import Options
from hpo.experiment_file import load
from hpo.results import read_entries

STUDY = """
from hpo import *
from hpo.training import Classification
from hpo.training.data import Digits
from hpo.training.models import Mlp

experiment = Experiment(
    task=Classification(model=Mlp, data=Digits()), space={"lr": loguniform(1e-4, 1e-1)}, goal=Maximize("val_accuracy"),
    policy=NoStopping(2), per_trial=PerTrial(workers=WORKERS), trials=TRIALS,
)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "starting" / "group_start_study.py"
        path.parent.mkdir()
        path.write_text(STUDY.replace("WORKERS", str(asked.workers)).replace("TRIALS", str(asked.trials)))
        options = Options(results=Path(scratch) / "results", cache_dir=Path(scratch) / "cache", concurrent=1)
        opened = driver.run(load(path), options, NoView())  # type: ignore[arg-type]
        starts = seconds_to_start(read_entries(opened.paths))
    print(machine())
    first, *later = starts
    print(f"{asked.workers} workers, {len(starts)} trials one after the other, digits, Mlp")
    print(f"first trial: {first:.2f} s   trials that follow: median {statistics.median(later):.3f} s, ", end="")
    print(f"at most {max(later):.3f} s")


def seconds_to_start(entries: list) -> list[float]:  # type: ignore[type-arg]
    began: dict[int, float] = {}
    starts = []
    for entry in entries:
        if entry.kind == "started":
            began[entry.trial] = entry.at
        elif entry.kind == "report" and entry.step == 1:
            starts.append(entry.at - began[entry.trial] - entry.detail["step_s"])
    return starts


if __name__ == "__main__":
    main()
