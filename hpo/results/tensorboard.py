"""TensorBoard's event files, written on the driver from what the journal holds, so that they cost a trial nothing."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpo.results.folds import TrialFold, TrialRow
from hpo.results.layout import RunPaths
from hpo.results.segment import Entry

_GATHER_S = 0.5
_ENDED = ("stopped", "completed", "failed")
_log = logging.getLogger(__name__)


class TensorBoardWriter:
    """Takes journal entries and writes `tensorboard/trial-00005/…`: scalars over steps, hyper-parameters at the end.

    `feed` returns at once; a thread of its own writes, about twice a second. The files are for looking at: a crash
    may lose their last second, which the tables have. When the disk refuses, the run goes on without them.

    Args:
        paths: Files of the run.
        goal: Name of the goal metric, shown with the hyper-parameters beside the best score.
        recovered: Entries of earlier drivers: known, and not written again.
    """

    def __init__(self, paths: RunPaths, *, goal: str, recovered: Iterable[Entry] = ()) -> None:
        self._paths, self._goal = paths, goal
        self._trials = TrialFold(paths.run_id)
        self._trials.apply(recovered)
        self._fed: queue.SimpleQueue[Sequence[Entry] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="hpo-tensorboard", daemon=True)
        self._thread.start()

    def feed(self, entries: Sequence[Entry]) -> None:
        """Have the entries written; each is to come once, in the journal's order."""
        self._fed.put(entries)

    def close(self) -> None:
        """Write what is left, and end; a second call does nothing."""
        self._closing.set()
        self._fed.put(None)
        self._thread.join()

    def _write_on(self) -> None:
        files: _TrialFiles | None = None
        try:
            try:
                while (batch := self._gathered()) is not None:
                    files = files or _TrialFiles(self._paths, self._goal)
                    for entry in batch:
                        self._trials.apply([entry])
                        if entry.trial is not None:
                            files.write(entry, self._trials.rows.get(entry.trial))
                    files.flush()
            finally:
                if files is not None:
                    files.close()
        except OSError as error:  # of a full disk a second one, since closing writes what is left
            _log.warning("TensorBoard's files of run %s end here: %s", self._paths.run_id, error)

    def _gathered(self) -> list[Entry] | None:
        """What was fed, after a wait for more of it; None at the end."""
        first = self._fed.get()
        if first is None:
            return None
        self._closing.wait(_GATHER_S)
        batch = list(first)
        while not self._fed.empty():
            more = self._fed.get()
            if more is None:
                self._fed.put(None)
                break
            batch += more
        return batch


class _TrialFiles:
    """The open event files, one for each trial that trains."""

    def __init__(self, paths: RunPaths, goal: str) -> None:
        # Where PyTorch is installed, tensorboardX imports it: seconds, which only this thread is to spend.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        self._paths, self._goal = paths, goal
        self._writer, self._hparams = event_file_writer.EventsWriter, summary.hparams
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._open: dict[int, Any] = {}

    def write(self, entry: Entry, row: TrialRow | None) -> None:
        """Write what the entry says about its trial; close the file of a trial that does not train now."""
        if row is None:
            return
        if entry.kind == "report":
            self._write(entry, self._scalars(_numbers(entry.detail)))
        if entry.kind in ("stopped", "failed") and row.state in _ENDED:
            self._write_end(entry, row)
        if row.state != "running" and row.trial in self._open:
            self._open.pop(row.trial).close()

    def flush(self) -> None:
        """Let TensorBoard see all of it."""
        for writer in self._open.values():
            writer.flush()

    def close(self) -> None:
        """End every file."""
        for writer in self._open.values():
            writer.close()
        self._open.clear()

    def _write_end(self, entry: Entry, row: TrialRow) -> None:
        best = {} if row.best_score is None else {"best_score": row.best_score}
        config = {name: _shown(value) for name, value in row.config.items()}
        self._write(entry, self._scalars(best))
        for part in self._hparams(config, dict.fromkeys(map(_tag, [*best, self._goal]))):
            self._write(entry, part)

    def _scalars(self, numbers: Mapping[str, float]) -> Any:
        value = self._summary.Value
        return self._summary(value=[value(tag=_tag(name), simple_value=number) for name, number in numbers.items()])

    def _write(self, entry: Entry, summary: Any) -> None:
        trial = entry.trial or 0
        if trial not in self._open:
            folder = self._paths.tensorboard / f"trial-{trial:05d}"
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads all files of a folder as one; `seq` keeps a second file of one second apart.
            self._open[trial] = self._writer(str(folder / "events"), f".{entry.seq}")
        step = entry.step or 0
        self._open[trial].write_event(self._event(wall_time=entry.at, step=step, summary=summary))


def _tag(name: str) -> str:
    """What TensorBoard shows a number by: those of the layers, "grad_norm.layer1.0.conv1", stand in one group."""
    return name.replace(".", "/", 1)


def _numbers(detail: Mapping[str, Any]) -> dict[str, float]:
    named = {**detail.get("metrics", {}), "score": detail.get("score"), "lr": detail.get("lr")}
    return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
