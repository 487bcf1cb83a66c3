"""The form of a journal's file: an Arrow IPC stream of entries, each record batch with a checksum of its content."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hpo.errors import StoreError

VERSION_KEY = b"hpo.schema_version"
SCHEMA_VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("at", pa.float64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        ("trial", pa.int64()),
        ("attempt", pa.int64()),
        ("step", pa.int64()),
        pa.field("detail", pa.string(), nullable=False),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
HEAD: bytes = SCHEMA.serialize().to_pybytes()
"""How every segment begins."""
_MARK = b"\xff\xff\xff\xff"  # how every message of an IPC stream begins, at a multiple of 8 bytes
_LEN_EOS = 8
_DAMAGED = (pa.ArrowException, OSError, ValueError, TypeError)  # what bytes that are no stream make Arrow raise


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a run's journal.

    Attributes:
        seq: Place in the one order of the run, from 1, without gaps.
        at: Unix time in seconds.
        kind: What happened: `report`, `started`, …
        trial: Number of the trial, where it concerns one.
        attempt: Attempt of that trial.
        step: Step of that trial.
        detail: The rest: what JSON can hold, and NaN and infinities. Not to be changed by anybody.
    """

    seq: int
    at: float
    kind: str
    trial: int | None
    attempt: int | None
    step: int | None
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Torn:
    """What a crash left at the end of a segment: less than one batch, never acknowledged.

    Attributes:
        segment: The file.
        offset: Where it begins, in bytes.
        num_bytes: How long it is.
    """

    segment: Path
    offset: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.num_bytes} bytes at offset {self.offset} of {self.segment}"


@dataclass(frozen=True, slots=True)
class Segment:
    """What a file holds, as far as it is whole."""

    entries: list[Entry]
    torn: Torn | None


def encode(entries: Sequence[Entry]) -> bytes:
    """One record batch of the entries, to be appended to a file that begins with `HEAD`.

    What JSON cannot hold becomes a number where it can be one (NumPy's numbers), else text.
    """
    details = [json.dumps(entry.detail, default=_plain, separators=(",", ":")) for entry in entries]
    columns: list[list[Any]] = [
        [entry.seq for entry in entries],
        [entry.at for entry in entries],
        [entry.kind for entry in entries],
        [entry.trial for entry in entries],
        [entry.attempt for entry in entries],
        [entry.step for entry in entries],
        details,
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        batch = pa.record_batch(columns, schema=SCHEMA)
        writer.write_batch(batch, custom_metadata={"crc32": str(_checksum(columns))})
    message: bytes = sink.getvalue().to_pybytes()
    return message[len(HEAD) : -_LEN_EOS]


def read_segment(path: Path, *, live: bool = False) -> Segment:
    """The entries of a file, up to its torn tail if it has one.

    Args:
        path: The file; of zero bytes where its writer died at once.
        live: Its end may be torn: it is the newest of its run. Any other has to be whole.

    Raises:
        StoreError: Damage that no crash of ours makes: in the middle, or in a segment that was closed.
    """
    data = path.read_bytes()
    entries, last, offset = _read_whole(data, path)
    if offset == len(data):
        return Segment(entries, None)
    if not live or _is_whole_after(data, last):
        raise StoreError(
            f"is damaged at offset {offset}, before its end",
            where=str(path),
            remedy="bring the file back from a copy; from there on it cannot be trusted",
        )
    return Segment(entries, Torn(path, offset, len(data) - offset))


def _read_whole(data: bytes, path: Path) -> tuple[list[Entry], int, int]:
    """The entries of the whole batches, where the last of these begins, and where it ends."""
    source = pa.BufferReader(data)
    entries: list[Entry] = []
    last = offset = 0
    try:
        reader = pa.ipc.open_stream(source)
        check_version(reader.schema.metadata, path)
        begins = source.tell()
        while (batch := _next_batch(reader)) and (not entries or batch[0].seq == entries[-1].seq + 1):
            entries += batch
            last, begins = begins, source.tell()
            offset = begins
    except _DAMAGED:
        pass
    return entries, last, offset


def _next_batch(reader: Any) -> list[Entry]:
    """The entries of the next batch; nothing where there is no whole one."""
    try:
        batch, metadata = reader.read_next_batch_with_custom_metadata()
        batch.validate(full=True)
        columns = [column.to_pylist() for column in batch.columns]
        if batch.schema != SCHEMA or (metadata or {}).get(b"crc32") != str(_checksum(columns)).encode():
            return []
        details = json.loads(f"[{','.join(columns[-1])}]")  # at once: equal keys become one string
        return [Entry(*row) for row in zip(*columns[:-1], details, strict=True)]
    except (StopIteration, *_DAMAGED):
        return []


def _is_whole_after(data: bytes, last: int) -> bool:
    """Whether a whole batch comes after what is broken, which then had been synced and is not torn but damaged.

    Args:
        data: The file.
        last: Where the last whole batch begins: a damaged length in it may have passed over the next one.
    """
    at = data.find(_MARK, last + 1)
    while at != -1:
        if at % 8 == 0 and _next_batch(pa.ipc.open_stream(pa.BufferReader(HEAD + data[at:]))):
            return True
        at = data.find(_MARK, at + 1)
    return False


def check_version(metadata: Mapping[bytes, bytes] | None, path: Path) -> None:
    """Nothing, where this code can read the file.

    Raises:
        StoreError: A newer version wrote it, or something else did.
    """
    version = (metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        raise StoreError(
            f"its schema version is {version}, but this version of hpo reads {SCHEMA_VERSION}",
            where=str(path),
            remedy="read it with the version of hpo that wrote it",
        )


def _checksum(columns: list[list[Any]]) -> int:
    # Over values and not bytes: it holds for whatever layout another version of Arrow gives them.
    return zlib.crc32(json.dumps(columns).encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.item() if hasattr(value, "item") else str(value)
