"""SQL over a store, finished runs and running ones alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hpo.errors import StoreError, UnknownRun
from hpo.results.folds import RUNS, TRIALS
from hpo.results.layout import Place, RunPaths, runs_under
from hpo.results.lock import is_held
from hpo.results.mirror import Mirror, Seen
from hpo.results.snapshot import Snapshot
from hpo.results.tables import EVENTS, REPORTS, stacked

if TYPE_CHECKING:
    import duckdb

VIEWS = ("runs", "trials", "reports", "events")
_NUM_LISTED = 10


class Store:
    """Reads a store: views `runs`, `trials`, `reports`, `events`, as they are at the moment of each call.

    Takes no locks and disturbs no driver. A store that is empty, or not there, has views without rows.

    Of a store in a bucket each call first brings to this machine what is new of what it reads; a run that is driven
    here is read from the driver's own files.

    Args:
        root: Folder of the store, or a bucket's URL.

    Raises:
        StoreError: The URL names no storage; at a call: nothing answers there.
    """

    def __init__(self, root: Path | str | Place) -> None:
        self.place = root if isinstance(root, Place) else Place.of(root)
        self.root = self.place.root
        self._mirror = Mirror(self.place) if self.place.url else None

    def sql(self, query: str) -> pa.Table:
        """The rows that a DuckDB query gives; none for a statement that gives none.

        Raises:
            StoreError: The query is wrong, in DuckDB's words, with the views and columns that there are; or a file
                is damaged.
        """
        import duckdb  # which the processes that train have no use for

        # A view that a query does not name, it does not read.
        named = {view for view in VIEWS if re.search(rf"\b{view}\b", query, re.IGNORECASE)}
        snapshots = self._snapshots(named | ({"events"} if "reports" in named else set()))
        with duckdb.connect(":memory:") as connection:
            _make_views(connection, snapshots)
            try:
                relation = connection.sql(query)
                return pa.table({}) if relation is None else relation.to_arrow_table()
            except duckdb.Error as error:
                raise StoreError(str(error), where="SQL", remedy=_views_and_columns(connection)) from error

    def runs(self) -> pa.Table:
        """A row per run, the oldest first."""
        rows = [snapshot.run for snapshot in self._snapshots()]
        rows.sort(key=lambda row: (row["started_at"], row["run_id"]))
        return pa.Table.from_pylist(rows, schema=RUNS)

    def trials(self, run: str) -> pa.Table:
        """A row per trial of a run, by number.

        Args:
            run: As `find_run` takes it.

        Raises:
            UnknownRun: There is none of that name.
        """
        paths = self.paths(run)
        self._bring(paths.trials_file.parent)
        return stacked([Snapshot.of(paths).trials], fixed=TRIALS)

    def best(self, run: str, *, limit: int = 10) -> pa.Table:
        """Trials of a run, the best first, the earlier of equals first; those without a finite score are left out.

        Of growing data, trials that know more chunks come before those that know fewer.

        Args:
            run: As `find_run` takes it.
            limit: How many at most.

        Raises:
            UnknownRun: There is none of that name.
        """
        trials = self.trials(run)
        scored = trials.filter(trials["best_score"].is_valid())
        order = [("best_chunk", "descending"), ("best_score", "descending"), ("trial", "ascending")]
        return scored.sort_by(order).slice(0, limit)

    def find_run(self, ref: str) -> dict[str, Any]:
        """The row of the one run that is meant.

        Args:
            ref: Its id, the beginning of its id, or the name of an experiment, which means its newest run.

        Raises:
            UnknownRun: None is meant, or several are; lists what there is.
        """
        rows = self.runs().to_pylist()
        by_id = [row for row in rows if row["run_id"] == ref]
        of_experiment = [row for row in rows if row["experiment"] == ref][-1:]
        begun_so = [row for row in rows if row["run_id"].startswith(ref)]
        found = by_id or of_experiment or begun_so
        if len(found) == 1:
            return dict(found[0])
        problem = f"{len(found)} runs begin with {ref!r}" if found else f"no run is called {ref!r}"
        raise UnknownRun(problem, where=str(self.place), remedy=_what_there_is(found or rows))

    def newest(self, experiment: str, *, digest: str | None = None) -> dict[str, Any] | None:
        """The row of the newest run of an experiment, of those with the digest if one is given; None without any."""
        rows = (row for row in self.runs().to_pylist() if row["experiment"] == experiment)
        matching = [row for row in rows if digest is None or row["digest"] == digest]
        return matching[-1] if matching else None

    def paths(self, ref: str) -> RunPaths:
        """The files of the run that is meant, on this machine; of one in a bucket, the run's row is there.

        Raises:
            UnknownRun: As `find_run` does.
        """
        run_id = self.find_run(ref)["run_id"]
        return next(seen.paths for seen in self._seen() if seen.paths.run_id == run_id)

    def read(self, ref: str, file: Callable[[RunPaths], Path]) -> str:
        """What a file in the folder of a run holds.

        Raises:
            UnknownRun: As `find_run` does.
            FileNotFoundError: There is no such file.
        """
        paths = self.paths(ref)
        path = file(paths)
        if self._mirror is None or path.exists():
            return path.read_text(encoding="utf-8")
        return self._mirror.read(paths.name(path)).decode()

    def logs(self, ref: str, trial: int) -> list[Path]:
        """What a trial printed: a file for each of its processes, or none if it printed nothing.

        Raises:
            UnknownRun: As `find_run` does.
        """
        paths = self.paths(ref)
        if self._mirror is None:
            return paths.logs(trial)
        # What trials of this machine print is here first; other nodes upload theirs.
        copies = self._mirror.copies(paths)
        self._bring(copies.log(trial).parent)
        files = {path.name: path for path in (*copies.logs(trial), *paths.logs(trial))}
        return [files[name] for name in sorted(files, key=lambda name: Path(name).stem)]

    def curves(self, ref: str) -> Path:
        """The folder to start TensorBoard on.

        Raises:
            UnknownRun: As `find_run` does.
        """
        paths = self.paths(ref)
        self._bring(paths.tensorboard)
        return paths.tensorboard

    def ask_to_stop(self, ref: str) -> None:
        """Ask a run's driver to stop, as Ctrl-C would.

        Raises:
            UnknownRun: As `find_run` does.
        """
        paths = self.paths(ref)
        if self._mirror is None or is_held(paths.lock):
            paths.stop_request.touch()
        else:
            self._mirror.ask_to_stop(paths)

    def _bring(self, folder: Path) -> None:
        if self._mirror is not None:
            self._mirror.bring(folder)

    def _seen(self, tables: Collection[str] = ()) -> list[Seen]:
        return [Seen(paths) for paths in runs_under(self.root)] if self._mirror is None else self._mirror.runs(tables)

    def _snapshots(self, tables: Collection[str] = ()) -> list[Snapshot]:
        return [Snapshot.of(seen.paths, driven=seen.driven) for seen in self._seen(tables)]


def _make_views(connection: duckdb.DuckDBPyConnection, snapshots: Sequence[Snapshot]) -> None:
    connection.register("runs", pa.Table.from_pylist([shot.run for shot in snapshots], schema=RUNS))
    connection.register("trials", stacked([shot.trials for shot in snapshots], fixed=TRIALS))
    tails = stacked([shot.reports_tail for shot in snapshots if shot.tail], fixed=REPORTS)
    _view(connection, "reports", tails, (file for shot in snapshots for file in shot.reports_parts))
    tails = stacked([shot.events_tail for shot in snapshots if shot.tail], fixed=EVENTS)
    _view(connection, "events", tails, (file for shot in snapshots for file in shot.events_parts))


def _view(connection: duckdb.DuckDBPyConnection, name: str, tail: pa.Table, files: Iterable[Path]) -> None:
    """Make a view over Parquet files and a table, by the names of the columns."""
    connection.register(f"_{name}_tail", tail)
    listed = ", ".join("'{}'".format(str(file).replace("'", "''")) for file in files)
    parts = f"UNION ALL BY NAME FROM read_parquet([{listed}], union_by_name=true, hive_partitioning=false)"
    connection.execute(f"CREATE VIEW {name} AS FROM _{name}_tail {parts if listed else ''}")


def _views_and_columns(connection: duckdb.DuckDBPyConnection) -> str:
    lines = []
    for view in VIEWS:
        relation = connection.table(view) if view in ("runs", "trials") else connection.view(view)
        lines.append(f"{view}: {', '.join(relation.columns)}")
    return "there are these views and columns:\n    " + "\n    ".join(lines)


def _what_there_is(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "the store is empty: is --results right?"
    newest = [f"{row['run_id']} ({row['experiment']})" for row in rows[: -_NUM_LISTED - 1 : -1]]
    more = f" and {len(rows) - _NUM_LISTED} older ones" if len(rows) > _NUM_LISTED else ""
    return f"there are, newest first: {', '.join(newest)}{more}"
