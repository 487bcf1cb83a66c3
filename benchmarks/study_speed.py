"""A whole study against plain Ray Tune, interleaved: wall time from an initialised Ray to the last result.

    python benchmarks/study_speed.py --yardstick PATH/plain_ray_tune.py --data digits.npz --repeats 2
    python benchmarks/study_speed.py --study cifar --yardstick PATH/plain_ray_tune.py --data cifar.npz --data-dir DIR

The yardstick is a script with the interface `--way WAY --data FILE --trials N --concurrent N --max-epochs N
--widths W,W,…` that prints one line of JSON with `wall_s`, `samples_per_s`, `epochs` and `best`. Both train the same
CNN with ASHA. `busy` is the time in training steps over the wall time, summed over the trials that run at a time;
of the yardstick it is not known. `peak` is memory: of the GPU where there is one, else of all processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from measuring import HERE, PeakMemory, hpo_in_new_process, in_new_process, machine

STUDIES = {"digits": (9, 2, 2), "cifar": (27, 1, 4)}
"""Epochs, and trials at a time: ours and the yardstick's."""


def ours(options: argparse.Namespace) -> dict[str, Any]:
    filters = [int(width) for width in options.widths.split(",")]
    overrides = {"trials": options.trials, "asha.max_epochs": options.max_epochs, "filters": filters}
    for setting in options.set:
        name, _, value = setting.partition("=")
        overrides[name] = value
    study = HERE / f"{options.study}_study.py"
    return hpo_in_new_process(
        study, overrides, cpus=options.cpus, concurrent=options.ours_at_a_time, data_dir=options.data_dir
    )


def theirs(options: argparse.Namespace, way: str) -> dict[str, Any]:
    words = [sys.executable, options.yardstick, "--way", way, "--data", options.data]
    words += ["--trials", str(options.trials), "--concurrent", str(options.theirs_at_a_time)]
    return in_new_process([*words, "--max-epochs", str(options.max_epochs), "--widths", options.widths])


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--yardstick", required=True)
    parse.add_argument("--data", required=True, help="The yardstick's data.")
    parse.add_argument("--study", choices=sorted(STUDIES), default="digits")
    parse.add_argument("--data-dir", type=Path, help="Where our study finds CIFAR-10.")
    parse.add_argument("--ways", default="expert", help="The yardstick's, separated by commas: expert,tutorial.")
    parse.add_argument("--trials", type=int, default=64)
    parse.add_argument("--max-epochs", type=int)
    parse.add_argument("--ours-at-a-time", type=int)
    parse.add_argument("--theirs-at-a-time", type=int)
    parse.add_argument("--cpus", type=int, default=2)
    parse.add_argument("--widths", default="64,64,128,128,256", help="Filters of the CNN, for both.")
    parse.add_argument("--set", action="append", default=[], help="Settings of our study, as for hpo.run.")
    parse.add_argument("--repeats", type=int, default=2)
    options = parse.parse_args()
    epochs, ours_at_a_time, theirs_at_a_time = STUDIES[options.study]
    options.max_epochs = options.max_epochs or epochs
    options.ours_at_a_time = options.ours_at_a_time or ours_at_a_time
    options.theirs_at_a_time = options.theirs_at_a_time or theirs_at_a_time
    print(machine(), flush=True)
    ways = ["hpo", *options.ways.split(",")]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way in ways:
            with PeakMemory() as peak:
                result = ours(options) if way == "hpo" else theirs(options, way)
            found[way].append({**result, "peak_mb": round(peak.mb)})
            print(way, json.dumps(found[way][-1]), flush=True)
    print(table(found))


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the repeats, in Markdown; ratios to ours."""
    lines = ["| way | wall s | samples/s | hpo is … times as fast | … by samples/s | busy | best | peak MiB | n |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    wall, rate = mean(found["hpo"], "wall_s"), mean(found["hpo"], "samples_per_s")
    for way, results in found.items():
        busy = f"{mean(results, 'busy'):.0%}" if "busy" in results[0] else "-"
        best = max(result["best"] for result in results)
        its_wall, its_rate = mean(results, "wall_s"), mean(results, "samples_per_s")
        cells = [way, f"{its_wall:.1f}", f"{its_rate:,.0f}", f"{its_wall / wall:.1f}", f"{rate / its_rate:.1f}", busy]
        cells += [f"{best:.3f}", f"{mean(results, 'peak_mb'):,.0f}", str(len(results))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(results: list[dict[str, Any]], name: str) -> float:
    return statistics.mean(result[name] for result in results)


if __name__ == "__main__":
    main()
