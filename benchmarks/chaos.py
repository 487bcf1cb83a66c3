"""Kill a study again and again, start it again, and count what was lost.

    python benchmarks/chaos.py --kills 50 --seed 0

Each round starts `python -m hpo.run benchmarks/chaos_study.py`, waits a random time after its first new report, and
kills with SIGKILL: the driver, or a trial's process, in turn. What a reader of the store saw just before the kill
counts as acknowledged. At the end the study is run to its end, and the journal is held against itself:

    reports lost          seen by a reader before a kill, and not in the store now (or with another score)
    reports double        more than one row for a step of a trial
    wrong decisions       decisions that a replay of the journal does not give

Exits with 1 if any of these is not 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from hpo.engine.study import Study
from hpo.errors import HpoError, ReplayError
from hpo.experiment_file import load
from hpo.results import RunPaths, Store, read_entries

STUDY = Path(__file__).with_name("chaos_study.py")


def start(results: Path, trials: int, log: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "hpo.run", str(STUDY), "--results", str(results), "--cpus", "2"]
    words += ["--trials", str(trials)]
    with log.open("ab") as out:
        return subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)


def reports(results: Path) -> dict[tuple[int, int], str]:
    """Step by step, what a reader sees now."""
    try:
        rows = Store(results).sql("SELECT trial, step, score FROM reports").to_pylist()
    except HpoError:
        return {}
    return {(row["trial"], row["step"]): repr(row["score"]) for row in rows}


def trial_processes(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        family = psutil.Process(driver.pid).children(recursive=True)
        return [process for process in family if process.name().startswith("ray::Trial")]
    except psutil.NoSuchProcess:
        return []


def end(driver: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the driver's processes: those of its session, and no others."""
    family = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == driver.pid:
                family.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    driver.wait()


def kill_once(results: Path, trials: int, kind: str, dice: random.Random, log: Path) -> tuple[dict[Any, str], bool]:
    """One start and one kill; returns what a reader saw before it, and whether the run had finished by itself."""
    before = len(reports(results))
    driver = start(results, trials, log)
    wait_s = dice.uniform(0.0, 1.5)
    deadline = time.monotonic() + 120
    while driver.poll() is None and len(reports(results)) <= before and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(wait_s)
    seen = reports(results)
    finished = driver.poll() is not None
    if not finished and kind == "trial":
        victims = trial_processes(driver)
        if victims:
            dice.choice(sorted(victims, key=lambda process: process.pid)).kill()
        time.sleep(dice.uniform(0.5, 3.0))
        seen |= reports(results)
    if driver.poll() is None:
        os.kill(driver.pid, signal.SIGKILL)
    end(driver)
    return seen, finished


def verdict(results: Path, acknowledged: dict[tuple[int, int], str]) -> dict[str, Any]:
    store = Store(results)
    run = store.find_run("chaos_study")
    now = reports(results)
    doubles = store.sql("SELECT trial, step FROM reports GROUP BY ALL HAVING count(*) > 1").num_rows
    lost = [key for key, score in acknowledged.items() if now.get(key) != score]
    entries = read_entries(RunPaths(results, "chaos_study", run["run_id"]))
    wrong = 0
    try:
        Study(load(STUDY).experiment, lambda *_, **__: None).replay(entries)
    except ReplayError as error:
        print(error)
        wrong = 1
    decisions = sum(entry.kind in ("stopped", "paused", "failed") for entry in entries)
    return {
        "state": run["state"],
        "acknowledged": len(acknowledged),
        "reports": len(now),
        "decisions": decisions,
        "other scores when trained again": sum(entry.kind == "differs" for entry in entries),
        "reports lost": len(lost),
        "reports double": doubles,
        "wrong decisions": wrong,
    }


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--kills", type=int, default=50)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--trials", type=int, default=8, help="Trials to begin with; raised when the study finishes.")
    options = parse.parse_args()
    dice = random.Random(options.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hpo-chaos-") as folder:
        results, log = Path(folder) / "results", Path(folder) / "driver.log"
        trials, kills, acknowledged = options.trials, 0, {}
        while kills < options.kills:
            kind = ("driver", "trial")[kills % 2]
            seen, finished = kill_once(results, trials, kind, dice, log)
            acknowledged |= seen
            if finished:
                trials += options.trials
                continue
            kills += 1
            print(f"{kills}: killed a {kind} process, {len(seen)} reports seen", flush=True)
        last = start(results, trials, log)
        code = last.wait()
        end(last)
        found = {"kills": kills, **verdict(results, acknowledged), "last exit code": code}
        if code or found["state"] != "finished":
            print(log.read_text()[-4000:])
    found["minutes"] = round((time.monotonic() - began) / 60, 1)
    print(json.dumps(found, indent=2))
    bad = found["reports lost"] + found["reports double"] + found["wrong decisions"] + code
    return 1 if bad or found["state"] != "finished" else 0


if __name__ == "__main__":
    sys.exit(main())
