"""Have faults come to a study again and again, start it again, and count what was lost.

    python benchmarks/chaos.py --kills 50 --seed 0                  kills, on this machine
    python benchmarks/chaos.py --hosts 3 --faults 100 --seed 0      faults of all kinds, on pretended hosts; as root

Kills: each round starts `python -m hpo.run benchmarks/chaos_study.py`, waits a random time after its first new report,
and kills with SIGKILL: the driver, or a trial's process, in turn (after a trial's, the driver too: soon, or, in half
of the rounds, when it has had the time to try the trial again). What a reader of the store was shown counts as
acknowledged, and is looked for after each kill, before anything is trained again. At the end the study is run to its
end, and the journal is held against itself:

    reports lost          shown to a reader, and not in the store after a kill (or with another score)
    reports double        more than one row for a step of a trial
    wrong decisions       decisions that a replay of the journal does not give

Faults: Ray runs on three hosts (`tests/cluster/hosts.py`), a head that holds the driver and two that train. Study
after study, of one process a trial, of two workers on two hosts, and with its results in a bucket, meets the faults of
its deck (`chaos_faults.py`), each when the study trains again after the one before, and is run to its end. A line of
JSON tells of each fault and of each study, tables come at the end.

Exits with 1 if any of the three counts is not 0, or a study does not finish.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.chaos_faults import Came, Drawn, by_kind, by_study, studies
from benchmarks.chaos_ledger import Ledger, verdict
from hpo.results import Store

if TYPE_CHECKING:
    from benchmarks.chaos_hosts import Cluster

STUDY = Path(__file__).with_name("chaos_study.py")


def start(results: Path, trials: int, log: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "hpo.run", str(STUDY), "--results", str(results), "--cpus", "2"]
    words += ["--trials", str(trials)]
    with log.open("ab") as out:
        return subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)


def trial_processes(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        family = psutil.Process(driver.pid).children(recursive=True)
        titles = {process: " ".join(process.cmdline()) for process in family}
        return [process for process, title in titles.items() if title.startswith("ray::") and "trial" in title.lower()]
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


def kills(options: argparse.Namespace) -> int:
    """Kill on this machine; the exit code."""
    dice = random.Random(options.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hpo-chaos-") as folder:
        results, log = Path(folder) / "results", Path(folder) / "driver.log"
        ledger, trials, killed = Ledger(results), options.trials, 0
        while killed < options.kills and time.monotonic() - began < 60 * options.minutes:
            kind = ("driver", "trial")[killed % 2]
            if kill_once(ledger, trials, kind, dice, log):
                killed += 1
                print(f"{killed}: killed a {kind} process, {len(ledger.acknowledged)} reports shown", flush=True)
            if Store(results).find_run("chaos_study")["state"] == "finished":
                trials += options.trials
        last = start(results, trials, log)
        code = last.wait()
        end(last)
        ledger.check()
        found = {"kills": killed, **verdict(ledger, STUDY), "last exit code": code}
        if code or found["state"] != "finished":
            print(log.read_text()[-4000:])
    found["minutes"] = round((time.monotonic() - began) / 60, 1)
    print(json.dumps(found, indent=2))
    return 1 if is_bad(found) else 0


def is_bad(found: Mapping[str, Any]) -> bool:
    """Whether anything was lost, double or wrong, or the study did not finish."""
    counts = found["reports lost"] + found["reports double"] + found["wrong decisions"]
    return bool(counts or found["last exit code"]) or found["state"] != "finished"


def faults(options: argparse.Namespace) -> int:
    """Have faults come on pretended hosts; the exit code."""
    from benchmarks.chaos_hosts import Cluster

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # hosts and disks are taken down
    began = time.monotonic()
    lines: list[Mapping[str, Any]] = []
    found: list[Mapping[str, Any]] = []
    try:
        with Cluster.up() as cluster:
            until = began + 60 * options.minutes
            for number, (of, deck) in enumerate(studies(options.faults, seed=options.seed), 1):
                if options.only and number not in options.only:
                    continue
                if time.monotonic() > until:
                    break
                told, ended = one_study(cluster, of, deck, number=number, before=len(lines), until=until)
                for line in (*told, ended):
                    print(json.dumps(line), flush=True)
                lines += told
                found.append(ended)
    finally:  # also of what came before somebody ended it
        print(f"\n{by_kind(lines)}\n\n{by_study(found)}\n\n{(time.monotonic() - began) / 60:.1f} minutes")
    return 1 if any(map(is_bad, found)) else 0


def one_study(
    cluster: Cluster, of: str, deck: Sequence[Drawn], *, number: int, before: int, until: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What is to be told of each fault of a study, and of the study."""
    from benchmarks.chaos_driven import Driven

    driven, code, error = Driven(cluster, of=of, number=number), 1, ""
    came: list[Came] = []
    try:
        with driven.going_on():
            for drawn in deck:
                if time.monotonic() > until:
                    break
                came.append(driven.meet(drawn, number=before + len(came) + 1))
                print(f"{came[-1].number}: {of}: {drawn.kind}, {came[-1].how} {came[-1].host}", flush=True)
        code = driven.end()
    except Exception:  # noqa: BLE001 - the other studies are worth having
        error = traceback.format_exc()
        print(error, driven.log.read_text()[-6000:], flush=True)
        cluster.begin()
        with contextlib.suppress(Exception):  # what was trained is brought to its end all the same
            driven.end()
    found = {**driven.found(), "faults": len(came), "last exit code": code, "error": error}
    told = driven.lines(came)
    driven.clear()
    return told, found


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--kills", type=int, default=50)
    parse.add_argument("--hosts", type=int, choices=(1, 3), default=1)
    parse.add_argument("--faults", type=int, default=100, help="On three hosts.")
    parse.add_argument(
        "--only", type=int, nargs="+", help="Of the studies that the faults are dealt to: their numbers."
    )
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--trials", type=int, default=300, help="Trials to begin with; raised when the study finishes.")
    parse.add_argument("--minutes", type=float, default=600.0, help="Begin no round, or fault, after so long.")
    options = parse.parse_args()
    return kills(options) if options.hosts == 1 else faults(options)


if __name__ == "__main__":
    sys.exit(main())
