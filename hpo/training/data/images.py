"""What a data set is: something that can be found in a moment and opened, decoded, by many processes."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpo.declared import Declared
from hpo.training.data import cache
from hpo.training.data.chunks import Chunks, Sizes

Kind = Literal["folder", "archive", "python", "embedded"]


@dataclass(frozen=True, kw_only=True)
class Located:
    """A data set that was found: what it is and where, but none of its pixels.

    Attributes:
        dataset: Name in the store: "cifar10", "digits", "folder:<name>".
        kind: How it lies there: class folders, an archive of them, CIFAR-10's Python batches, or in a package.
        source: Absolute path of the folder or archive; None where it is embedded.
        classes: Names by label.
        fingerprint: 16 hexadecimal digits; other pixels, labels or sizes give others.
        num_train: Images of the train part; tuning splits validation off it.
        num_test: Images of the test part, 0 where there is none.
        image_shape: Height, width, channels once decoded.
        fell_back: One line for people where this is not the data set that was asked for.
    """

    dataset: str
    kind: Kind
    source: Path | None
    classes: tuple[str, ...]
    fingerprint: str
    num_train: int
    num_test: int
    image_shape: tuple[int, int, int]
    fell_back: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes and `from_json` turns back into an equal object."""
        source = None if self.source is None else str(self.source)
        return {**asdict(self), "source": source, "classes": [*self.classes], "image_shape": [*self.image_shape]}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Located:
        """The object whose `as_json()` this is."""
        source = None if plain["source"] is None else Path(plain["source"])
        height, width, channels = plain["image_shape"]
        changed = {"source": source, "classes": tuple(plain["classes"]), "image_shape": (height, width, channels)}
        return cls(**{**plain, **changed})


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images: read-only arrays, mapped from files that all processes of the node share.

    Attributes:
        train_images: (N, H, W, C) uint8.
        train_labels: (N,) int64, from 0.
        test_images: (M, H, W, C) uint8; no rows where the data set has no test part.
        test_labels: (M,) int64.
        classes: Names by label.
        mean: (C,) float32 over the train part, pixels scaled to [0, 1].
        std: (C,) float32 likewise; 1 for a channel that is constant.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]


class ImageData(Declared):
    """Declares labelled images, in two acts.

    `locate` finds them: on the driver, before anything starts, in seconds. It lists names and sizes or hashes an
    archive; it decodes at most one image. `load` opens them: in any process on any node, where the first decodes them
    into the node's cache folder, under a lock, and all others map what it wrote.

    Laws, which an inheritable test class holds against every data set:
      * `locate` twice gives equal results, which survive a trip through JSON;
      * `load` gives what `locate` announced: classes, counts, shape; every class has images in every part;
      * the arrays are read-only; from an emptied cache they come out equal, bit for bit;
      * when the source on this node is not the one that was located, an empty cache gives DataError with both
        fingerprints; a filled one still serves the located data;
      * a declaration, its `Located` and a second, equal declaration in another process are all it takes.
    """

    @property
    @abstractmethod
    def title(self) -> str:
        """What a sentence calls the data set."""

    @abstractmethod
    def locate(self, data_dir: Path | None) -> Located:
        """The data set, found; `data_dir` is where the user said that data is, where they did.

        Raises:
            DataError: It is nowhere, cut off, or has a class without images; the path is named.
        """

    @abstractmethod
    def decode(self, located: Located, writer: cache.Writer) -> None:
        """Write the arrays `{train,test}_{images,labels}` of what was located.

        Raises:
            DataError: The source is missing on this node, another than the one located, or damaged.
        """

    def in_chunks(
        self, num_chunks: int, by: str | Sizes = "random", *, mode: str = "cumulative", replay: float | None = None
    ) -> ChunkedImages:
        """The same images as growing data: a trial gets chunk after chunk of the train part; see `Chunks`."""
        return ChunkedImages(self, Chunks.of(num_chunks, by, mode, replay))

    def load(self, located: Located, *, cache_dir: Path) -> Images:
        """The decoded images, mapped from `cache_dir`; decoded first where no process of this node has done so.

        Raises:
            DataError: As `decode`; or `cache_dir` cannot be written.
        """
        entry = cache.Entry(cache_dir, dataset=located.dataset, fingerprint=located.fingerprint)
        arrays, meta = entry.open_or_make(located.classes, lambda writer: self.decode(located, writer))
        mean, std = (np.asarray(meta[name], np.float32) for name in ("mean", "std"))
        return Images(**arrays, classes=tuple(meta["classes"]), mean=mean, std=std)


@dataclass(frozen=True)
class ChunkedImages(ImageData):
    """Images whose train part a trial gets in chunks; `ImageData.in_chunks` makes it.

    Attributes:
        data: The images.
        chunks: How they are divided. Pixels are normalised by mean and deviation of all of the train part.
    """

    data: ImageData
    chunks: Chunks

    @property
    def title(self) -> str:
        return self.data.title

    def check(self) -> None:
        self.data.check()
        self.chunks.check()

    def locate(self, data_dir: Path | None) -> Located:
        located = self.data.locate(data_dir)
        self.chunks.check_fits(located.num_train, num_classes=len(located.classes))
        return located

    def decode(self, located: Located, writer: cache.Writer) -> None:
        self.data.decode(located, writer)

    def in_chunks(
        self, num_chunks: int, by: str | Sizes = "random", *, mode: str = "cumulative", replay: float | None = None
    ) -> ChunkedImages:
        return self.data.in_chunks(num_chunks, by, mode=mode, replay=replay)


def default_cache_dir() -> Path:
    """Folder of this node for decoded images: `$HPO_CACHE`, else `~/.cache/hpo`."""
    return Path(os.environ.get("HPO_CACHE") or "~/.cache/hpo").expanduser().absolute()
