"""Shards as the training loop wants them: one at a time, with what is kept of those before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpo.errors import DataError
from hpo.protocols import Setting
from hpo.training import arrays, images
from hpo.training.data.chunk_folder import FoundShard, FoundShards
from hpo.training.data.chunk_folder_files import TableShard
from hpo.training.data.chunk_folder_held import HeldShards
from hpo.training.data.chunk_folder_images import DecodedShard, ShardBatches, ShardImages, check_shard
from hpo.training.data.chunk_folder_memory import ShardPlan
from hpo.training.data.chunk_folder_rows import ShardRowBatches, ShardRows, Statistics, stored
from hpo.training.data.epochs import Indices
from hpo.training.data.resident import DeviceImages, shared
from hpo.training.data.rows import Rows, Scaling
from hpo.training.data.samples import Samples
from hpo.training.images import ChunkedImageSettings
from hpo.training.learning import Batch, Source, Stream
from hpo.training.share import WHOLE, Share
from hpo.training.tabular import ChunkedTableSettings


class ShardSource(Source[Any]):
    """Shards that were found, of which a trial has one at a time.

    Args:
        found: The shards.
        given: What they tell a model.
        replay: As was declared, for settings that say nothing.
        setting: The device, and this process's place among those that train a trial together.
        num_at_once: Samples that are measured at once.
    """

    is_shared = True

    def __init__(
        self, found: FoundShards, *, given: Mapping[str, Any], replay: float, setting: Setting, num_at_once: int
    ) -> None:
        self._found, self._given, self._replay, self._num_at_once = found, given, replay, num_at_once
        self._device = torch.device(setting.device)
        self._share = WHOLE if setting.group is None else Share(setting.group.rank, setting.group.size)
        self._held = HeldShards([0, *np.cumsum(found.sizes).tolist()], self._read)
        self._last_plan: tuple[tuple[object, ...], ShardPlan] | None = None

    @property
    def how(self) -> str:
        return f"one of {len(self._found.shards)} shards at a time, {self._where}"

    @property
    def given(self) -> Mapping[str, Any]:
        return self._given

    def validation(self, settings: Any) -> Iterable[Batch]:
        chunks = range(1, len(self._found.shards) + 1)
        return _Batches(lambda: chain.from_iterable(self.parts(settings, chunk=chunk)["new"] for chunk in chunks))

    def parts(self, settings: Any, *, chunk: int) -> Mapping[str, Iterable[Batch]]:
        plan = self._plan(settings)

        def part(rows: Indices) -> Iterator[Batch]:
            self._held.bring(chunk - 1, plan.kept(chunk - 1))
            yield from self._measured(rows[self._share.of(len(rows))], settings)

        return {name: _Batches(partial(part, rows)) for name, rows in plan.measured(chunk).items()}

    @property
    @abstractmethod
    def _where(self) -> str:
        """In words, where the shard lies that a trial has."""

    @abstractmethod
    def _read(self, index: int) -> Batch:
        """Inputs and targets of a shard, from 0, where they are to be kept."""

    @abstractmethod
    def _measured(self, rows: Indices, settings: Any) -> Iterable[Batch]:
        """Samples that are here, in their order, as a model takes them."""

    def _plan(self, settings: Any) -> ShardPlan:
        replay = self._replay if settings.replay is None else settings.replay
        key = (settings.train_ratio, settings.train_samples, settings.val_samples, settings.split_seed, replay)
        if self._last_plan is None or self._last_plan[0] != key:
            self._last_plan = key, ShardPlan(self._found.sizes, settings, replay=replay)
        return self._last_plan[1]

    @property
    def _test(self) -> FoundShard:
        if self._found.test is None:
            raise DataError(
                "the data have no test part", where="test", remedy='name one more shard: ChunkFolder(…, test_path="…")'
            )
        return self._found.test


@dataclass(frozen=True)
class _Batches:
    """Iterated over again and again."""

    begin: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.begin()


class ImageShardSource(ShardSource):
    """Shards of images: mapped from the node's cache, or on the GPU where one and what is kept find room there.

    Args:
        found, given, replay, setting: See `ShardSource`.
        opened: Gives the decoded images of a shard.
        room_bytes: What images may take on the device; None: no limit.
    """

    def __init__(
        self,
        found: FoundShards,
        *,
        given: Mapping[str, Any],
        replay: float,
        setting: Setting,
        opened: Callable[[FoundShard], DecodedShard],
        room_bytes: float | None,
    ) -> None:
        device = torch.device(setting.device)
        at_once = images.MEASURED_AT_ONCE[device.type]
        super().__init__(found, given=given, replay=replay, setting=setting, num_at_once=at_once)
        self._opened = opened
        needed = 2 * max(found.sizes) * int(np.prod(found.shape))  # what is kept is less than one shard
        self._is_resident = room_bytes is None or needed <= room_bytes
        first = opened(found.shards[0])
        self._mean, self._std = first.mean, first.std
        height, width, channels = found.shape
        self._images = ShardImages(
            self._held, (height, width, channels), mean=first.mean, std=first.std, device=self._device
        )

    @property
    def _where(self) -> str:
        if self._device.type == "cpu":
            return "in memory that the node's processes share"
        return "on the device" if self._is_resident else "read from the node's cache batch by batch"

    def training(self, settings: ChunkedImageSettings, *, batch_size: int, seed: int) -> Stream:
        plan = self._plan(settings)
        return ShardBatches(
            self._images,
            kept=plan.kept,
            plan=plan.epochs(settings, seed=seed),
            batch_size=batch_size,
            augment=settings.strengths,
            num_classes=len(self._found.classes),
            seed=seed,
            share=self._share,
        )

    def testing(self, settings: ChunkedImageSettings) -> Iterable[Batch]:
        part = self._opened(self._test)
        whole = DeviceImages(part.images_NHWC, part.labels_N, mean=self._mean, std=self._std, device=self._device)
        return whole.in_order(np.arange(len(part.labels_N)), batch_size=self._num_at_once)

    def preprocessing(self, settings: ChunkedImageSettings) -> Mapping[str, Any]:
        return images.preprocessing_of_images(self._mean, self._std, classes=self._found.classes)

    def _read(self, index: int) -> Batch:
        shard = self._opened(self._found.shards[index])
        home = self._device if self._is_resident else torch.device("cpu")
        return shared(shard.images_NHWC).to(home), shared(shard.labels_N).to(home)

    def _measured(self, rows: Indices, settings: ChunkedImageSettings) -> Iterable[Batch]:
        return self._images.in_order(rows, batch_size=self._num_at_once)


class TableShardSource(ShardSource):
    """Shards of tables: read into memory, or onto the GPU, as float32.

    Args:
        found, given, replay, setting: See `ShardSource`.
        table: Opens a shard's file.
        coded: Targets as the loss takes them, of what a file holds, and of its path.
        of_outputs: What `preprocessing` says of them.
    """

    def __init__(
        self,
        found: FoundShards,
        *,
        given: Mapping[str, Any],
        replay: float,
        setting: Setting,
        table: Callable[[FoundShard], TableShard],
        coded: Callable[[NDArray[Any], str], NDArray[Any]],
        of_outputs: Mapping[str, Any],
    ) -> None:
        (num_features,) = found.shape
        at_once = max(1, arrays.MEASURED_AT_ONCE[torch.device(setting.device).type] // num_features)
        super().__init__(found, given=given, replay=replay, setting=setting, num_at_once=at_once)
        self._table, self._coded, self._of_outputs = table, coded, of_outputs
        self._same: set[str] = set()
        self._over = self._statistics(None)
        no_targets = self._targets(found.shards[0])[:0]
        self._rows = ShardRows(self._held, num_features, no_targets, device=self._device)
        self._last_scaling: tuple[object, Scaling, Mapping[str, Any]] | None = None

    @property
    def _where(self) -> str:
        return "in the memory of each process" if self._device.type == "cpu" else "on the device"

    def training(self, settings: ChunkedTableSettings, *, batch_size: int, seed: int) -> Stream:
        plan = self._plan(settings)
        return ShardRowBatches(
            self._rows,
            kept=plan.kept,
            scaling=self._scaling(settings),
            plan=plan.epochs(settings, seed=seed),
            batch_size=batch_size,
            seed=seed,
            share=self._share,
        )

    def testing(self, settings: ChunkedTableSettings) -> Iterable[Batch]:
        inputs, targets = self._content(self._test)
        test_part = Rows(Samples(inputs, targets), device=self._device)
        everything = np.arange(len(test_part))
        return test_part.in_order(everything, batch_size=self._num_at_once, scaling=self._scaling(settings))

    def _read(self, index: int) -> Batch:
        inputs, targets = self._content(self._found.shards[index])
        return torch.from_numpy(inputs).to(self._device), torch.from_numpy(targets).to(self._device)

    def _measured(self, rows: Indices, settings: ChunkedTableSettings) -> Iterable[Batch]:
        return self._rows.in_order(rows, batch_size=self._num_at_once, scaling=self._scaling(settings))

    def _content(self, shard: FoundShard) -> tuple[NDArray[np.float32], NDArray[Any]]:
        inputs = stored(self._checked(shard), num_samples=shard.num_samples, over=self._over)
        return inputs, self._targets(shard)

    def _targets(self, shard: FoundShard) -> NDArray[Any]:
        table = self._checked(shard)
        return self._coded(table.targets(), str(table.path))

    def preprocessing(self, settings: ChunkedTableSettings) -> Mapping[str, Any]:
        return {"inputs": self._scaled(settings)[2], **self._of_outputs}

    def _scaling(self, settings: ChunkedTableSettings) -> Scaling:
        """What brings stored features to mean 0 and deviation 1 over the train samples of the first shard."""
        return self._scaled(settings)[1]

    def _scaled(self, settings: ChunkedTableSettings) -> tuple[object, Scaling, Mapping[str, Any]]:
        """What for, how stored features are, and how those in their own units."""
        plan = self._plan(settings)
        key = (plan, settings.min_std)
        if self._last_scaling is None or self._last_scaling[0] != key:
            own = self._statistics(plan.train(0))
            mean = (own.mean - self._over.mean) / self._over.unit
            std = np.maximum(own.std, settings.min_std)
            factor = self._over.unit / std
            parts = (torch.from_numpy(part.astype(np.float32)).to(self._device) for part in (mean, factor))
            self._last_scaling = key, Scaling(*parts), {"mean": own.mean.tolist(), "std": std.tolist()}
        return self._last_scaling

    def _statistics(self, rows: Indices | None) -> Statistics:
        first = self._found.shards[0]
        return Statistics(self._checked(first), num_samples=first.num_samples, rows=rows)

    def _checked(self, shard: FoundShard) -> TableShard:
        """The shard's file, once in a process compared with what was located."""
        table = self._table(shard)
        if shard.name not in self._same:
            check_shard(table.path, table.fingerprint, shard.fingerprint)
            self._same.add(shard.name)
        return table
