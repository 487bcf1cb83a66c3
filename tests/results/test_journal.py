import contextlib
import logging
import math
import os
import random
import resource
import signal
import subprocess
import sys
import threading

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.errors import StoreError
from hpo.results.journal import Journal, read_entries
from hpo.results.layout import RunPaths
from tests.results.test_segment import JSON

WRITE_ON = """
import sys, pathlib
from hpo.results.journal import Journal
from hpo.results.layout import RunPaths
journal = Journal.open(RunPaths(pathlib.Path(sys.argv[1]), "e", "r"))
while True:
    for _ in range(50):
        journal.append("report", trial=1, step=journal.appended + 1, detail={"score": 0.5})
    if journal.appended % 200 == 0:
        journal.rotate()
    print(journal.synced, flush=True)
"""


def shown(entries) -> list[str]:
    """The entries as text, since NaN is not equal to itself."""
    return [repr((entry.seq, entry.at, entry.kind, entry.step, dict(entry.detail))) for entry in entries]


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    return RunPaths(tmp_path, "e", "r")


def test_entries_come_back_in_order_with_their_clock(paths):
    ticks = iter(range(100))
    with Journal.open(paths, clock=lambda: float(next(ticks))) as journal:
        assert (journal.recovered, journal.torn, journal.appended, journal.synced) == ([], None, 0, 0)
        first = journal.append("proposed", trial=0, detail={"config": {"lr": 0.1}})
        second = journal.append("note")
        assert (first.seq, first.at, second.seq, second.detail) == (1, 0.0, 2, {})
    assert read_entries(paths) == [first, second]
    with Journal.open(paths) as journal:
        assert journal.recovered == [first, second]
        assert journal.append("note").seq == 3


@given(st.lists(st.dictionaries(st.text(), JSON | st.just(math.nan), max_size=3), max_size=8), st.data())
@settings(max_examples=15, deadline=None)
def test_closed_and_opened_again_and_again_it_holds_everything(tmp_path_factory, details, data):
    paths = RunPaths(tmp_path_factory.mktemp("journal"), "e", "r")
    appended = []
    while details:
        count = data.draw(st.integers(1, len(details)))
        with Journal.open(paths) as journal:
            assert shown(journal.recovered) == shown(appended)
            appended += [journal.append("x", step=1, detail=detail) for detail in details[:count]]
            if data.draw(st.booleans()):
                journal.rotate()
        details = details[count:]
    with Journal.open(paths) as journal:
        assert [entry.seq for entry in journal.recovered] == list(range(1, len(appended) + 1))
        assert shown(journal.recovered) == shown(appended)


def test_flushed_is_on_disk(paths):
    with Journal.open(paths) as journal:
        for step in range(500):
            journal.append("report", step=step)
        journal.flush()
        assert journal.synced == journal.appended == 500
        stream = pa.ipc.open_stream(paths.segment(1).read_bytes())
        assert stream.read_all().num_rows == 500


def test_a_torn_tail_is_cut_and_told(paths):
    with Journal.open(paths) as journal:
        journal.append("one")
        journal.flush()
        journal.append("two")
    size = paths.segment(1).stat().st_size
    os.truncate(paths.segment(1), size - 5)
    with Journal.open(paths) as journal:
        assert [entry.kind for entry in journal.recovered] == ["one"]
        torn = journal.torn
        assert torn.segment == paths.segment(1)
        assert torn.offset + torn.num_bytes == size - 5
        assert paths.segment(1).stat().st_size == torn.offset
        journal.append("three")
    with Journal.open(paths) as journal:
        assert [(entry.seq, entry.kind) for entry in journal.recovered] == [(1, "one"), (2, "three")]
        assert journal.torn is None
    assert paths.segments() == [1, 2]


def test_a_journal_that_died_at_birth_is_empty(paths):
    paths.journal_dir.mkdir(parents=True)
    paths.segment(1).write_bytes(b"\xff\xff")
    with Journal.open(paths) as journal:
        assert (journal.recovered, journal.torn.num_bytes) == ([], 2)
        journal.append("one")
    with Journal.open(paths) as journal:
        assert [entry.kind for entry in journal.recovered] == ["one"]


