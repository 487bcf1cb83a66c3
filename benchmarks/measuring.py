"""What the benchmarks share: a run without a view, in a process of its own, timed from an initialised Ray."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
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


class PeakMemory:
    """The most memory that was taken while a context lasted, looked at ten times a second.

    Attributes:
        mb: MiB: of the GPU where there is one, else of this process and all below it.
    """

    def __enter__(self) -> PeakMemory:
        self.mb, self._over = 0.0, threading.Event()
        self._look = _gpu_memory_mb if shutil.which("nvidia-smi") else _own_memory_mb
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.mb = max(self.mb, self._look())


def _gpu_memory_mb() -> float:
    words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return float(sum(int(line) for line in done.stdout.split() if line.isdigit()))


def _own_memory_mb() -> float:
    import psutil

    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 2**20


def timed_run(
    file: str, overrides: dict[str, Any], *, cpus: int, concurrent: int, data_dir: str | None
) -> dict[str, Any]:
    """Run an experiment on a Ray that is started before the clock."""
    import ray

    from hpo.engine import driver
    from hpo.engine.cluster import tell_ray
    from hpo.experiment_file import load
    from hpo.results import read_entries
    from hpo.training.data.images import default_cache_dir

    tell_ray()
    loaded = load(file, overrides=overrides)
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
    with tempfile.TemporaryDirectory(prefix="hpo-bench-") as folder:
        cache = Path(folder) / "cache" if data_dir is None else default_cache_dir()
        options = driver.Options(
            results=Path(folder),
            cache_dir=cache,
            concurrent=concurrent,
            data_dir=None if data_dir is None else Path(data_dir),
        )
        began = time.perf_counter()
        opened = driver.run(loaded, options, NoView())
        wall = time.perf_counter() - began
        entries = read_entries(opened.paths)
    ray.shutdown()
    study = opened.study
    steps = sum(trial.step for trial in study.trials)
    best = study.best
    reports = [entry for entry in entries if entry.kind == "report"]
    saved = [entry for entry in entries if entry.kind == "checkpoint"]
    steps_s = [entry.detail["step_s"] for entry in reports]
    rates = [entry.detail["samples_per_s"] or 0.0 for entry in reports]
    return {
        "way": "hpo",
        "trials": len(study.trials),
        "epochs": steps,
        "wall_s": round(wall, 2),
        "best": None if best is None else best.best_score,
        "checkpoints": len(saved),
        "reporting_s": round(reports[-1].at - reports[0].at, 2),
        "samples_per_s": round(sum(rate * step_s for rate, step_s in zip(rates, steps_s, strict=True)) / wall),
        "busy": round(sum(steps_s) / wall / concurrent, 3),
        "checkpoints_blocked_s": round(
            sum(e.detail.get("blocked_s", 0.0) for e in entries if e.kind == "checkpoint"), 3
        ),
    }


def in_new_process(words: list[str]) -> dict[str, Any]:
    """The JSON of the last line that a command prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def hpo_in_new_process(
    file: Path, overrides: dict[str, Any], *, cpus: int = 2, concurrent: int = 2, data_dir: Path | None = None
) -> dict[str, Any]:
    """`timed_run` in a new process."""
    where = {"file": str(file), "data_dir": None if data_dir is None else str(data_dir)}
    arguments = json.dumps({**where, "overrides": overrides, "cpus": cpus, "concurrent": concurrent})
    return in_new_process([sys.executable, str(HERE / "measuring.py"), arguments])


if __name__ == "__main__":
    print(json.dumps(timed_run(**json.loads(sys.argv[1]))))
