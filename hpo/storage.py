"""Whole objects under names: in a folder, or in a bucket of S3, Google Cloud Storage or Azure."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs as arrow_fs

from hpo.errors import CheckpointError, StoreError
from hpo.files import write_atomically

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
_CHUNK = _SMALL = 2**22  # bytes; what is small is less than pyarrow puts in one request
_LONGEST_PAUSE_S = 15.0
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Stored:
    """An object that is there.

    Attributes:
        name: Under which it is found.
        size: Bytes.
        changed_ns: When it was written, in Unix nanoseconds of the storage's own clock; often whole seconds.
    """

    name: str
    size: int
    changed_ns: int


class Storage(ABC):
    """Objects under names; one is there whole or not at all.

    Names are relative, their parts joined by `/`. Calls may come from any thread. Each raises OSError where the place
    refuses: a disk that is full, a service that does not answer.
    """

    @abstractmethod
    def stat(self, name: str) -> Stored | None:
        """The object as it is now; None where there is none."""

    @abstractmethod
    def below(self, folder: str = "") -> list[Stored]:
        """All objects in a folder and below, by name; none where there is no such folder."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """What the object holds.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Make the object hold `data`, in place of what it held."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove the object; nothing where there is none."""

    @abstractmethod
    def upload(self, path: Path, name: str) -> int:
        """Bytes of the object, which now holds what the local file held when it was opened.

        Raises:
            FileNotFoundError: There is no such file.
        """

    @abstractmethod
    def download(self, name: str, path: Path) -> None:
        """Make the local file hold what the object does, as old as the object; folders are made as needed.

        Raises:
            FileNotFoundError: There is no such object.
        """


