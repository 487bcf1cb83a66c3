"""What a study was seen to say, held against what its store says later; and what a fault cost it, from its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo.engine.study import Study
from hpo.errors import ReplayError
from hpo.experiment_file import load
from hpo.results import Entry, Place, RunPaths, Store, read_entries

_ENDS_A_LEASE = ("stopped", "paused", "exploited", "failed", "interrupted")
_DECISIONS = ("stopped", "paused", "failed")


def reports(results: Path | Place) -> dict[tuple[int, int], str]:
    """Step by step, what a reader sees now."""
    rows = Store(results).sql("SELECT trial, step, score FROM reports").to_pylist()
    return {(row["trial"], row["step"]): repr(row["score"]) for row in rows}


@dataclass
class Ledger:
    """What readers were shown, and whether the store still says so."""

    results: Path | Place
    acknowledged: dict[tuple[int, int], str] = field(default_factory=dict)
    lost: set[tuple[int, int]] = field(default_factory=set)

    def show(self) -> int:
        """Reports that readers were shown by now, one looking at this moment; what it misses is lost."""
        now = reports(self.results)
        self.lost |= {key for key, score in self.acknowledged.items() if now.get(key) != score}
        for key, score in now.items():
            self.acknowledged.setdefault(key, score)
        return len(self.acknowledged)

    def check(self) -> None:
        """Look whether what was shown is there, without showing anything new."""
        now = reports(self.results)
        self.lost |= {key for key, score in self.acknowledged.items() if now.get(key) != score}


def verdict(ledger: Ledger, study: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The run's state and counts: what was lost, what is double, and whether a replay decides otherwise.

    Args:
        ledger: Of the run's store.
        study: Its experiment file.
        overrides: What `--set` changed of the experiment.
    """
    name = study.stem
    store = Store(ledger.results)
    run = store.find_run(name)
    doubles = store.sql("SELECT trial, step FROM reports GROUP BY ALL HAVING count(*) > 1").num_rows
    entries = read_entries(RunPaths(store.root, name, run["run_id"]))
    wrong = 0
    try:
        Study(load(study, overrides=dict(overrides or {})).experiment, lambda *_, **__: None).replay(entries)
    except ReplayError as error:
        print(error)
        wrong = 1
    return {
        "state": run["state"],
        "acknowledged": len(ledger.acknowledged),
        "reports": len(reports(ledger.results)),
        "decisions": sum(entry.kind in _DECISIONS for entry in entries),
        "other scores when trained again": sum(entry.kind == "differs" for entry in entries),
        "reports lost": len(ledger.lost),
        "reports double": doubles,
        "wrong decisions": wrong,
    }


@dataclass(frozen=True)
class Cost:
    """What a fault cost.

    Attributes:
        time_lost_s: Seconds until the last trial that it hit had a new report; None where none had, so far.
        waiting: The trials that it hit and that have no new report yet.
    """

    time_lost_s: float | None
    waiting: frozenset[int]


def cost(entries: Iterable[Entry], *, at: float, host: str = "") -> Cost:
    """The time from a fault until each trial that it hit had a new report.

    Hit are the trials that were training at the time, on the host if one is named, or anywhere. A report is new where
    its step began after the fault: what was in flight does not count, and steps that are trained again are no reports.
    A trial that came to its end by what was in flight was not hit.

    Args:
        entries: The run's journal.
        at: When the fault came, Unix time.
        host: The name of the one host that it concerned.
    """
    training: dict[int, str] = {}  # where each was last seen in its present attempt
    hit: set[int] | None = None
    settled: list[float] = []
    for entry in entries:
        if hit is None and entry.at > at:
            hit = _on(host, training)
        if entry.trial is None:
            continue
        if entry.kind == "started":
            training[entry.trial] = ""
        elif entry.kind == "report":
            training[entry.trial] = str(entry.detail["node"])
        elif entry.kind in _ENDS_A_LEASE:
            training.pop(entry.trial, None)
        if hit is not None and entry.trial in hit and _settles(entry, after=at):
            hit.discard(entry.trial)
            settled += [entry.at - at] if entry.kind == "report" else []
    return Cost(max(settled, default=None), frozenset(_on(host, training) if hit is None else hit))


def _on(host: str, training: Mapping[int, str]) -> set[int]:
    """The trials that may be on the host."""
    return {trial for trial, node in training.items() if not (host and node) or host in node.split(",")}


def _settles(entry: Entry, *, after: float) -> bool:
    """Whether a trial's entry is a new report, or the end of what there is to report."""
    if entry.kind == "report":
        return entry.at - float(entry.detail["step_s"]) > after
    is_resumed = entry.kind == "interrupted" or bool(entry.detail.get("retry"))
    return entry.kind in _ENDS_A_LEASE and not is_resumed
