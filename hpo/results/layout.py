"""Where the files of a store lie, and what it says where one cannot be written."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from hpo import files
from hpo.errors import StoreError
from hpo.storage import cache_folder, digest_of, is_url, join

_NAME = re.compile(r"\w[\w.+-]*")
_ROW = re.compile(r"runs/experiment=(?P<experiment>\w[\w.+-]*)/run=(?P<run>\w[\w.+-]*)/run\.parquet")


@dataclass(frozen=True)
class Place:
    """Where a store lies.

    Attributes:
        root: Its folder; of a store in a bucket, this machine's working folder of it.
        url: Of the bucket and prefix; empty for a folder.
    """

    root: Path
    url: str = ""

    @classmethod
    def of(cls, results: Path | str, *, cache_dir: Path | None = None) -> Place:
        """The place that `--results` names.

        Args:
            results: A folder or a URL.
            cache_dir: Where working folders lie; `hpo.storage.cache_folder()` by default.

        Raises:
            StoreError: It is a URL that names no storage.
        """
        if not is_url(results):
            return cls(Path(results).expanduser())
        url = join(str(results), "")
        return cls((cache_dir or cache_folder()) / "stores" / digest_of(url), url)

    def run(self, experiment: str, run_id: str) -> RunPaths:
        """The files of a run."""
        return RunPaths(self.root, experiment, run_id, self.url)

    def __str__(self) -> str:
        return self.url or str(self.root)


@dataclass(frozen=True)
class RunPaths:
    """Every file name of one run.

    Args:
        root: Folder of the whole store; of one in a bucket, this machine's working folder of it.
        experiment: Name of the experiment: letters, digits, `_ . + -`.
        run_id: As `new_run_id` makes them; the same characters.
        url: Of a store in a bucket, where its files belong in the end; else empty.

    Raises:
        StoreError: A name would not make a folder name.
    """

    root: Path
    experiment: str
    run_id: str
    url: str = ""

    def __post_init__(self) -> None:
        for what, name in (("experiment", self.experiment), ("run", self.run_id)):
            if not _NAME.fullmatch(name):
                raise StoreError(
                    f"{name!r} cannot be the name of a folder",
                    where=what,
                    remedy="use letters, digits, `_`, `.`, `+` and `-`, and begin with a letter, a digit or `_`",
                )

    @property
    def run_file(self) -> Path:
        """The run's row."""
        return self._table("runs") / "run.parquet"

    @property
    def trials_file(self) -> Path:
        """A row per trial."""
        return self._table("trials") / "trials.parquet"

    def reports_part(self, number: int) -> Path:
        """Reports of a sealed segment; absent where it has none."""
        return self._table("reports") / f"part-{number:06d}.parquet"

    def events_part(self, number: int) -> Path:
        """Events of a sealed segment; present, if empty, for every one: it is what says that the segment is sealed."""
        return self._table("events") / f"part-{number:06d}.parquet"

    def sealed(self) -> list[int]:
        """Numbers of the sealed segments, ascending."""
        return _numbers(self._table("events"), "part-*.parquet")

    @property
    def work(self) -> Path:
        """Folder of everything that is not a table."""
        return self.root / "work" / self.experiment / self.run_id

    @property
    def experiment_json(self) -> Path:
        """The resolved experiment."""
        return self.work / "experiment.json"

    @property
    def journal_dir(self) -> Path:
        """Folder of the journal's segments."""
        return self.work / "journal"

    def segment(self, number: int) -> Path:
        """One file of the journal, from 1."""
        return self.journal_dir / f"segment-{number:06d}.arrow"

    def segments(self) -> list[int]:
        """Numbers of the journal's files, ascending."""
        return _numbers(self.journal_dir, "segment-*.arrow")

    @property
    def lock(self) -> Path:
        """Held by the run's driver."""
        return self.work / "lock"

    @property
    def stop_request(self) -> Path:
        """Asks the driver to stop, by being there."""
        return self.work / "stop"

    @property
    def checkpoints(self) -> Path:
        """Folder of all trials' checkpoints."""
        return self.work / "checkpoints"

    def checkpoint(self, trial: int, attempt: int, step: int) -> Path:
        """State of a trial after a step, as an attempt wrote it; no two attempts write one file."""
        return self.checkpoints / f"trial-{trial:05d}" / f"attempt-{attempt:02d}-step-{step:04d}.pt"

    def log(self, trial: int, rank: int = 0, *, attempt: int = 0) -> Path:
        """What a trial printed, in the first of its processes or in another.

        For a store in a bucket, where no two nodes can write to one file, each attempt has one of its own.
        """
        attempted = f".attempt-{attempt:02d}" if self.url and attempt else ""
        return self.work / "logs" / f"trial-{trial:05d}{attempted}{f'-rank-{rank}' if rank else ''}.log"

    def logs(self, trial: int) -> list[Path]:
        """What a trial printed, in all its files, by attempt and process."""
        found = (self.work / "logs").glob(f"trial-{trial:05d}*.log")
        return sorted(found, key=lambda path: path.stem)

    @property
    def tensorboard(self) -> Path:
        """Folder to start TensorBoard on."""
        return self.work / "tensorboard"

    def name(self, path: Path) -> str:
        """What a file is called in the store."""
        return path.relative_to(self.root).as_posix()

    def target(self, path: Path) -> str:
        """Where a file belongs in the end: its own path, or a URL."""
        return join(self.url, self.name(path)) if self.url else str(path)

    def recorded(self, target: str) -> str:
        """What the journal calls a file of the run: its name in `work`, so that a store may be moved.

        Files of other runs are called by their whole path or URL, or as `of_run` calls them.
        """
        _, found, inside = target.partition("?")[0].rpartition(self._mark)
        return inside if found else target

    def located(self, recorded: str) -> str:
        """Where a file is that the journal names: a path or a URL. Whole paths, of older journals, are read as well."""
        inside = self.recorded(recorded)
        if is_url(inside) or Path(inside).is_absolute():
            return inside
        return self.target(Path(os.path.normpath(self.work / inside)))  # a URL has no ".."

    def of_run(self, run_id: str, recorded: str) -> str:
        """What the journal calls a file that the journal of another run of the experiment calls `recorded`."""
        inside = replace(self, run_id=run_id).recorded(recorded)
        return inside if is_url(inside) else os.path.normpath(Path("..", run_id, inside))

    @property
    def _mark(self) -> str:
        return f"/work/{self.experiment}/{self.run_id}/"

    def _table(self, name: str) -> Path:
        return self.root / name / f"experiment={self.experiment}" / f"run={self.run_id}"


