"""Growing data that arrive as shards in a folder: image folders, NumPy files or Parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hpo.declared import Declared, positive_int
from hpo.errors import DataError, ExperimentError
from hpo.training.data.chunks import USUAL_REPLAY
from hpo.training.data.sources import digest
from hpo.training.rules import number

Kind = Literal["folder", "npz", "parquet"]
"""What the shards of a folder are; all of them are of one kind."""

_LEFT_OUT = ((".", "_"), (".tmp", ".part"))
"""Beginnings and endings of names that are no shard, or not one yet."""
_replay = number(USUAL_REPLAY, least=0, most=1)


@dataclass(frozen=True)
class ChunkFolder(Declared):
    """Shards of growing data, which a trial gets in the order of their names, with one at a time in memory.

    A shard is a folder of class folders with images; or an `.npz` file; or a Parquet file. What begins with "." or "_"
    or ends in ".tmp" or ".part" is left out: write a shard under such a name and rename it when it is whole. Further
    shards may arrive later, under names that come after the others.

    A trial trains on a shard, on `replay` times as many samples of the shards before, and never sees these again but
    in that part: samples are thinned out as shards come, evenly over the shards, and so are those held out of old
    shards, of which as many are kept as the largest shard holds out. Which ones follows from `split_seed` and the sizes
    of the shards. The classes are not kept in proportion when samples are held out, and `train_samples` and
    `val_samples` are of each shard.

    Attributes:
        path: The folder; a relative path is relative to the current folder.
        targets: What is to be predicted: names of columns of Parquet files, or the name of an array (N,) or (N, K) of
            `.npz` files. None: the shards hold images, in `.npz` files as the arrays `images` (uint8, (N, H, W, C) or
            (N, H, W)) and `labels` (N,).
        features: Names of the columns to predict from, all others by default; or the name of the array (N, F) of
            `.npz` files, "inputs" by default.
        classes: All classes that there will ever be: names of class folders, or values of labels or targets. None:
            those of the first shard, or as `num_classes` says.
        num_classes: The classes are the numbers from 0 to below this.
        size: Height and width to which images are brought, as `ImageFolder` has it. None: all must be of one size.
        replay: Samples of earlier shards that are trained on with a shard, as a share of its samples, in [0, 1].
        test_path: A further shard that is the test part, relative to the current folder. None: there is none.
    """

    path: str | Path
    targets: str | tuple[str, ...] = ()
    features: str | tuple[str, ...] = ()
    classes: tuple[str | int, ...] | None = None
    num_classes: int | None = None
    size: int | None = None
    replay: float = USUAL_REPLAY
    test_path: str | Path | None = None

    @property
    def name(self) -> str:
        """What rows in the store call it."""
        return f"chunks:{Path(self.path).expanduser().absolute().name}"

    @property
    def is_table(self) -> bool:
        """Whether the shards hold rows of a table; else they hold images."""
        return bool(self.targets)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes, where they were named."""
        if self.num_classes is not None:
            return tuple(map(str, range(self.num_classes)))
        return None if self.classes is None else tuple(map(str, self.classes))

    def check(self) -> None:
        for name in ("path", "test_path"):
            path = getattr(self, name)
            if path is not None and (not isinstance(path, (str, Path)) or not str(path)):
                raise ExperimentError(
                    f"{path!r} is not a path", where=name, remedy='name a folder, e.g. ChunkFolder("shards")'
                )
        if self.size is not None:
            positive_int({"size": self.size}, "size")
        self._check_classes()
        _replay.check(self.replay, where="replay")
        if self.is_table and self.size is not None:
            raise ExperimentError("rows of a table have no size", where="size", remedy="leave it or targets out")
        if self.features and not self.is_table:
            raise ExperimentError(
                f"{self.features!r} are given, but nothing to predict from them",
                where="features",
                remedy='name it, e.g. targets="price"; shards of images have neither',
            )

    def shards(self) -> tuple[Kind, list[Path]]:
        """What the shards are, and where, in the order of their names.

        Raises:
            DataError: There is no such folder, or none in it; or something in it is no shard, or of another kind.
        """
        folder = self.folder
        try:
            found = sorted(path for path in folder.iterdir() if _is_shown(path.name))
        except OSError as error:
            raise DataError(
                f"the folder cannot be read: {error.strerror}",
                where=str(folder),
                remedy="it is to hold the shards, on a file system that all nodes share",
            ) from error
        if not found:
            raise DataError(
                "the folder holds no shard",
                where=str(folder),
                remedy="put image folders, .npz or .parquet files into it; names that begin with . or _ are left out",
            )
        kind = self.kind_of(found[0])
        for path in found[1:]:
            if (other := self.kind_of(path)) != kind:
                raise DataError(
                    f"it is a shard of another kind ({other}) than {found[0].name} ({kind})",
                    where=str(path),
                    remedy="keep one kind a folder; what begins with . or _ is left out",
                )
        return kind, found

    @property
    def folder(self) -> Path:
        """Where the shards lie, absolute."""
        return Path(self.path).expanduser().absolute()

    def kind_of(self, path: Path) -> Kind:
        """What a shard is.

        Raises:
            DataError: It is none, or does not go with what was declared.
        """
        if path.is_dir():
            kind: Kind = "folder"
        elif path.suffix in (".npz", ".parquet"):
            kind = "npz" if path.suffix == ".npz" else "parquet"
        else:
            raise DataError(
                "it is no shard: neither a folder, nor an .npz or .parquet file",
                where=str(path),
                remedy="move it elsewhere; while it is being written, let its name end in .tmp",
            )
        if kind == "folder" and self.is_table:
            raise DataError(
                "class folders hold images, which have no targets by name", where=str(path), remedy="leave targets out"
            )
        if kind == "parquet" and not self.is_table:
            raise DataError(
                "nothing says which columns are to be predicted",
                where=str(path),
                remedy='name them, e.g. ChunkFolder(…, targets="price")',
            )
        return kind

    def _check_classes(self) -> None:
        if self.num_classes is not None:
            positive_int({"num_classes": self.num_classes}, "num_classes")
            if self.classes is not None:
                raise ExperimentError("classes are given as well", where="num_classes", remedy="leave one of them out")
        names = self.class_names
        is_text = isinstance(self.classes, str)
        if names is not None and (is_text or len(names) < 2 or len(set(names)) < len(names)):
            raise ExperimentError(
                f"{self.classes or self.num_classes!r} are not two or more different classes",
                where="classes" if self.num_classes is None else "num_classes",
                remedy='e.g. classes=("cat", "dog")',
            )


