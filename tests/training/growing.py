"""A line whose points come in three chunks of different sizes, each with a slope of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from hpo.protocols import Dataset, Setting
from hpo.training.data.epochs import EpochPlan, Indices
from hpo.training.data.rows import RowBatches, Rows
from hpo.training.data.samples import Samples
from hpo.training.learning import Batch, Source, Stream
from hpo.training.rules import Rule
from hpo.training.settings import ChunkSettings, DataSettings
from tests.training.line import LineFit

SIZES = (24, 20, 16)
HELD_OUT = 12
SLOPES = (3.0, -1.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class GrowingSettings(DataSettings, ChunkSettings):
    rules: ClassVar[Mapping[str, Rule]] = {**DataSettings.rules, **ChunkSettings.rules}


class OneByOne(EpochPlan):
    """Each chunk by itself."""

    def __init__(self, sizes: tuple[int, ...], *, epochs_per_chunk: int) -> None:
        self._ends, self._sizes, self._per_chunk = np.cumsum(sizes), sizes, epochs_per_chunk

    def indices(self, epoch: int) -> Indices:
        chunk = epoch // self._per_chunk
        return np.arange(self._ends[chunk] - self._sizes[chunk], self._ends[chunk])

    def num_samples(self, epoch: int) -> int:
        return self._sizes[epoch // self._per_chunk]

    @property
    def least(self) -> int:
        return min(self._sizes)

    def chunk(self, epoch: int) -> int:
        return epoch // self._per_chunk + 1

    @property
    def num_epochs(self) -> int:
        return len(self._sizes) * self._per_chunk


class GrowingPoints(Source[GrowingSettings]):
    def __init__(self, *, apart: bool = False) -> None:
        self.chunks = [points(number, size + HELD_OUT) for number, size in enumerate(SIZES)]
        self.train = [Samples(chunk.inputs[HELD_OUT:], chunk.targets[HELD_OUT:]) for chunk in self.chunks]
        self.apart = apart
        inputs = np.concatenate([part.inputs for part in self.train])
        targets = np.concatenate([part.targets for part in self.train])
        self.rows = Rows(Samples(inputs, targets), device=torch.device("cpu"))

    @property
    def given(self) -> Mapping[str, Any]:
        return {"in_features": 2}

    def training(self, settings: GrowingSettings, *, batch_size: int, seed: int) -> Stream:
        plan = OneByOne(SIZES, epochs_per_chunk=settings.epochs_per_chunk)
        stream = Apart if self.apart else RowBatches
        return stream(self.rows, plan=plan, batch_size=batch_size, seed=seed)

    def validation(self, settings: GrowingSettings) -> Iterable[Batch]:
        raise AssertionError("data that grow are measured in parts")

    def parts(self, settings: GrowingSettings, *, chunk: int) -> Mapping[str, list[Batch]]:
        held_out = [
            (torch.tensor(part.inputs[:HELD_OUT]).float(), torch.tensor(part.targets[:HELD_OUT]).float())
            for part in self.chunks[:chunk]
        ]
        return {"old": held_out[:-1], "new": held_out[-1:]} if chunk > 1 else {"new": held_out}

    def testing(self, settings: GrowingSettings) -> list[Batch]:
        return [batch for part in self.parts(settings, chunk=len(SIZES)).values() for batch in part]


class Apart(RowBatches):
    """Each epoch is trained on from tensors of its own."""

    def begin_epoch(self) -> None:
        super().begin_epoch()
        if self.position == 0:
            self._rows = Rows(Samples(self._rows.inputs.numpy(), self._rows.targets.numpy()), device=self._rows.device)
            self._buffers = self._rows.buffers(self.own_size)


def points(number: int, size: int) -> Samples:
    generator = np.random.default_rng(number)
    inputs = generator.random((size, 2))
    return Samples(inputs, SLOPES[number] * inputs[:, 0] + 0.1 * generator.normal(size=size))


@dataclass(frozen=True)
class GrowingFit(LineFit):
    """`apart`: each epoch is trained on from tensors of its own."""

    apart: bool = False

    @property
    def data_settings(self) -> type[DataSettings]:
        return GrowingSettings

    def num_chunks(self, dataset: Dataset) -> int:
        return len(SIZES)

    def open(self, setting: Setting) -> Source[Any]:
        return GrowingPoints(apart=self.apart)
