"""Writing beside training: one file at a time, nothing lost, nothing in the wrong log."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.engine.checkpoint_writer import CheckpointWriter, Written
from hpo.engine.worker import Printer
from hpo.protocols import Snapshot
from tests.engine.toy import ToySnapshot


class Gated(Snapshot):
    """Says when it is being written, and ends when it may."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def write(self, path: Path) -> int:
        print("about to write", path.name)
        self.began.set()
        assert self.may_end.wait(30)
        print("written", file=sys.stderr)
        path.write_text("state")
        return 5


@pytest.fixture
def printer() -> Iterator[Printer]:
    printer = Printer()
    yield printer
    printer.end()


@pytest.fixture
def writer(printer: Printer) -> Iterator[CheckpointWriter]:
    writer = CheckpointWriter(printer.apart)
    yield writer
    writer.close()


def begin(writer: CheckpointWriter, snapshot: Snapshot, folder: Path, *, trial: int = 0, at: int = 1) -> Path:
    path = folder / "states" / f"{trial}-{at}.pt"
    log = folder / f"{trial}.log"
    writer.begin(snapshot, trial=trial, attempt=1, step=at, path=path, log=log)
    return path


def test_the_caller_goes_on_while_it_is_written(writer: CheckpointWriter, tmp_path: Path) -> None:
    gated = Gated()
    path = begin(writer, gated, tmp_path)
    assert gated.began.wait(30)
    assert writer.news() == ()
    assert not path.exists()
    gated.may_end.set()
    writer.wait()
    [written] = writer.news()
    assert (written.trial, written.attempt, written.step, written.path) == (0, 1, 1, str(path))
    assert (written.size, written.error) == (5, "")
    assert written.cpu_s >= 0
    assert written.write_s > 0
    assert writer.news() == ()


def test_the_second_waits_for_the_first(writer: CheckpointWriter, tmp_path: Path) -> None:
    gated = Gated()
    first = begin(writer, gated, tmp_path, at=1)
    assert gated.began.wait(30)
    threading.Timer(0.05, gated.may_end.set).start()
    begin(writer, ToySnapshot("second"), tmp_path, at=2)
    assert first.exists()
    writer.wait()
    assert [written.step for written in writer.news()] == [1, 2]


def test_an_error_is_told_and_the_next_is_written(writer: CheckpointWriter, tmp_path: Path) -> None:
    failing = begin(writer, ToySnapshot("state", fails=True), tmp_path, at=1)
    begin(writer, ToySnapshot("state"), tmp_path, at=2)
    writer.wait()
    failed, written = writer.news()
    assert failed.error == "OSError: [Errno 28] No space left on device"
    assert not failing.exists()
    assert (written.size, written.error) == (5, "")


def test_closing_waits_for_the_file(printer: Printer, tmp_path: Path) -> None:
    writer = CheckpointWriter(printer.apart)
    path = begin(writer, ToySnapshot("state", takes_s=0.05), tmp_path)
    writer.close()
    assert path.read_text() == "state"
    assert [type(written) for written in writer.news()] == [Written]


def test_what_is_printed_belongs_to_the_trial_that_is_written(
    writer: CheckpointWriter, printer: Printer, tmp_path: Path
) -> None:
    gated = Gated()
    with printer.to(tmp_path / "1.log"):
        print("trial 1 trains")
        begin(writer, gated, tmp_path, trial=0)
        assert gated.began.wait(30)
        print("and trains on")
        gated.may_end.set()
        writer.wait()
        print("to its end")
    assert (tmp_path / "1.log").read_text() == "trial 1 trains\nand trains on\nto its end\n"
    assert (tmp_path / "0.log").read_text() == "about to write 0-1.pt\nwritten\n"
