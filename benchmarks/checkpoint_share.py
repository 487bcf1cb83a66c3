"""What checkpoints take from training: seconds that trials lose to them, of the seconds that trials train.

    python benchmarks/checkpoint_share.py                            # a checkpoint where hpo itself wants one
    python benchmarks/checkpoint_share.py --checkpoint-every-s 0     # as often as 1 % of the time allows

One study with ASHA, `digits_study.py` with small filters. Lost is what a trial stands still for (copying its state,
and waiting for a write in flight), and what the writing thread took from the core that the trial trains on. Of writes
that no process told the end of (the last one of each), the latter is not known. Exits with 1 above 1 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import HERE, NoView, machine

MOST = 0.01


class Seeing(NoView):
    """Keeps the run's desk, which counts what checkpoints take."""

    desk: Any = None

    def round(self, desk: Any) -> None:
        self.desk = desk


def measured(overrides: dict[str, Any], *, concurrent: int) -> dict[str, Any]:
    """The figures of one run."""
    import ray

    from hpo.engine import driver
    from hpo.engine.cluster import tell_ray
    from hpo.experiment_file import load

    tell_ray()
    loaded = load(HERE / "digits_study.py", overrides=overrides)
    ray.init(num_cpus=concurrent, include_dashboard=False, log_to_driver=False, configure_logging=False)
    seeing = Seeing()
    with tempfile.TemporaryDirectory(prefix="hpo-bench-") as folder:
        options = driver.Options(results=Path(folder), cache_dir=Path(folder) / "cache", concurrent=concurrent)
        began = time.perf_counter()
        opened = driver.run(loaded, options, seeing)
        wall_s = time.perf_counter() - began
        kept = [file.stat().st_size for file in opened.paths.checkpoints.rglob("*.pt")]
    ray.shutdown()
    spent, trained_s = seeing.desk.keeper.spent, seeing.desk.busy_s
    return {
        "trials": len(opened.study.trials),
        "epochs": seeing.desk.num_steps,
        "wall_s": round(wall_s, 1),
        "trials_train_s": round(trained_s, 1),
        "checkpoints": spent.num,
        "told": spent.num_told,
        "mb_each": round(spent.bytes / max(spent.num, 1) / 2**20, 2),
        "kept": len(kept),
        "blocked_s": round(spent.blocked_s, 3),
        "writers_cpu_s": round(spent.cpu_s, 3),
        "writing_s": round(spent.write_s, 3),
        "share_of_training": round((spent.blocked_s + spent.cpu_s) / trained_s, 5),
        "share_if_training_waited": round((spent.blocked_s + spent.write_s) / trained_s, 5),
    }


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--trials", type=int, default=32)
    parse.add_argument("--filters", type=int, nargs="+", default=[32, 64])
    parse.add_argument("--checkpoint-every-s", type=float, default=30.0)
    parse.add_argument("--concurrent", type=int, default=2)
    options = parse.parse_args()
    print(machine())
    overrides = {
        "trials": options.trials,
        "filters": tuple(options.filters),
        "checkpoint_every_s": options.checkpoint_every_s,
    }
    found = measured(overrides, concurrent=options.concurrent)
    print(json.dumps(found, indent=2))
    return int(found["share_of_training"] > MOST)


if __name__ == "__main__":
    sys.exit(main())
