"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in ten classes, in whatever form a user has them."""

from __future__ import annotations

import os
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from hpo.errors import DataError, ExperimentError
from hpo.training.data import cache, python_batches, tar
from hpo.training.data.class_images import ClassFolders, ImageArchive
from hpo.training.data.images import ImageData, Located
from hpo.training.data.listing import Layout
from hpo.training.data.python_batches import PythonBatches
from hpo.training.data.sources import Source

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_LAYOUT = Layout(classes=_CLASSES, needs_test=True, size=32)
_NAME = "cifar10"
_SPELLINGS = ("cifar10", "cifar-10")
_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_PROBE_S, _STALL_S = 5.0, 30.0


@dataclass(frozen=True, kw_only=True)
class Cifar10(ImageData):
    """CIFAR-10, looked for in the folder given by the user, else `$HPO_DATA`, else `./data`, and nowhere else.

    In this order: class folders `{train,test}/<class>/*.jpg|png`, there or in a folder `cifar10*`; the same in an
    archive `*cifar10*.tar[.gz|.xz]`; the Python batches `cifar-10-batches-py`, or their archive. What is found must be
    whole: a part of it that is cut off or missing is an error. If there is nothing, torchvision downloads it to there.

    Attributes:
        otherwise: Used instead, in one loud line, where CIFAR-10 is neither there nor to be downloaded.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    otherwise: ImageData | None = None

    @property
    def title(self) -> str:
        return "CIFAR-10"

    def check(self) -> None:
        if self.otherwise is None:
            return
        if not isinstance(self.otherwise, ImageData):
            raise ExperimentError(
                f"{self.otherwise!r} is not a data set of images", where="otherwise", remedy="e.g. otherwise=Digits()"
            )
        self.otherwise.check()

    def locate(self, data_dir: Path | None) -> Located:
        place = _place(data_dir)
        try:
            source = _find(place) or _download(place)
        except _Unreachable as unreachable:
            return self._fall_back(data_dir, place, str(unreachable))
        return source.locate(_NAME)

    def decode(self, located: Located, writer: cache.Writer) -> None:
        if located.dataset != _NAME and self.otherwise is not None:
            return self.otherwise.decode(located, writer)
        source = _find_again(located)
        if source is None:
            raise DataError(
                "CIFAR-10 is not on this node",
                where=str(located.source),
                remedy=f"put it there, into {_place(None)}, or on a file system that all nodes share",
            )
        return source.decode_located(located, writer)

    def _fall_back(self, data_dir: Path | None, place: Path, why: str) -> Located:
        if self.otherwise is None:
            raise DataError(
                f"CIFAR-10 is not here, and cannot be downloaded to here ({why})",
                where=str(place),
                remedy="put it here as {train,test}/<class>/*.jpg, as *cifar10*.tar.xz with these folders, or as "
                f"{python_batches.FOLDER}; or name its folder by --data-dir or HPO_DATA; "
                "or allow other images: Cifar10(otherwise=Digits())",
            )
        line = f"CIFAR-10 is neither in {place} nor to be downloaded ({why}): using {self.otherwise.title} instead"
        return replace(self.otherwise.locate(data_dir), fell_back=line)


class _Unreachable(Exception):  # noqa: N818 - reads as what it says
    """The download did not come about; its text says why."""


def _place(data_dir: Path | None) -> Path:
    return data_dir or Path(os.environ.get("HPO_DATA") or "data").expanduser()


def _find(place: Path) -> Source | None:
    try:
        if tar.is_archive(place):
            return _archive(place)
        return next(_candidates(place), None) if place.is_dir() else None
    except OSError as error:
        raise DataError(
            f"the folder cannot be looked into: {error.strerror}",
            where=str(place),
            remedy="look at it and its permissions, or name another one by --data-dir or HPO_DATA",
        ) from error


def _candidates(place: Path) -> Iterator[Source]:
    inside = sorted(place.iterdir())
    for folder in (place, *(path for path in inside if path.name.lower().startswith(_SPELLINGS))):
        if any((folder / "train" / name).is_dir() for name in _CLASSES):
            yield ClassFolders(folder, layout=_LAYOUT)
    archives = [path for path in inside if _is_named(path) and tar.is_archive(path)]
    yield from (_archive(path) for path in archives if path.name != python_batches.ARCHIVE)
    for folder in (place, place / python_batches.FOLDER):
        if (folder / python_batches.META).exists():
            yield PythonBatches(folder)
    yield from (_archive(path) for path in archives if path.name == python_batches.ARCHIVE)


def _is_named(path: Path) -> bool:
    return any(spelling in path.name.lower() for spelling in _SPELLINGS)


def _archive(path: Path) -> Source:
    return PythonBatches(path) if path.name == python_batches.ARCHIVE else ImageArchive(path, layout=_LAYOUT)


def _find_again(located: Located) -> Source | None:
    """The source where the driver saw it, else what lies in this node's own place."""
    path = located.source
    if path is None or not path.exists():
        return _find(_place(None))
    if located.kind == "folder":
        return ClassFolders(path, layout=_LAYOUT)
    return PythonBatches(path) if located.kind == "python" else ImageArchive(path, layout=_LAYOUT)


def _download(place: Path) -> Source:
    """Into a folder of its own first, for a download that breaks off must not be found by the next run."""
    folder = place / python_batches.FOLDER
    try:
        request = urllib.request.Request(_URL, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_S):  # noqa: S310
            pass
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=place) as unfinished, _impatient():
            from torchvision.datasets import CIFAR10

            CIFAR10(unfinished, download=True)
            (Path(unfinished) / python_batches.FOLDER).rename(folder)
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        raise _Unreachable(_reason(error)) from error
    return PythonBatches(folder)


@contextmanager
def _impatient() -> Iterator[None]:
    """A timeout for torchvision, which waits for ever for a server that fell silent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, URLError) else error
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__)
