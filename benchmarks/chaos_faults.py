"""Which faults come, in which order, for how long; and their figures as tables."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

EVERYWHERE = ("driver", "raylet", "trial", "host off", "network cut", "checkpoint damaged")
ON_A_DISK = ("store's disk full", "checkpoints' disk full")
DECKS: Mapping[str, tuple[str, ...]] = {
    "one process": (*EVERYWHERE, *ON_A_DISK),
    "two workers": (*EVERYWHERE, *ON_A_DISK, "rank", "rank"),
    "in a bucket": (*EVERYWHERE, "S3 refuses", "S3 refuses", "S3 refuses"),
}
"""The faults of a study, by what kind of study it is: each deck is played twice to its end, in drawn orders."""
BOUNDS_S: Mapping[str, tuple[float, float]] = {
    "host off": (2.0, 10.0),
    "network cut": (5.0, 20.0),
    "store's disk full": (3.0, 6.0),
    "checkpoints' disk full": (3.0, 8.0),
    "S3 refuses": (5.0, 20.0),
}
"""How long a fault lasts, at least and at most; others are over at once."""
LONG_CUT_S = (40.0, 60.0)
LONG_CUTS = 0.15
"""So large a share of the network's cuts is long."""


@dataclass(frozen=True)
class Drawn:
    """A fault that is to come.

    Attributes:
        kind: One of a deck.
        lasts_s: So long, before it is undone; 0 where there is nothing to undo.
        host: Which of the two hosts that train is hit, where the fault hits one.
        variant: Between 0 and 1: chooses among the ways in which the fault can come.
    """

    kind: str
    lasts_s: float
    host: int
    variant: float


@dataclass(frozen=True)
class Came:
    """A fault that came.

    Attributes:
        number: Counts the faults, from 1.
        study: Counts the studies, from 1.
        of: The kind of study.
        kind: Of fault.
        how: What was hit, and in which way.
        host: Name of the one host that was hit; empty where it was all of them.
        at: When, Unix time.
        lasted_s: Seconds until it was undone.
        restarted: Whether the study's command was given again.
        lost: Reports that readers were shown before, and missed after.
    """

    number: int
    study: int
    of: str
    kind: str
    how: str
    host: str
    at: float
    lasted_s: float
    restarted: bool
    lost: int

    def line(self, time_lost_s: float | None) -> dict[str, Any]:
        """What is told of it, with what it cost."""
        cost = None if time_lost_s is None else round(time_lost_s, 1)
        return {**asdict(self), "at": round(self.at, 2), "lasted_s": round(self.lasted_s, 1), "time_lost_s": cost}


def studies(num_faults: int, *, seed: int) -> Iterator[tuple[str, list[Drawn]]]:
    """Kinds of study and their faults, until there are so many."""
    number = 0
    while num_faults > 0:
        of = tuple(DECKS)[number % len(DECKS)]
        dice = random.Random(f"{seed}/{number}")
        twice = [kind for _ in range(2) for kind in dice.sample(DECKS[of], len(DECKS[of]))]
        faults = [_drawn(kind, dice) for kind in twice][:num_faults]
        yield of, faults
        num_faults -= len(faults)
        number += 1


def _drawn(kind: str, dice: random.Random) -> Drawn:
    bounds = BOUNDS_S.get(kind, (0.0, 0.0))
    if kind == "network cut" and dice.random() < LONG_CUTS:
        bounds = LONG_CUT_S
    return Drawn(kind, dice.uniform(*bounds), host=dice.choice((1, 2)), variant=dice.random())


def by_kind(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row for each kind of fault, of their lines."""
    rows = [
        "| fault | n | lasted, median s | command again | reports lost | time lost, median s | worst s |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(kind for deck in DECKS.values() for kind in deck):
        of_kind = [line for line in lines if line["kind"] == kind]
        if of_kind:
            rows.append(_row(kind, of_kind))
    return "\n".join([*rows, _row("all", lines)])


def _row(kind: str, lines: Sequence[Mapping[str, Any]]) -> str:
    costs = [line["time_lost_s"] for line in lines if line["time_lost_s"] is not None]
    lasted = statistics.median([line["lasted_s"] for line in lines] or [0.0])
    cells = [kind, len(lines), f"{lasted:.1f}" if lasted else "", sum(line["restarted"] for line in lines)]
    cells += [sum(line["lost"] for line in lines)]
    cells += [f"{statistics.median(costs):.1f}", f"{max(costs):.1f}"] if costs else ["", ""]
    return f"| {' | '.join(map(str, cells))} |"


def by_study(found: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row for each kind of study, of what was found at their ends."""
    summed = (
        *("faults", "reports", "decisions", "failed trials", "other scores when trained again"),
        *("reports lost", "reports double", "wrong decisions"),
    )
    rows = [f"| study | studies | finished | {' | '.join(summed)} |", "|---" * (len(summed) + 3) + "|"]
    for of in (*DECKS, "all"):
        chosen = [one for one in found if of in ("all", one["of"])]
        finished = sum(one["state"] == "finished" for one in chosen)
        counts = [sum(one[name] for one in chosen) for name in summed]
        rows.append(f"| {' | '.join(map(str, (of, len(chosen), finished, *counts)))} |")
    return "\n".join(rows)
