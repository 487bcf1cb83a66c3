from __future__ import annotations

import os
import random
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from hpo.seeds import derive, stream
from tests.strategies import LAW, SEEDS

PATHS = st.lists(st.integers(-(10**6), 10**6) | st.text("abc/.:_ 019é", max_size=6), max_size=4)


@LAW
@given(seed=SEEDS, path=PATHS)
def test_seed_is_in_range_and_repeatable(seed: int, path: list[int | str]) -> None:
    assert 0 <= derive(seed, *path) < 2**63
    assert derive(seed, *path) == derive(seed, *path)


@LAW
@given(first=st.tuples(SEEDS, PATHS), second=st.tuples(SEEDS, PATHS))
def test_different_paths_have_different_seeds(first: tuple[int, list[int]], second: tuple[int, list[int]]) -> None:
    assert (derive(first[0], *first[1]) == derive(second[0], *second[1])) == (first == second)


def test_the_parts_of_a_path_keep_their_kinds_and_their_borders() -> None:
    paths: list[tuple[int | str, ...]] = [(1,), ("1",), ("1", ""), ("", "1"), (1, 1), (11,), ("a", "b"), ("ab",), ()]
    assert len({derive(0, *path) for path in paths}) == len(paths)


def test_seeds_stay_what_they_are() -> None:
    """Stored runs are resumed by drawing again: other numbers here would change what was tried."""
    assert derive(0) == 3696793467068528757  # the first 63 bits of SHA-256 of "int:0"
    assert derive(0, "trial", 17, "lr") == 4933060221373258867
    assert stream(0, "trial", 17, "lr").random() == 0.39363654878462684


def test_seeds_do_not_depend_on_the_process() -> None:
    """Nor on the salt of `hash`, which differs between the processes of a cluster."""
    script = "from hpo.seeds import derive; print(derive(3, 'trial', 4, 'x'))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(said.stdout) == derive(3, "trial", 4, "x")


def test_streams_share_nothing() -> None:
    first, second = stream(0, "a"), stream(0, "a")
    drawn = [first.random() for _ in range(3)]
    random.random()  # the global generator is nobody's
    assert [second.random() for _ in range(3)] == drawn
    assert stream(0, "b").random() != drawn[0]
