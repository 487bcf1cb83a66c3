"""Which image files of which class a source holds, checked before any of them is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

from hpo.errors import DataError
from hpo.training.data.decode import SUFFIXES

PARTS = ("train", "test")
_CLUTTER = ("thumbs.db", "desktop.ini")

Place = Callable[..., str]
"""Names a part, a class of it, or a file of that class for people: `place("train", "cat", "0001.jpg")`."""


class File(NamedTuple):
    """An image file: its part ("train" or "test"), its class, its name within the class, its size in bytes."""

    part: str
    class_name: str
    name: str
    size: int


@dataclass(frozen=True)
class Layout:
    """What class folders must hold.

    Attributes:
        classes: Exactly these; None for any two or more.
        needs_test: Whether a test part must be there.
        size: Height and width of every image; None for those of the first.
        crop: Images of another size are made to fit; else they are an error.
        is_shard: Whether it is one shard of several, which need not have images of each class.
    """

    classes: tuple[str, ...] | None = None
    needs_test: bool = False
    size: int | None = None
    crop: bool = False
    is_shard: bool = False


class Listing:
    """The image files of every part.

    Attributes:
        classes: Names by label: in alphabetical order, the layout's own where it has one.
        files: By part, sorted by class and name, so that their order does not depend on how they are stored.
        place: Names them for people.
    """

    def __init__(
        self, files: Iterable[File], folders: Collection[tuple[str, str]], *, layout: Layout, place: Place
    ) -> None:
        self.place = place
        ordered = sorted(files)
        self.files = {part: [file for file in ordered if file.part == part] for part in PARTS}
        found = {part: {name for of, name in folders if of == part} for part in PARTS}
        self.classes = layout.classes or tuple(sorted(found["train"]))
        if len(self.classes) < 2:
            raise DataError(
                f"{len(self.classes)} class folders, but at least 2 are needed",
                where=place("train"),
                remedy="put the images of each class into a folder of its own",
            )
        for part in PARTS:
            if part == "train" or found[part] or layout.needs_test:
                self._check_classes(part, found[part], layout)

    def _check_classes(self, part: str, found: Collection[str], layout: Layout) -> None:
        for name in sorted(set(found) - set(self.classes)):
            whose = "the data set has" if layout.classes else "the train part has"
            mend = "name all classes from the start" if layout.is_shard else "remove it"
            raise DataError(
                f"{name!r} is not one of the {len(self.classes)} classes that {whose}",
                where=self.place(part, name),
                remedy=f"{mend}; the classes are {_some(self.classes)}",
            )
        counts = Counter(file.class_name for file in self.files[part])
        for name in self.classes:
            if not counts[name] and not (layout.is_shard and name not in found):
                raise DataError(
                    f"class {name!r} has no images in the {part} part",
                    where=self.place(part, name),
                    remedy="bring its images back; every class needs some in every part",
                )


def is_image(name: str, *, size: int, where: str) -> bool:
    """Whether a file of a class folder is an image; hidden files and an operating system's leftovers are none.

    Raises:
        DataError: It is something else, or empty: nothing is left out in silence.
    """
    if name.startswith(".") or name.lower() in _CLUTTER:
        return False
    if PurePath(name).suffix.lower() not in SUFFIXES:
        raise DataError(
            f"a class folder holds image files only ({', '.join(SUFFIXES)})",
            where=where,
            remedy="move it elsewhere, or convert it",
        )
    if size == 0:
        raise DataError("the image is damaged: the file is empty", where=where, remedy="copy it again, or remove it")
    return True


def _some(names: Collection[str], most: int = 12) -> str:
    shown = ", ".join(list(names)[:most])
    return f"{shown}, …" if len(names) > most else shown
