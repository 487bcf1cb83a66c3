"""Kill a study again and again, start it again, and count what was lost.

    python benchmarks/chaos.py --kills 50 --seed 0

Each round starts `python -m hpo.run benchmarks/chaos_study.py`, waits a random time after its first new report, and
kills with SIGKILL: the driver, or a trial's process, in turn (after a trial's, the driver too: soon, or, in half of
the rounds, when it has had the time to try the trial again). What a reader of the store was shown counts as
acknowledged, and is looked for after each kill, before anything is trained again. At the end the study is run to its
end, and the journal is held against itself:

    reports lost          shown to a reader, and not in the store after a kill (or with another score)
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hpo.engine.study import Study
from hpo.errors import ReplayError
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
    rows = Store(results).sql("SELECT trial, step, score FROM reports").to_pylist()
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


@dataclass
class Ledger:
    """What readers were shown, and whether the store still says so after each kill."""

    results: Path
    acknowledged: dict[tuple[int, int], str] = field(default_factory=dict)
    lost: set[tuple[int, int]] = field(default_factory=set)

    def show(self) -> int:
        """A reader looks."""
        for key, score in reports(self.results).items():
            self.acknowledged.setdefault(key, score)
        return len(self.acknowledged)

    def check(self) -> None:
        """Nobody writes now: what was shown has to be there, before anybody trains it again."""
        now = reports(self.results)
        self.lost |= {key for key, score in self.acknowledged.items() if now.get(key) != score}


def kill_once(ledger: Ledger, trials: int, kind: str, dice: random.Random, log: Path) -> bool:
    """One start and one kill; whether there was anything to kill."""
    before = ledger.show()
    driver = start(ledger.results, trials, log)
    deadline = time.monotonic() + 120
    while driver.poll() is None and ledger.show() <= before and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(dice.uniform(0.0, 1.5))
    killed = False
    if kind == "trial" and (victims := trial_processes(driver)):
        dice.choice(sorted(victims, key=lambda process: process.pid)).kill()
        killed = True
        # In half of the rounds the driver lives long enough to try the trial again, in a new process.
        time.sleep(dice.uniform(6.0, 10.0) if dice.random() < 0.5 else dice.uniform(0.5, 4.0))
    ledger.show()
    if driver.poll() is None:
        os.kill(driver.pid, signal.SIGKILL)
        killed = killed or kind == "driver"
    end(driver)
    ledger.check()
    return killed


def verdict(ledger: Ledger) -> dict[str, Any]:
    results = ledger.results
    store = Store(results)
    run = store.find_run("chaos_study")
    now = reports(results)
    doubles = store.sql("SELECT trial, step FROM reports GROUP BY ALL HAVING count(*) > 1").num_rows
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
        "acknowledged": len(ledger.acknowledged),
        "reports": len(now),
        "decisions": decisions,
        "other scores when trained again": sum(entry.kind == "differs" for entry in entries),
        "reports lost": len(ledger.lost),
        "reports double": doubles,
        "wrong decisions": wrong,
    }


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--kills", type=int, default=50)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--trials", type=int, default=300, help="Trials to begin with; raised when the study finishes.")
    parse.add_argument("--minutes", type=float, default=600.0, help="Begin no round after so long.")
    options = parse.parse_args()
    dice = random.Random(options.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hpo-chaos-") as folder:
        results, log = Path(folder) / "results", Path(folder) / "driver.log"
        ledger, trials, kills = Ledger(results), options.trials, 0
        while kills < options.kills and time.monotonic() - began < 60 * options.minutes:
            kind = ("driver", "trial")[kills % 2]
            if kill_once(ledger, trials, kind, dice, log):
                kills += 1
                print(f"{kills}: killed a {kind} process, {len(ledger.acknowledged)} reports shown", flush=True)
            if Store(results).find_run("chaos_study")["state"] == "finished":
                trials += options.trials
        last = start(results, trials, log)
        code = last.wait()
        end(last)
        ledger.check()
        found = {"kills": kills, **verdict(ledger), "last exit code": code}
        if code or found["state"] != "finished":
            print(log.read_text()[-4000:])
    found["minutes"] = round((time.monotonic() - began) / 60, 1)
    print(json.dumps(found, indent=2))
    bad = found["reports lost"] + found["reports double"] + found["wrong decisions"] + code
    return 1 if bad or found["state"] != "finished" else 0


if __name__ == "__main__":
    sys.exit(main())
