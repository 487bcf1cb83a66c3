"""What surrounds the training: trivial trials and reports per second, against plain Ray Tune, interleaved.

    python benchmarks/overhead.py --repeats 3

hpo: whole runs with the durable journal, the Parquet store and TensorBoard files, from an initialised Ray to a closed
store, process start included; reports per second also from the first report to the last, as the journal has them.
Plain: the same number of trials (fewer, since they are slow) or reports through `tune.Tuner` with its default loggers,
or with none, and actors reused in both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import HERE, hpo_in_new_process, in_new_process, machine

TRIALS, REPORTS, PLAIN_TRIALS = 400, 4000, 16


def plain(kind: str, *, loggers: bool) -> dict[str, Any]:
    """One study of plain Ray Tune; `function` trials are processes of their own, `class` ones are reused."""
    import os

    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "0" if loggers else "1"
    import ray
    from ray import tune

    trials, steps = (PLAIN_TRIALS, 1) if kind == "function" else (2, REPORTS // 2)

    def function(config: dict[str, Any]) -> None:
        tune.report({"score": config["x"]})

    class Class(tune.Trainable):
        def step(self) -> dict[str, Any]:
            return {"score": self.config["x"], "done": self.iteration + 1 >= steps}

        def reset_config(self, config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, folder: str) -> None: ...

        def load_checkpoint(self, folder: str) -> None: ...

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        tune.Tuner(
            function if kind == "function" else Class,
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=kind == "class"),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        wall = time.perf_counter() - began
    ray.shutdown()
    return {"wall_s": wall, "trials_per_s": trials / wall, "reports_per_s": trials * steps / wall}


def plain_in_new_process(kind: str, *, loggers: bool) -> dict[str, Any]:
    return in_new_process([sys.executable, __file__, "--plain", kind, "--loggers", str(int(loggers))])


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--repeats", type=int, default=3)
    parse.add_argument("--plain", choices=("function", "class"))
    parse.add_argument("--loggers", type=int, default=1)
    options = parse.parse_args()
    if options.plain:
        print(json.dumps(plain(options.plain, loggers=bool(options.loggers))))
        return
    print(machine())
    study = Path(HERE / "trivial_study.py")
    for _ in range(options.repeats):
        many = hpo_in_new_process(study, {"trials": TRIALS})
        print(f"hpo, {TRIALS} trivial trials: {TRIALS / many['wall_s']:.1f} trials/s", flush=True)
        rate = plain_in_new_process("function", loggers=True)["trials_per_s"]
        print(f"plain Ray Tune, {PLAIN_TRIALS} trivial trials: {rate:.2f} trials/s", flush=True)
        long = hpo_in_new_process(study, {"trials": 2, "nostopping.max_epochs": REPORTS // 2})
        rate, started = (REPORTS - 1) / long["reporting_s"], REPORTS / long["wall_s"]
        print(f"hpo, {REPORTS} reports of two trials: {rate:.0f} reports/s; with the start {started:.0f}", flush=True)
        for loggers in (True, False):
            rate = plain_in_new_process("class", loggers=loggers)["reports_per_s"]
            print(f"plain Ray Tune, default loggers {'on' if loggers else 'off'}: {rate:.0f} reports/s", flush=True)


if __name__ == "__main__":
    main()