class LocalStorage(Storage):
    """A folder; it need not be there yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stat(self, name: str) -> Stored | None:
        try:
            status = (self._folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stored(name, status.st_size, status.st_mtime_ns)

    def below(self, folder: str = "") -> list[Stored]:
        names = [
            path.relative_to(self._folder).as_posix()
            for path in (self._folder / folder).rglob("*")
            if path.is_file() and not path.name.startswith(".")  # hidden: being written
        ]
        return [stored for name in sorted(names) if (stored := self.stat(name))]

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        _written(self._folder / name, lambda file: file.write(data))

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def upload(self, path: Path, name: str) -> int:
        with path.open("rb") as source:
            return _written(self._folder / name, lambda file: _copy(source, file))

    def download(self, name: str, path: Path) -> None:
        _copied_to(path, self._folder / name)


def _copied_to(path: Path, source: Path) -> None:
    with source.open("rb") as data:
        changed_ns = os.fstat(data.fileno()).st_mtime_ns
        _written(path, lambda file: _copy(data, file))
    os.utime(path, ns=(changed_ns, changed_ns))


class BucketStorage(Storage):
    """A prefix in a bucket, through pyarrow.

    Args:
        filesystem: Of pyarrow.
        prefix: Bucket and prefix: `bucket/some/prefix`.
        for_small: The same, for writing what is small: it may put off opening an object until it is closed.
    """

    def __init__(
        self, filesystem: arrow_fs.FileSystem, prefix: str, *, for_small: arrow_fs.FileSystem | None = None
    ) -> None:
        self._fs, self._for_small, self._prefix = filesystem, for_small or filesystem, prefix.rstrip("/")

    def stat(self, name: str) -> Stored | None:
        return self._stored(self._fs.get_file_info(self._path(name)))

    def below(self, folder: str = "") -> list[Stored]:
        selector = arrow_fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        found = (self._stored(info) for info in self._fs.get_file_info(selector))
        return sorted((stored for stored in found if stored), key=lambda stored: stored.name)

    def read(self, name: str) -> bytes:
        with self._fs.open_input_file(self._path(name)) as source:
            return bytes(source.read())

    def write(self, name: str, data: bytes) -> None:
        self._put(name, data)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._path(name))

    def upload(self, path: Path, name: str) -> int:
        if not path.stat().st_size:
            self._put(name, b"")
            return 0
        with pa.memory_map(str(path)) as source:
            data = source.read_buffer()
            self._put(name, data)
            return int(data.size)

    def download(self, name: str, path: Path) -> None:
        stored = self.stat(name)
        if stored is None:
            raise FileNotFoundError(2, "there is no such object", name)
        with self._fs.open_input_file(self._path(name)) as source:
            _written(path, lambda file: _copy(source, file))
        os.utime(path, ns=(stored.changed_ns, stored.changed_ns))

    def _put(self, name: str, data: Any) -> None:
        # One call with all of it: a stream that is left by an error in between closes, and half an object appears.
        # What is opened late and refused then is closed all the same, which puts an empty object: not what is large.
        with (self._for_small if len(data) <= _SMALL else self._fs).open_output_stream(self._path(name)) as sink:
            sink.write(data)

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if name else self._prefix

    def _stored(self, info: Any) -> Stored | None:
        if info.type != arrow_fs.FileType.File:
            return None
        return Stored(info.path[len(self._prefix) + 1 :], int(info.size), int(info.mtime_ns or 0))


def _written(path: Path, write: Callable[[Any], object]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, write)


def _copy(source: Any, target: Any) -> None:
    while chunk := source.read(_CHUNK):
        target.write(chunk)


# --- addresses ---


def is_url(place: object) -> bool:
    """Whether it names a bucket (`s3://…`) and not a folder.

    Raises:
        StoreError: It is the URL of something that is neither, or one that became a path.
    """
    scheme, found, _ = str(place).partition("://")
    if not found and str(place).partition(":/")[0] in SCHEMES and ":/" in str(place):
        remedy = "write two slashes behind the colon, and give it as text and not as a Path"
        raise StoreError("is a URL that has lost a slash", where=str(place), remedy=remedy)
    if not found or "/" in scheme:
        return False
    if scheme not in SCHEMES:
        raise StoreError(
            f"{scheme}:// is no kind of storage that hpo knows",
            where=str(place),
            remedy=f"name a folder, or a URL that begins with {', '.join(f'{one}://' for one in SCHEMES)}",
        )
    return True


def join(place: str, name: str) -> str:
    """The address of an object in a place: a path in a folder, or a URL, the place's query behind it."""
    if not is_url(place):
        return str(Path(place) / name)
    parts = urlsplit(place)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}".rstrip("/")))


