"""What a reader sees of one run: its sealed tables, and the journal's end that is not sealed yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hpo.results.folds import RunFold, TrialFold
from hpo.results.journal import read_segments
from hpo.results.layout import RunPaths
from hpo.results.lock import is_held
from hpo.results.segment import Entry
from hpo.results.tables import events_table, read_table, reports_table


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment; every entry that was durable when it was taken is in it once.

    Attributes:
        paths: Its files.
        sealed: Numbers of the segments that are Parquet parts.
        tail: Entries of the others, in order.
        driven: Whether a driver lives, where no lock beside the files tells it.
    """

    paths: RunPaths
    sealed: Sequence[int]
    tail: Sequence[Entry]
    driven: bool | None = None

    @classmethod
    def of(cls, paths: RunPaths, *, driven: bool | None = None) -> Snapshot:
        """The run as it is now; takes no lock, and the driver does not notice.

        Raises:
            StoreError: The unsealed end of its journal is damaged.
        """
        # Parts first: a segment that is sealed after this line is read as a segment, for segments stay.
        sealed = paths.sealed()
        before = set(sealed)
        tail, _ = read_segments(paths, [number for number in paths.segments() if number not in before])
        return cls(paths, sealed, tail, driven)

    @property
    def run(self) -> dict[str, Any]:
        """Its row; `interrupted` where it says that it is running while no driver lives."""
        table, through = read_table(self.paths.run_file)
        fold = RunFold(self.paths.run_id, self.paths.experiment, table)
        fold.apply(self._after(through))
        row: dict[str, Any] = fold.table().to_pylist()[0]
        driven = is_held(self.paths.lock) if self.driven is None else self.driven
        if row["state"] == "running" and not driven:
            row["state"] = "interrupted"
        return row

    @property
    def trials(self) -> pa.Table:
        """A row per trial, by number."""
        try:
            table, through = read_table(self.paths.trials_file)
        except FileNotFoundError:
            table, through = None, 0
        after = self._after(through)
        if table is not None and not after:
            return table
        fold = TrialFold(self.paths.run_id, table)
        fold.apply(after)
        return fold.table()

    @property
    def reports_parts(self) -> list[Path]:
        """Files of the sealed reports."""
        files = (self.paths.reports_part(number) for number in self.sealed)
        return [file for file in files if file.exists()]

    @property
    def events_parts(self) -> list[Path]:
        """Files of the sealed events."""
        return [self.paths.events_part(number) for number in self.sealed]

    @property
    def reports_tail(self) -> pa.Table:
        """The reports that no part holds yet."""
        return reports_table(self.paths.run_id, self.tail)

    @property
    def events_tail(self) -> pa.Table:
        """The events that no part holds yet."""
        return events_table(self.paths.run_id, self.tail)

    def _after(self, seq: int) -> list[Entry]:
        return [entry for entry in self.tail if entry.seq > seq]
