"""How shards that lie in a folder reach a task: found, compared with each other, and opened one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hpo.errors import DataError, ExperimentError
from hpo.protocols import Dataset, Setting
from hpo.training.data.chunk_folder import ChunkFolder, FoundShard, FoundShards
from hpo.training.data.chunk_folder_files import NpzArray, NpzTable, ParquetTable, TableShard, class_codes
from hpo.training.data.chunk_folder_images import DecodedShard, FolderShard, ImageShard, NpzShard
from hpo.training.feed import Feed
from hpo.training.image_feed import IMAGES_GIVE, room_for
from hpo.training.images import ChunkedImageSettings, given_by_images
from hpo.training.learning import Source
from hpo.training.settings import DataSettings
from hpo.training.shard_source import ImageShardSource, TableShardSource
from hpo.training.tabular import TABLES_GIVE, ChunkedTableSettings, Classes, Targets


class ShardFeed(Feed, ABC):
    """Shards that lie in a folder."""

    def __init__(self, data: ChunkFolder) -> None:
        self._data = data

    @property
    def data(self) -> ChunkFolder:
        return self._data

    @abstractmethod
    def find(self) -> FoundShards:
        """All shards, of which it is sure that they go together.

        Raises:
            DataError: They do not, or one is damaged; it is named.
        """

    def locate(self, data_dir: Path | None) -> Dataset:
        return self._as_dataset(self.find())

    def as_of(self, dataset: Dataset, num_pieces: int) -> Dataset:
        return self._as_dataset(FoundShards.from_json(dataset.located).first(num_pieces))

    def _as_dataset(self, found: FoundShards) -> Dataset:
        return Dataset(
            name=self._data.name,
            fingerprint=found.fingerprint,
            located=found.as_json(),
            pieces=tuple(shard.fingerprint for shard in found.shards),
            piece_names=tuple(shard.name for shard in found.shards),
        )

    def _test_path(self) -> Path | None:
        path = self._data.test_path
        return None if path is None else Path(path).expanduser().absolute()


class ImageShardFeed(ShardFeed):
    """Shards of images.

    Args:
        data: Where they lie.
    """

    gives = IMAGES_GIVE
    settings: type[DataSettings] = ChunkedImageSettings

    def find(self) -> FoundShards:
        kind, paths = self._data.shards()
        classes = self._classes(paths[0])
        first = self._shard(paths[0], classes, None)
        shape = _enough(first, first.num_samples).image_shape

        def look_at(path: Path, name: str) -> FoundShard:
            shard = self._shard(path, classes, shape)
            _enough(shard, shard.num_samples)
            if kind == "npz" and shard.image_shape != shape:
                raise _unlike(path, f"its images are {shard.image_shape}", f"{paths[0].name} are {shape}")
            return FoundShard(name, shard.fingerprint, shard.num_samples)

        test = self._test_path()
        return FoundShards(
            kind=kind,
            folder=self._data.folder,
            shards=tuple(look_at(path, path.name) for path in paths),
            features=(),
            shape=shape,
            told={"num_outputs": len(classes), "classes": [*classes]},
            test=None if test is None else look_at(test, str(test)),
        )

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        found = FoundShards.from_json(dataset.located)
        height, width, channels = found.shape
        return given_by_images((height, width, channels), num_classes=len(found.classes))

    def open(self, setting: Setting) -> Source[Any]:
        found = FoundShards.from_json(setting.dataset.located)
        height, width, channels = found.shape

        def opened(shard: FoundShard) -> DecodedShard:
            own = self._shard(found.folder / shard.name, found.classes, (height, width, channels))
            return own.open(
                setting.cache_dir, fingerprint=shard.fingerprint, classes=found.classes, size=self._data.size
            )

        return ImageShardSource(
            found,
            given=self.given_by(setting.dataset),
            replay=self._data.replay,
            setting=setting,
            opened=opened,
            room_bytes=room_for(setting),
        )

    def _classes(self, first: Path) -> tuple[str, ...]:
        if (names := self._data.class_names) is not None:
            return names
        if self._data.kind_of(first) == "folder":
            return FolderShard(first, classes=None, shape=None, size=self._data.size).classes
        labels = NpzArray(first, "labels").whole()
        return tuple(Classes().told(labels, where=str(first))["classes"])

    def _shard(self, path: Path, classes: tuple[str, ...], shape: tuple[int, int, int] | None) -> ImageShard:
        if self._data.kind_of(path) == "folder":
            fit = None if shape is None else shape[:2]
            return FolderShard(path, classes=classes, shape=fit, size=self._data.size)
        if self._data.size is not None:
            raise ExperimentError(
                "images in .npz files are taken as they are", where="data.size", remedy="leave it out, or scale them"
            )
        return NpzShard(path, classes=classes)


class TableShardFeed(ShardFeed):
    """Shards of tables.

    Args:
        data: Where they lie.
        targets: What the targets mean.

    Raises:
        ExperimentError: The shards hold images, or classes are named for what has none.
    """

    gives = TABLES_GIVE
    settings: type[DataSettings] = ChunkedTableSettings

    def __init__(self, data: ChunkFolder, targets: Targets) -> None:
        super().__init__(data)
        self._targets = targets
        if not data.is_table:
            raise ExperimentError(
                "nothing says what is to be predicted", where="targets", remedy='name it, e.g. targets="price"'
            )
        if data.class_names is not None and not isinstance(targets, Classes):
            raise ExperimentError(
                f"{data.class_names!r} are given, but the task predicts no classes",
                where="classes" if data.num_classes is None else "num_classes",
                remedy="leave them out",
            )

    def find(self) -> FoundShards:
        kind, paths = self._data.shards()
        first = self._table(paths[0])
        told = self._told(first)
        features, width = first.features, first.num_features
        like = self._coded(first.targets(), str(first.path), told=told).shape[1:]

        def look_at(path: Path, name: str) -> FoundShard:
            table = self._table(path)
            if {*table.features} != {*features} or table.num_features != width:
                own = f"its features are {', '.join(table.features)} ({table.num_features})"
                raise _unlike(path, own, f"{paths[0].name} are {', '.join(features)} ({width})")
            targets = self._coded(table.targets(), str(path), told=told)
            if targets.shape[1:] != like:
                raise _unlike(path, f"its targets are {targets.shape[1:]}", f"{paths[0].name} are {like}")
            _enough(table, len(targets))
            return FoundShard(name, table.fingerprint, len(targets))

        test = self._test_path()
        return FoundShards(
            kind=kind,
            folder=self._data.folder,
            shards=tuple(look_at(path, path.name) for path in paths),
            features=features,
            shape=(width,),
            told=told,
            test=None if test is None else look_at(test, str(test)),
        )

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        found = FoundShards.from_json(dataset.located)
        num_outputs = found.told["num_outputs"]
        return {
            **found.told,
            "in_features": found.shape[0],
            "out_features": num_outputs,
            "num_classes": num_outputs,
        }

    def open(self, setting: Setting) -> Source[Any]:
        found = FoundShards.from_json(setting.dataset.located)
        return TableShardSource(
            found,
            given=self.given_by(setting.dataset),
            replay=self._data.replay,
            setting=setting,
            table=lambda shard: self._table(found.folder / shard.name, found.features),
            coded=partial(self._coded, told=found.told),
            of_outputs=self._targets.preprocessing(found.told),
        )

    def _table(self, path: Path, features: tuple[str, ...] = ()) -> TableShard:
        named = self._data.features
        features = features or ((named,) if isinstance(named, str) else named)
        targets = self._data.targets
        if self._data.kind_of(path) == "parquet":
            return ParquetTable(path, targets=targets, features=features)
        if len(features) > 1 or not isinstance(targets, str):
            raise ExperimentError(
                f"{features or targets!r} are not the name of one array",
                where="data.features" if len(features) > 1 else "data.targets",
                remedy='.npz files have one array of each: ChunkFolder(…, targets="targets", features="inputs")',
            )
        return NpzTable(path, inputs=features[0] if features else "inputs", targets=targets)

    def _told(self, first: TableShard) -> dict[str, Any]:
        names = self._data.class_names
        if names is not None:
            return {"num_outputs": len(names), "classes": [*names]}
        return self._targets.told(first.targets(), where=str(first.path))

    def _coded(self, targets: NDArray[Any], where: str, *, told: Mapping[str, Any]) -> NDArray[Any]:
        if isinstance(self._targets, Classes):
            return class_codes(targets, told["classes"], where=where)
        return self._targets.coded(targets, told, where=where)


def shard_feed(data: ChunkFolder, targets: Targets) -> ShardFeed:
    """What feeds a task with these shards, whose targets mean that."""
    if isinstance(targets, Classes) and not data.is_table:
        return ImageShardFeed(data)
    return TableShardFeed(data, targets)


def _enough(shard: Any, num_samples: int) -> Any:
    """The shard, of which it is sure that some can be held out."""
    if num_samples < 2:
        raise DataError(
            f"the shard holds {num_samples} samples, but one is to be trained on and one held out",
            where=str(shard.path),
            remedy="fill it, or put what is there into another one",
        )
    return shard


def _unlike(path: Path, own: str, first: str) -> DataError:
    return DataError(f"{own}, but those of {first}", where=str(path), remedy="give all shards the same form")
