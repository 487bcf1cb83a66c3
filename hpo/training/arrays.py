"""A task of one's own in a few lines: samples in memory, a loss, and what is measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.errors import DataError, ExperimentError
from hpo.protocols import Dataset, Setting
from hpo.training.data.chunks import ChunkedSplit, Chunks, Sizes
from hpo.training.data.epochs import Always, EpochPlan, Indices
from hpo.training.data.rows import RowBatches, Rows, Scaling
from hpo.training.data.samples import Samples
from hpo.training.data.split import Split, split_of
from hpo.training.learning import Batch, Source, Stream, Tally
from hpo.training.rules import Rule
from hpo.training.settings import ChunkSettings, DataSettings
from hpo.training.share import WHOLE, Share
from hpo.training.supervised import SupervisedTask
from hpo.trial import Config

MEASURED_AT_ONCE = {"cpu": 2**15, "cuda": 2**18}
"""Numbers that go into the model at once where it is not trained: rows of a table, or letters of some texts."""


class ArraySource(Source[Any]):
    """Samples in memory, laid on the device as a whole; the last split is kept, for most trials of a study share it.

    Args:
        samples: Numbers, the test part included.
        given: What they tell a model.
        setting: The device, and this process's place among those that train a trial together.
        strata: (N,) class of each sample, which a split keeps in proportion; None: it is plainly random.
        scaling_of: How inputs are normalised, by the samples that are trained on (of growing data, those of the first
            chunk) and the settings; None: not at all.
        told_of: What `preprocessing` gives, by the same; None: nothing.
        chunks: That the samples come in; None: they do not grow.
    """

    is_shared = True

    def __init__(
        self,
        samples: Samples,
        *,
        given: Mapping[str, Any],
        setting: Setting,
        strata: NDArray[np.int64] | None = None,
        scaling_of: Callable[[Indices, Any], Scaling] | None = None,
        told_of: Callable[[Indices, Any], Mapping[str, Any]] | None = None,
        chunks: Chunks | None = None,
    ) -> None:
        self._chunks = chunks
        self._given, self._test = given, samples.test
        self._scaling_of, self._told_of = scaling_of, told_of
        self._device = torch.device(setting.device)
        self._strata = np.zeros(len(samples), np.int64) if strata is None else strata
        self._share = WHOLE if setting.group is None else Share(setting.group.rank, setting.group.size)
        self._train_part = Rows(samples, device=self._device, is_scaled=scaling_of is not None)
        self._at_once = max(1, len(samples) * MEASURED_AT_ONCE[self._device.type] // samples.inputs.size)
        self._last: tuple[DataSettings, _Parts] | None = None

    @property
    def how(self) -> str:
        if self._device.type == "cpu":
            return "in the memory of each process"
        return f"on the device: {self._train_part.nbytes / 2**20:,.0f} MiB"

    @property
    def given(self) -> Mapping[str, Any]:
        return self._given

    def training(self, settings: DataSettings, *, batch_size: int, seed: int) -> Stream:
        return RowBatches(
            self._train_part,
            plan=self._plan(settings, seed),
            batch_size=batch_size,
            seed=seed,
            scaling=self._parts(settings).scaling,
            share=self._share,
        )

    def validation(self, settings: DataSettings) -> Iterable[Batch]:
        return self._measured(self._parts(settings).split.val_indices, settings)

    def parts(self, settings: DataSettings, *, chunk: int) -> Mapping[str, Iterable[Batch]]:
        chunked = self._parts(settings).chunked
        if chunked is None:
            return {}
        return {name: self._measured(indices, settings) for name, indices in chunked.measured(chunk).items()}

    def testing(self, settings: DataSettings) -> Iterable[Batch]:
        if self._test is None:
            raise DataError("the data have no test part", where="test", remedy="give them one, or a test_ratio above 0")
        scaling = self._parts(settings).scaling
        everything = np.arange(len(self._test))
        test_part = Rows(self._test, device=self._device)
        return test_part.in_order(everything, batch_size=self._at_once, scaling=scaling)

    def preprocessing(self, settings: DataSettings) -> Mapping[str, Any]:
        return self._told_of(self._parts(settings).first, settings) if self._told_of else {}

    def _measured(self, indices: Indices, settings: DataSettings) -> Iterable[Batch]:
        own = indices[self._share.of(len(indices))]
        return self._train_part.in_order(own, batch_size=self._at_once, scaling=self._parts(settings).scaling)

    def _plan(self, settings: DataSettings, seed: int) -> EpochPlan:
        parts = self._parts(settings)
        if self._chunks is None or parts.chunked is None or not isinstance(settings, ChunkSettings):
            return Always(parts.split.train_indices)
        return self._chunks.plan(parts.chunked.train, settings, seed=seed)

    def _parts(self, settings: DataSettings) -> _Parts:
        if self._last is None or self._last[0] != settings:
            split, chunked = split_of(self._strata, settings), None
            if self._chunks is not None:
                num_classes = int(self._strata.max()) + 1
                chunked = self._chunks.divided(split, self._strata, num_classes=num_classes, seed=settings.split_seed)
            parts = _Parts(split, chunked)
            scaling = self._scaling_of(parts.first, settings) if self._scaling_of else None
            self._last = settings, parts._replace(scaling=scaling)
        return self._last[1]


class _Parts(NamedTuple):
    """What settings make of the samples."""

    split: Split
    chunked: ChunkedSplit | None
    scaling: Scaling | None = None

    @property
    def first(self) -> Indices:
        """The samples that are trained on, of growing data those of the first chunk."""
        return self.split.train_indices if self.chunked is None else self.chunked.train[0]


class MeanTally(Tally):
    """Means over all samples, of what is a mean over a batch: the loss, and what `measure` gives.

    Args:
        measure: Means () over a batch by name, of outputs and targets.
        names: Of those that are kept; "loss" is the loss itself.
        device: Where the sums are kept.
    """

    def __init__(
        self, measure: Callable[[Tensor, Tensor], Mapping[str, Tensor]], names: Sequence[str], *, device: torch.device
    ) -> None:
        self._measure = measure
        self._totals = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}
        self._count = torch.zeros((), dtype=torch.int64, device=device)

    def clear(self) -> None:
        for total in self.sums():
            total.zero_()

    @torch.no_grad()
    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        means = {"loss": loss, **self._measure(outputs, targets)}
        for name, total in self._totals.items():
            if name not in means:
                raise ExperimentError(
                    f"measure() gives {', '.join(means)}, not {name!r}",
                    where="measures",
                    remedy=f"let it return {name!r}, or take that off the names",
                )
            total.add_(means[name], alpha=len(targets))
        self._count.add_(len(targets))

    def sums(self) -> list[Tensor]:
        return [*self._totals.values(), self._count]

    def result(self) -> dict[str, Tensor]:
        return {name: total / self._count for name, total in self._totals.items()}


@dataclass(frozen=True)
class ArrayTask(SupervisedTask):
    """A task on samples in memory, to be subclassed: say what they are, the loss, and what is measured.

    A subclass is a frozen dataclass with `samples` and `loss`, whose keyword arguments are hyper-parameters; where
    they are annotated as int, float, bool or str, values are checked for that. It may add `given`, `measure` with
    `measures`, and `loss_rules`. See `experiments/text_transformer.py`.

    Args:
        chunks: That a trial gets the samples in; `in_chunks` says it. None: all at once.
    """

    chunks: Chunks | None = field(default=None, kw_only=True)

    @abstractmethod
    def samples(self) -> Samples:
        """The samples, the same each time; called once in the driver and once in each process that trains."""

    @property
    def given(self) -> Mapping[str, Any]:
        """What the model and the loss may ask for, by the names of their arguments."""
        return {}

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Means () over a batch by name, besides the loss; it must not wait for the device (`.item()`)."""
        return {}

    def in_chunks(
        self, num_chunks: int, by: str | Sizes = "random", *, mode: str = "cumulative", replay: float | None = None
    ) -> Self:
        """The same task on growing data; see `Chunks`. Where targets are (N,) integers, they are the classes."""
        return replace(self, chunks=Chunks.of(num_chunks, by, mode, replay))

    def describe(self) -> dict[str, Any]:
        told = super().describe()
        if self.chunks is None:
            del told["chunks"]  # there were none once: runs of then are runs of this task
        return told

    @property
    def data_settings(self) -> type[DataSettings]:
        return DataSettings if self.chunks is None else ChunkedSettings

    def num_chunks(self, dataset: Dataset) -> int | None:
        return None if self.chunks is None else self.chunks.num_chunks

    def check(self) -> None:
        super().check()
        if self.chunks is not None:
            self.chunks.check()

    def check_config(self, config: Config) -> None:
        super().check_config(config)
        if self.chunks is not None:
            self.chunks.check_config(config)

    @property
    def train_measures(self) -> tuple[str, ...]:
        return ("loss",)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss",)

    @property
    def gives(self) -> tuple[str, ...]:
        return tuple(self.given)

    @property
    def loss_rules(self) -> Mapping[str, Rule]:
        return {}

    def tally(self, given: Mapping[str, Any], *, device: torch.device) -> Tally:
        return MeanTally(self.measure, sorted({*self.train_measures, *self.measures}), device=device)

    def locate(self, data_dir: Path | None) -> Dataset:
        samples = self.samples()
        if self.chunks is not None:
            classes = _classes(samples)
            self.chunks.check_fits(len(samples), num_classes=None if classes is None else int(classes.max()) + 1)
        return Dataset(type(self).__name__.lower(), samples.fingerprint)

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        return self.given

    def open(self, setting: Setting) -> ArraySource:
        samples = self.samples()
        samples.check_same(setting.dataset.fingerprint, where=setting.dataset.name)
        strata = None if self.chunks is None else _classes(samples)
        return ArraySource(samples, given=self.given, setting=setting, strata=strata, chunks=self.chunks)


@dataclass(frozen=True, kw_only=True)
class ChunkedSettings(DataSettings, ChunkSettings):
    """Which of growing samples a trial sees, and how."""

    rules: ClassVar[Mapping[str, Rule]] = {**DataSettings.rules, **ChunkSettings.rules}


def _classes(samples: Samples) -> NDArray[np.int64] | None:
    """(N,) class of each sample, where targets are such."""
    if samples.targets.ndim != 1 or samples.targets.dtype.kind not in "biuU":
        return None
    return np.unique(samples.targets, return_inverse=True)[1].astype(np.int64)