def test_a_rotated_segment_holds_all_that_came_before(paths):
    with Journal.open(paths) as journal:
        assert journal.rotate() == 0
        for number in (1, 2, 3):
            journal.append("x")
            assert journal.rotate() == number
            assert journal.rotate() == number
        assert paths.segments() == [1, 2, 3]


def test_a_missing_segment_is_an_error(paths):
    with Journal.open(paths) as journal:
        for _ in range(3):
            journal.append("x")
            journal.rotate()
    paths.segment(2).unlink()
    with pytest.raises(
        StoreError, match=r"000003.arrow: begins with entry 3, but the one before ends with 1\n.*from a copy"
    ):
        Journal.open(paths)


def test_listeners_hear_of_durable_entries_once_and_in_order(paths, caplog):
    heard, broken_calls = [], []

    def broken(batch):
        broken_calls.append(batch)
        raise RuntimeError("mine")

    with caplog.at_level(logging.CRITICAL, "hpo"), Journal.open(paths) as journal:
        journal.on_synced += [broken, heard.extend, lambda batch: heard_synced.append(journal.synced >= batch[-1].seq)]
        heard_synced = []
        appended = []
        for _ in range(20):
            appended.append(journal.append("x"))
            journal.flush()
    assert heard == appended
    assert all(heard_synced)
    assert len(broken_calls) == 1


def test_many_threads_may_append(paths):
    with Journal.open(paths) as journal:
        threads = [
            threading.Thread(target=lambda: [journal.append("x") for _ in range(300)] and journal.flush())
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert journal.synced == 1200
    with Journal.open(paths) as journal:
        assert [entry.seq for entry in journal.recovered] == list(range(1, 1201))


def test_closed_is_closed(paths):
    journal = Journal.open(paths)
    journal.append("x")
    journal.close()
    journal.close()
    with pytest.raises(StoreError, match=r"journal of run r: is closed\n  open the run again"):
        journal.append("x")


def test_a_folder_that_cannot_be_made_stops_the_journal(paths):
    paths.work.mkdir(parents=True)
    paths.journal_dir.write_text("in the way")
    journal = Journal.open(paths)
    journal.append("x")
    for call in (journal.flush, lambda: journal.append("y"), journal.rotate, journal.close):
        with pytest.raises(StoreError, match=r"segment-000001.arrow: cannot be written: .*\n  make room"):
            call()
    assert journal.synced == 0


@contextlib.contextmanager
def files_of_at_most(num_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_is_full_in_mid_batch_loses_nothing_synced(paths):
    journal = Journal.open(paths)
    kept = journal.append("kept")
    journal.flush()
    with files_of_at_most(4096):
        journal.append("too big", detail={"text": "x" * 5000})
        with pytest.raises(StoreError, match=r"segment-000001.arrow: cannot be written: File too large"):
            journal.flush()
    with pytest.raises(StoreError, match="cannot be written"):
        journal.close()
    with Journal.open(paths) as journal:
        assert journal.recovered == [kept]
        assert journal.torn.num_bytes > 0


def test_a_detail_that_cannot_be_kept_is_said(paths):
    journal = Journal.open(paths)
    journal.append("x", detail={"by pair": {(1, 2): 3}})
    with pytest.raises(StoreError, match=r"an entry cannot be encoded: TypeError: .*\n.*JSON can hold"):
        journal.flush()
    with pytest.raises(StoreError, match="cannot be encoded"):
        journal.close()


def test_a_killed_writer_loses_nothing_it_called_synced(paths):
    chance = random.Random(0)
    acknowledged = 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITE_ON, str(paths.root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            for _ in range(chance.randrange(10, 60)):
                acknowledged = int(writer.stdout.readline())
            writer.kill()
            rest = writer.stdout.read().rpartition("\n")[0]
        acknowledged = int(rest.splitlines()[-1]) if rest else acknowledged
        with Journal.open(paths) as journal:
            recovered = journal.recovered
            assert len(recovered) >= acknowledged > 0
            assert [entry.seq for entry in recovered] == list(range(1, len(recovered) + 1))
            assert [entry.step for entry in recovered] == [entry.seq for entry in recovered]
