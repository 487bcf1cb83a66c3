"""A whole study against plain Ray Tune, interleaved: wall time from an initialised Ray to the last result.

    python benchmarks/study_speed.py --yardstick PATH/plain_ray_tune.py --data digits.npz --repeats 2

The yardstick is a script with the interface `--way WAY --data FILE --trials N --concurrent N --max-epochs N
--widths W,W,…` that prints one line of JSON with `wall_s`, `epochs` and `best`. Both train 64 trials of the same CNN,
two at a time, with ASHA to 9 epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from measuring import HERE, hpo_in_new_process, in_new_process, machine


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--yardstick", required=True)
    parse.add_argument("--data", required=True)
    parse.add_argument("--way", default="expert")
    parse.add_argument("--trials", type=int, default=64)
    parse.add_argument("--max-epochs", type=int, default=9)
    parse.add_argument("--concurrent", type=int, default=2)
    parse.add_argument("--widths", default="64,64,128,128,256", help="Filters of the CNN, for both.")
    parse.add_argument("--repeats", type=int, default=2)
    options = parse.parse_args()
    print(machine())
    found: dict[str, list[dict[str, Any]]] = {"hpo": [], options.way: []}
    for _ in range(options.repeats):
        filters = [int(width) for width in options.widths.split(",")]
        overrides = {"trials": options.trials, "asha.max_epochs": options.max_epochs, "filters": filters}
        ours = hpo_in_new_process(HERE / "digits_study.py", overrides, concurrent=options.concurrent)
        words = [sys.executable, options.yardstick, "--way", options.way, "--data", options.data]
        words += ["--trials", str(options.trials), "--concurrent", str(options.concurrent)]
        theirs = in_new_process([*words, "--max-epochs", str(options.max_epochs), "--widths", options.widths])
        for way, result in (("hpo", ours), (options.way, theirs)):
            found[way].append(result)
            print(way, json.dumps(result), flush=True)
    walls = {way: statistics.mean(result["wall_s"] for result in results) for way, results in found.items()}
    print(f"mean wall: {walls}; {options.way} / hpo = {walls[options.way] / walls['hpo']:.1f} (n = {options.repeats})")


if __name__ == "__main__":
    main()