@dataclass(frozen=True)
class FoundShard:
    """A shard that was found.

    Attributes:
        name: Of its folder or file.
        fingerprint: 16 hexadecimal digits of its content.
        num_samples: In it.
    """

    name: str
    fingerprint: str
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class FoundShards:
    """The shards that were found, and what the first of them tells of all.

    Attributes:
        kind: Of them.
        folder: Where they lie, absolute.
        shards: In the order of their names.
        features: Columns or array to predict from.
        shape: Of one sample's input: (F,), or (height, width, channels).
        told: What the targets tell a model: `num_outputs`, and `classes` where there are some.
        test: The test part, whose name is its absolute path; None: there is none.
    """

    kind: Kind
    folder: Path
    shards: tuple[FoundShard, ...]
    features: tuple[str, ...]
    shape: tuple[int, ...]
    told: Mapping[str, Any]
    test: FoundShard | None = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that cover all of them."""
        test = "" if self.test is None else self.test.fingerprint
        return digest(self.kind, *self.features, test, *(shard.fingerprint for shard in self.shards))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(shard.num_samples for shard in self.shards)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label; empty where the targets are no classes."""
        return tuple(self.told.get("classes", ()))

    def path(self, index: int) -> Path:
        """Of a shard, from 0."""
        return self.folder / self.shards[index].name

    def first(self, num: int) -> FoundShards:
        """As if the shards after the first `num` were not there."""
        return replace(self, shards=self.shards[:num])

    def as_json(self) -> dict[str, Any]:
        """Plain values that `from_json` turns back into an equal object."""
        plain = {**asdict(self), "folder": str(self.folder), "features": [*self.features], "shape": [*self.shape]}
        shards = [asdict(shard) for shard in self.shards]
        return {**plain, "shards": shards, "told": dict(self.told), "num_train": sum(self.sizes)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> FoundShards:
        """The object whose `as_json()` this is."""
        return cls(
            kind=plain["kind"],
            folder=Path(plain["folder"]),
            shards=tuple(FoundShard(**shard) for shard in plain["shards"]),
            features=tuple(plain["features"]),
            shape=tuple(plain["shape"]),
            told=plain["told"],
            test=None if plain["test"] is None else FoundShard(**plain["test"]),
        )


def _is_shown(name: str) -> bool:
    beginnings, endings = _LEFT_OUT
    return not name.startswith(beginnings) and not name.endswith(endings)
