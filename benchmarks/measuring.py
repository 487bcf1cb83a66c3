"""What the benchmarks share: a run without a view, in a process of its own, timed from an initialised Ray."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def machine() -> str:
    """The machine in a few words."""
    import psutil
    import ray
    import torch

    memory = psutil.virtual_memory().total / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB{gpu}; Python {platform.python_version()}, "
        f"ray {ray.__version__}, torch {torch.__version__}"
    )


class NoView:
    def begins(self, run: Any) -> None: ...

    def happened(self, line: str) -> None: ...

    def said(self, line: str) -> None: ...

    def round(self, desk: Any) -> None: ...

    def stop_signals(self, desk: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def timed_run(file: str, overrides: dict[str, Any], *, cpus: int, concurrent: int) -> dict[str, Any]:
    """Run an experiment on a Ray that is started before the clock."""
    import ray

    from hpo.engine import driver
    from hpo.engine.cluster import tell_ray
    from hpo.experiment_file import load
    from hpo.results import read_entries

    tell_ray()
    loaded = load(file, overrides=overrides)
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
    with tempfile.TemporaryDirectory(prefix="hpo-bench-") as folder:
        options = driver.Options(results=Path(folder), cache_dir=Path(folder) / "cache", concurrent=concurrent)
        began = time.perf_counter()
        opened = driver.run(loaded, options, NoView())
        wall = time.perf_counter() - began
        checkpoints = sum(entry.kind == "checkpoint" for entry in read_entries(opened.paths))
    ray.shutdown()
    study = opened.study
    steps = sum(trial.step for trial in study.trials)
    best = study.best
    return {
        "way": "hpo",
        "trials": len(study.trials),
        "epochs": steps,
        "wall_s": round(wall, 2),
        "best": None if best is None else best.best_score,
        "checkpoints": checkpoints,
    }


def in_new_process(words: list[str]) -> dict[str, Any]:
    """The JSON of the last line that a command prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def hpo_in_new_process(file: Path, overrides: dict[str, Any], *, cpus: int = 2, concurrent: int = 2) -> dict[str, Any]:
    """`timed_run` in a new process."""
    arguments = json.dumps({"file": str(file), "overrides": overrides, "cpus": cpus, "concurrent": concurrent})
    return in_new_process([sys.executable, str(HERE / "measuring.py"), arguments])


if __name__ == "__main__":
    print(json.dumps(timed_run(**json.loads(sys.argv[1]))))
