import math
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.errors import StoreError
from hpo.results.segment import HEAD, SCHEMA, VERSION_KEY, Entry, encode, read_segment
from tests.results.entries import entry

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NUMBER = st.none() | st.integers(0, 2**40)
ENTRIES = st.lists(
    st.builds(
        Entry,
        st.just(0),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
        NUMBER,
        NUMBER,
        NUMBER,
        st.dictionaries(st.text(), JSON, max_size=4),
    ),
    min_size=1,
    max_size=4,
)
BATCHES = [
    [entry(1, "proposed", trial=0, config={"lr": 0.1, "name": "größe"}), entry(2, "started", trial=0)],
    [entry(3, "report", trial=0, step=1, score=math.inf)],
    [entry(seq, "report", trial=0, step=seq, score=0.5) for seq in range(4, 9)],
]
DATA = [encode(batch) for batch in BATCHES]
WHOLE = HEAD + b"".join(DATA)
ENDS = [len(HEAD) + sum(len(part) for part in DATA[:number]) for number in range(len(DATA) + 1)]
ALL = [entry for batch in BATCHES for entry in batch]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("segments") / "segment-000001.arrow"


@given(st.lists(ENTRIES, max_size=3))
@settings(max_examples=50, deadline=None)
def test_what_is_encoded_comes_back(file, batches):
    numbers = count(1)
    batches = [[replace(entry, seq=next(numbers)) for entry in batch] for batch in batches]
    file.write_bytes(HEAD * bool(batches) + b"".join(encode(batch) for batch in batches))
    read = read_segment(file)
    assert read.entries == [entry for batch in batches for entry in batch]
    assert read.torn is None


def test_nan_and_infinities_survive(file):
    file.write_bytes(HEAD + encode([entry(1, "report", values=[math.nan, math.inf, -math.inf])]))
    values = read_segment(file).entries[0].detail["values"]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]


def test_what_json_lacks_becomes_numbers_or_text(file):
    detail = {"score": np.float32(0.5), "count": np.int64(3), "path": Path("a/b"), "shape": (1, 2)}
    file.write_bytes(HEAD + encode([entry(1, "x", **detail)]))
    assert read_segment(file).entries[0].detail == {"score": 0.5, "count": 3, "path": "a/b", "shape": [1, 2]}


def test_any_reader_of_arrow_reads_a_segment(file):
    file.write_bytes(WHOLE)
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    assert table["seq"].to_pylist() == [entry.seq for entry in ALL]
    assert table.schema.metadata[VERSION_KEY] == b"1"


@given(st.integers(0, len(WHOLE)))
@settings(max_examples=200, deadline=None)
def test_cut_anywhere_the_whole_batches_before_the_cut_are_there(file, cut):
    file.write_bytes(WHOLE[:cut])
    read = read_segment(file, live=True)
    whole = max((number for number, end in enumerate(ENDS) if end <= cut), default=0)
    assert read.entries == [entry for batch in BATCHES[:whole] for entry in batch]
    begins = ENDS[whole] if whole else 0
    assert (read.torn is None) == (cut == begins)
    if read.torn is not None:
        assert (read.torn.offset, read.torn.num_bytes) == (begins, cut - begins)
        assert f"{cut - begins} bytes at offset {begins} of {file}" in str(read.torn)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_never_taken_for_content(file, at, change):
    changed = bytearray(WHOLE)
    changed[at] ^= change
    file.write_bytes(changed)
    try:
        read = read_segment(file, live=True)
    except StoreError:
        return
    assert read.entries == ALL[: len(read.entries)]
    # Only the last batch may be taken for a torn one: what comes before it had been synced.
    assert len(read.entries) in (len(ALL) - len(BATCHES[-1]), len(ALL))


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\0" * 3, b"\xff" * 64, b"\xff\xff\xff\xff\0\0\0\0" * 2])
def test_blocks_that_never_reached_the_disk_are_a_torn_tail(file, tail):
    file.write_bytes(WHOLE + tail)
    read = read_segment(file, live=True)
    assert read.entries == ALL
    assert read.torn.num_bytes == len(tail)


def test_damage_before_the_end_names_file_and_offset(file):
    broken = bytearray(WHOLE)
    broken[ENDS[2] - 20 : ENDS[2]] = bytes(20)
    file.write_bytes(broken)
    with pytest.raises(StoreError, match=rf"{file}: is damaged at offset {ENDS[1]}, .*\n.*from a copy"):
        read_segment(file, live=True)


def test_a_closed_segment_has_to_be_whole(file):
    file.write_bytes(WHOLE[:-3])
    with pytest.raises(StoreError, match=f"is damaged at offset {ENDS[2]}"):
        read_segment(file)


def test_a_newer_versions_segment_is_not_guessed_at(file):
    newer = SCHEMA.with_metadata({VERSION_KEY: b"2"})
    file.write_bytes(newer.serialize().to_pybytes())
    with pytest.raises(StoreError, match=r"schema version is 2, but this version of hpo reads 1\n.*that wrote it"):
        read_segment(file)
