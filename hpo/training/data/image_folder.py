"""A user's own images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpo.declared import positive_int
from hpo.errors import DataError, ExperimentError
from hpo.training.data import cache
from hpo.training.data.class_images import ClassFolders
from hpo.training.data.images import ImageData, Located
from hpo.training.data.listing import Layout


@dataclass(frozen=True)
class ImageFolder(ImageData):
    """Images in one folder a class: `<path>/{train,test}/<class>/*`, or `<path>/<class>/*` without a test part.

    They are decoded to RGB of one size. Validation is split off the train part by `train_ratio`.

    Attributes:
        path: The folder; a relative path is relative to the current folder.
        size: Height and width to which images are brought: scaled, and their middle cut out. None: all must be of
            one size already.
    """

    path: str | Path
    size: int | None = None

    @property
    def title(self) -> str:
        return f"the images in {self.path}"

    def check(self) -> None:
        if not isinstance(self.path, (str, Path)) or not str(self.path):
            raise ExperimentError(
                f"{self.path!r} is not a path", where="path", remedy='name a folder, e.g. ImageFolder("photos")'
            )
        if self.size is not None:
            positive_int({"size": self.size}, "size")

    def locate(self, data_dir: Path | None) -> Located:
        path = Path(self.path).expanduser().absolute()
        if not path.is_dir():
            raise DataError(
                "there is no such folder", where=str(path), remedy="it is to hold {train,test}/<class>/ or <class>/"
            )
        return self._source(path).locate(f"folder:{path.resolve().name}")

    def decode(self, located: Located, writer: cache.Writer) -> None:
        path = located.source
        if path is None or not path.is_dir():
            raise DataError(
                "the folder is not on this node", where=str(path), remedy="put it on a file system that all nodes share"
            )
        self._source(path).decode_located(located, writer)

    def _source(self, path: Path) -> ClassFolders:
        return ClassFolders(path, layout=Layout(size=self.size, crop=self.size is not None))