def runs_under(root: Path) -> Iterator[RunPaths]:
    """Every run that the store has a row of, in no order."""
    for file in root.glob("runs/experiment=*/run=*/run.parquet"):
        run, experiment = file.parent.name, file.parent.parent.name
        yield RunPaths(root, experiment.removeprefix("experiment="), run.removeprefix("run="))


def made_by(run_file: str) -> tuple[str, str] | None:
    """Experiment and run that a row's name in the store tells; None where it is no such name."""
    found = _ROW.fullmatch(run_file)
    return (found["experiment"], found["run"]) if found else None


def new_run_id() -> str:
    """A name that sorts by the time of its making (UTC) and that nobody else makes: `20261121-105503-ab12`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file, durably: whoever looks sees the old content or the new, also after a power loss.

    Folders are made as needed.

    Raises:
        StoreError: It cannot be written; what was there before is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        make_folder(path.parent)
        files.write_atomically(path, lambda file: file.write(data))
    except OSError as error:
        raise cannot_write(path, error) from error


def make_folder(path: Path) -> None:
    """Make the folder and those above it, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    files.sync_folder(path.parent)


def cannot_write(path: Path, error: OSError) -> StoreError:
    """The error for a disk that refuses, with what to do about it."""
    return StoreError(
        f"cannot be written: {error.strerror or error}",
        where=str(path),
        remedy="make room or mend the permissions, then give the same command again: a run goes on from its journal",
    )


def _numbers(folder: Path, pattern: str) -> list[int]:
    return sorted(int(file.stem.rpartition("-")[2]) for file in folder.glob(pattern))
