"""Tar archives read from front to end, with the assurance that the end was there."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from hpo.errors import DataError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")

_DAMAGE = (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error)
_BLOCK = 512
_READ = 1 << 20


class Member(NamedTuple):
    """A member of an archive; its content where it is a file."""

    path: PurePosixPath
    content: bytes | None
    is_folder: bool


class _Watched:
    """A stream that remembers its last block: tarfile takes an archive that ends between two files for a whole one."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.last = (self.last + data)[-_BLOCK:] if len(data) < _BLOCK else data[-_BLOCK:]
        return data


def members(path: Path) -> Iterator[Member]:
    """Its members, one after another.

    Raises:
        DataError: The archive is cut off or damaged; the last member before the damage is named.
    """
    name = "its beginning"
    try:
        with _opened(path) as stream:
            watched = _Watched(stream)
            with tarfile.open(fileobj=cast(IO[bytes], watched), mode="r|") as archive:
                for info in archive:
                    name = info.name
                    # Read here, so that damage in the midst of a file is met within this try.
                    file = archive.extractfile(info) if info.isfile() else None
                    yield Member(PurePosixPath(name), None if file is None else file.read(), is_folder=info.isdir())
            while watched.read(_READ):
                pass
            if watched.last != bytes(_BLOCK):
                raise EOFError("its end is missing")
    except _DAMAGE as error:
        raise DataError(
            f"the archive is cut off or damaged after {name}: {error}",
            where=str(path),
            remedy="remove it, and copy or download it again",
        ) from error


def is_archive(path: Path) -> bool:
    """Whether it is a file with a name that `members` can read."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def _opened(path: Path) -> IO[bytes]:
    name = path.name.lower()
    if name.endswith("xz"):
        return cast(IO[bytes], lzma.open(path))
    if name.endswith("gz"):
        return cast(IO[bytes], gzip.open(path))
    return path.open("rb")
