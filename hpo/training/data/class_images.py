"""Image files in one folder a class, {train,test}/<class>/<file>: on the disk, or inside a tar archive."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from hpo.errors import DataError
from hpo.training.data import cache, tar
from hpo.training.data.decode import Encoded, Fit, decode_all, pixels_of, read_file
from hpo.training.data.listing import PARTS, File, Layout, Listing, is_image
from hpo.training.data.sources import Source, Survey, digest, digest_of_files

_VALIDATION = ("val", "valid", "validation")


class ClassImages(Source):
    """Encoded images by part and class."""

    def __init__(self, path: Path, *, layout: Layout) -> None:
        super().__init__(path)
        self._layout = layout

    @property
    @abstractmethod
    def listing(self) -> Listing:
        """Its files."""

    @abstractmethod
    def _reader(self) -> Callable[[File], bytes]:
        """What gives the bytes of any file of the listing, in any order, from any thread."""

    def survey(self) -> Survey:
        fit = self._fit(self._reader()) if self._layout.size is None else _square(self._layout)
        counts = {part: len(files) for part, files in self.listing.files.items()}
        return Survey(self.listing.classes, counts["train"], counts["test"], (fit.height, fit.width, 3))

    def decode(self, writer: cache.Writer) -> None:
        read = self._reader()
        fit = self._fit(read)
        labels = {name: label for label, name in enumerate(self.listing.classes)}
        for part in PARTS:
            files = self.listing.files[part]
            decode_all(
                [Encoded(self.listing.place(*file[:3]), labels[file.class_name], file.size) for file in files],
                read=_by_number(files, read),
                fit=fit,
                out_images=writer.array(f"{part}_images", (len(files), fit.height, fit.width, 3)),
                out_labels=writer.array(f"{part}_labels", (len(files),), dtype=np.int64),
            )

    def _fit(self, read: Callable[[File], bytes]) -> Fit:
        if self._layout.size is not None:
            return _square(self._layout)
        first = self.listing.files["train"][0]
        where = self.listing.place(*first[:3])
        height, width, _ = pixels_of(read(first), where=where).shape
        return Fit(height, width, crop=False, because=f"{where} is {height} x {width}")


class ClassFolders(ClassImages):
    """{train,test}/<class>/<file> in a folder; or <class>/<file>, which is a train part alone."""

    kind = "folder"

    def fingerprint(self) -> str:
        """Of names and sizes: 60,000 files in a second. Pixels changed in place, to the byte, go unseen."""
        shape = (str(self._layout.size), str(self._layout.crop))
        return digest(*shape, *(str(part) for files in self.listing.files.values() for file in files for part in file))

    @cached_property
    def listing(self) -> Listing:
        found: list[File] = []
        folders: set[tuple[str, str]] = set()
        for part, root in self._parts.items():
            for folder in _entries(root):
                if folder.is_dir() and not folder.name.startswith("."):
                    folders.add((part, folder.name))
                    found += _files(part, folder)
        return Listing(found, folders, layout=self._layout, place=self._place)

    @cached_property
    def _parts(self) -> dict[str, Path]:
        parts = {part: self.path / part for part in PARTS if (self.path / part).is_dir()}
        if not parts and not self._layout.needs_test:
            return {"train": self.path}
        for name in _VALIDATION:
            if (self.path / name).is_dir():
                raise DataError(
                    "a validation part of its own is not read: it is split off the train part by train_ratio",
                    where=str(self.path / name),
                    remedy="move its images into train, or rename it to test",
                )
        return parts

    def _place(self, part: str, *names: str) -> str:
        return str(self._parts.get(part, self.path / part).joinpath(*names))

    def _reader(self) -> Callable[[File], bytes]:
        return lambda file: read_file(self._parts[file.part] / file.class_name / file.name)


class ImageArchive(ClassImages):
    """{train,test}/<class>/<file>, at any depth, in a tar archive, which is never unpacked onto the disk."""

    kind = "archive"

    def fingerprint(self) -> str:
        return digest_of_files({"archive": self.path})

    @cached_property
    def listing(self) -> Listing:
        return self._read(lambda _file, _content: None)

    def _reader(self) -> Callable[[File], bytes]:
        contents: dict[tuple[str, str, str], bytes] = {}
        self.listing = self._read(lambda file, content: contents.__setitem__(file[:3], content))
        return lambda file: contents[file[:3]]

    def _read(self, keep: Callable[[File, bytes], None]) -> Listing:
        files: list[File] = []
        folders: set[tuple[str, str]] = set()
        for path, content, is_folder in tar.members(self.path):
            parts = path.parts
            if is_folder and len(parts) >= 2 and parts[-2] in PARTS:
                folders.add((parts[-2], parts[-1]))
            if content is not None and len(parts) >= 3 and parts[-3] in PARTS:
                file = File(parts[-3], parts[-2], parts[-1], len(content))
                if is_image(file.name, size=file.size, where=self._place(*file[:3])):
                    folders.add(file[:2])
                    files.append(file)
                    keep(file, content)
        return Listing(files, folders, layout=self._layout, place=self._place)

    def _place(self, *names: str) -> str:
        return f"{self.path}: {'/'.join(names)}"


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise DataError(
            f"the folder cannot be read: {error.strerror}", where=str(folder), remedy="look at it and its permissions"
        ) from error


def _files(part: str, folder: os.DirEntry[str]) -> Iterator[File]:
    for entry in _entries(Path(folder.path)):
        try:
            size = entry.stat().st_size
        except OSError as error:
            raise DataError(
                f"the image cannot be found: {error.strerror}", where=entry.path, remedy="mend or remove the link"
            ) from error
        if is_image(entry.name, size=size, where=entry.path):
            yield File(part, folder.name, entry.name, size)


def _by_number(files: list[File], read: Callable[[File], bytes]) -> Callable[[int], bytes]:
    return lambda number: read(files[number])


def _square(layout: Layout) -> Fit:
    size = layout.size or 0
    return Fit(size, size, layout.crop, because=f"they must be {size} x {size}")