def digest_of(url: str) -> str:
    """A name for the folder of what belongs to a URL."""
    return hashlib.sha256(join(url, "").encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where this machine keeps what can be brought again: `$HPO_CACHE`, or `~/.cache/hpo`."""
    return Path(os.environ.get("HPO_CACHE") or "~/.cache/hpo").expanduser()


@functools.lru_cache(maxsize=64)
def storage_at(place: str) -> Storage:
    """The storage at a folder's path or a URL; nothing is written.

    Credentials come from the environment, as the cloud's own tools take them; `AWS_ENDPOINT_URL`, or
    `?endpoint_override=HOST:PORT&scheme=http` in the URL, name another service that speaks S3.

    Raises:
        StoreError: The URL is malformed, holds a password, or nothing answers there.
    """
    if not is_url(place):
        return LocalStorage(Path(place))
    parts = urlsplit(place)
    if "@" in parts.netloc and parts.scheme in ("s3", "gs", "gcs"):
        shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        problem, remedy = "the URL holds credentials, which would be shown and stored", "set them in the environment"
        raise StoreError(problem, where=shown, remedy=remedy)
    for_small = None
    try:
        filesystem, prefix = arrow_fs.FileSystem.from_uri(place)
        if parts.scheme == "s3" and "allow_delayed_open" not in parts.query:
            # A small object is then one request and not three.
            query = "&".join(filter(None, (parts.query, "allow_delayed_open=true")))
            for_small, _ = arrow_fs.FileSystem.from_uri(urlunsplit(parts._replace(query=query)))
    except pa.ArrowInvalid as error:
        remedy = "write it like s3://bucket/prefix"
        raise StoreError(f"is no URL that can be used: {error}", where=place, remedy=remedy) from error
    except OSError as error:
        raise refused(place, error) from error
    return BucketStorage(filesystem, prefix, for_small=for_small)


def checked(url: str) -> Storage:
    """The storage at a URL, after an object was written there and deleted again.

    Raises:
        StoreError: No such bucket, no permission, no network.
    """
    storage = storage_at(url)
    probe = f".probe-{os.getpid()}-{time.time_ns()}"
    try:
        storage.write(probe, b"hpo looks whether it may write here")
        storage.delete(probe)
    except OSError as error:
        raise refused(url, error) from error
    return storage


_REFUSALS = (
    (
        ("NO_SUCH_BUCKET", "ucket does not exist", "ucket not found", "ContainerNotFound", "Bucket '"),
        "there is no such bucket",
        "make the bucket, or correct the URL",
    ),
    (
        (
            *("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "CREDENTIALS", "status 403", "status 401"),
            *("Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED", "Authentication", "Authorization", "credential"),
        ),
        "access is refused",
        "give credentials that may list, read, write and delete there, in the environment (AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY) or as the machine's role",
    ),
    (
        ("NETWORK_CONNECTION", "curlCode", "onnection", "resolve host", "imeout", "timed out"),
        "nothing answers",
        "look at the network, at AWS_ENDPOINT_URL and at the URL's endpoint_override, then give the same command again",
    ),
)


def refused(url: str, error: OSError) -> StoreError:
    """The error for a place that refuses, in words, with what to do about it."""
    said = str(error)
    for signs, problem, remedy in _REFUSALS:
        if any(sign in said for sign in signs):
            return StoreError(f"{problem} ({said})", where=url, remedy=remedy)
    return StoreError(said, where=url, remedy="look at the storage, then give the same command again")


# --- patience ---


def persistently(do: Callable[[], _T], *, patience_s: float, first_pause_s: float = 0.5) -> _T:
    """What `do` returns, tried again with growing pauses while the place refuses.

    Raises:
        FileNotFoundError: At once, for waiting brings nothing back.
        OSError: The last one, when `patience_s` seconds have passed.
    """
    until, pause_s = time.monotonic() + patience_s, first_pause_s
    while True:
        try:
            return do()
        except OSError as error:
            if isinstance(error, FileNotFoundError) or time.monotonic() + pause_s > until:
                raise
            _log.warning("tried again in %.1f s: %s", pause_s, error)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def parted(url: str) -> tuple[Storage, str]:
    """The bucket that holds one object, and the object's name in it."""
    parts = urlsplit(url)
    return storage_at(urlunsplit(parts._replace(path=""))), unquote(parts.path.lstrip("/"))  # as pyarrow has it


def is_there(target: str) -> bool:
    """Whether the file of a path, or the object of a URL, is there; no where the storage refuses to say."""
    if not is_url(target):
        return Path(target).exists()
    storage, name = parted(target)
    try:
        return storage.stat(name) is not None
    except OSError:
        return False


@contextlib.contextmanager
def brought(checkpoint: str, *, patience_s: float = 300.0) -> Iterator[Path]:
    """A local file of a checkpoint, for as long as the context lasts: its own, or a copy of one that is elsewhere.

    Raises:
        CheckpointError: There is none.
        StoreError: The storage refused for `patience_s` seconds.
    """
    none = CheckpointError("there is no such checkpoint", where=checkpoint, remedy="the trial starts over")
    if not is_url(checkpoint):
        if not Path(checkpoint).exists():
            raise none
        yield Path(checkpoint)
        return
    storage, name = parted(checkpoint)
    with tempfile.TemporaryDirectory(prefix="hpo-checkpoint-") as folder:
        path = Path(folder) / name.rpartition("/")[2]
        try:
            persistently(lambda: storage.download(name, path), patience_s=patience_s)
        except FileNotFoundError as error:
            raise none from error
        except OSError as error:
            raise refused(checkpoint, error) from error
        yield path
