from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos_faults import BOUNDS_S, DECKS, LONG_CUT_S, Came, by_kind, by_study, studies

KINDS = {kind for deck in DECKS.values() for kind in deck}


@given(num=st.integers(0, 200), seed=st.integers(0, 1000))
def test_so_many_faults_are_drawn_and_the_same_ones_again(num: int, seed: int) -> None:
    drawn = list(studies(num, seed=seed))
    assert sum(len(faults) for _, faults in drawn) == num
    assert drawn == list(studies(num, seed=seed))
    assert [of for of, _ in drawn] == [tuple(DECKS)[n % len(DECKS)] for n in range(len(drawn))]


@given(seed=st.integers(0, 1000))
def test_a_study_meets_its_deck_twice_and_nothing_lasts_longer_than_stated(seed: int) -> None:
    for of, faults in studies(100, seed=seed):
        kinds, deck = [fault.kind for fault in faults], DECKS[of]
        for drawn in (kinds[: len(deck)], kinds[len(deck) :]):
            assert Counter(drawn) <= Counter(deck)
        for fault in faults:
            low, high = BOUNDS_S.get(fault.kind, (0.0, 0.0))
            longest = LONG_CUT_S[1] if fault.kind == "network cut" else high
            assert low <= fault.lasts_s <= longest
            assert fault.host in (1, 2)


def test_a_hundred_faults_are_of_all_kinds() -> None:
    counts = Counter(fault.kind for _, faults in studies(100, seed=0) for fault in faults)
    assert set(counts) == KINDS
    assert min(counts.values()) >= 6


def _came(kind: str, **changed: object) -> Came:
    given = {"number": 1, "study": 1, "of": "one process", "how": "kill -9", "host": "", "at": 0.0, "lasted_s": 0.0}
    return Came(**{**given, "kind": kind, "restarted": False, "lost": 0, **changed})


def test_the_table_of_faults_has_counts_and_times_by_kind() -> None:
    lines = [_came("driver", restarted=True).line(cost) for cost in (3.0, 4.0, 20.04)]
    lines += [_came("network cut", lasted_s=10.0, lost=1).line(None)]
    rows = {line.split(" | ")[0].lstrip("| "): line for line in by_kind(lines).splitlines()[2:]}
    assert rows["driver"] == "| driver | 3 |  | 3 | 0 | 4.0 | 20.0 |"
    assert rows["network cut"] == "| network cut | 1 | 10.0 | 0 | 1 |  |  |"
    assert rows["all"].startswith("| all | 4 |")
    assert set(rows) == {"driver", "network cut", "all"}


def test_the_table_of_studies_counts_what_their_ends_showed() -> None:
    counts = ("faults", "reports", "decisions", "failed trials", "other scores when trained again")
    zeros = dict.fromkeys((*counts, "reports lost", "reports double", "wrong decisions"), 0)
    found = [
        {**zeros, "of": "two workers", "state": "finished", "faults": 10, "reports": 500},
        {**zeros, "of": "two workers", "state": "interrupted", "faults": 3, "reports lost": 2},
    ]
    table = by_study(found)
    assert "| two workers | 2 | 1 | 13 | 500 | 0 | 0 | 0 | 2 | 0 | 0 |" in table
    assert "| in a bucket | 0 | 0 | 0 |" in table
    assert table.splitlines()[-1] == "| all | 2 | 1 | 13 | 500 | 0 | 0 | 0 | 2 | 0 | 0 |"
