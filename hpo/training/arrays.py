"""A task of one's own in a few lines: samples in memory, a loss, and what is measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.errors import DataError, ExperimentError
from hpo.protocols import Dataset, Setting
from hpo.training.data.rows import Indices, RowBatches, Rows, Scaling
from hpo.training.data.samples import Samples
from hpo.training.data.split import Split, split_of
from hpo.training.learning import Batch, Source, Stream, Tally
from hpo.training.rules import Rule
from hpo.training.settings import DataSettings
from hpo.training.share import WHOLE, Share
from hpo.training.supervised import SupervisedTask

MEASURED_AT_ONCE = {"cpu": 2**15, "cuda": 2**18}
"""Numbers that go into the model at once where it is not trained: rows of a table, or letters of some texts."""


class ArraySource(Source[Any]):
    """Samples in memory, laid on the device as a whole; the last split is kept, for most trials of a study share it.

    Args:
        samples: Numbers, the test part included.
        given: What they tell a model.
        setting: The device, and this process's place among those that train a trial together.
        strata: (N,) class of each sample, which a split keeps in proportion; None: it is plainly random.
        scaling_of: How inputs are normalised, by the samples that are trained on and the settings; None: not at all.
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
    ) -> None:
        self._given, self._scaling_of, self._test = given, scaling_of, samples.test
        self._device = torch.device(setting.device)
        self._strata = np.zeros(len(samples), np.int64) if strata is None else strata
        self._share = WHOLE if setting.group is None else Share(setting.group.rank, setting.group.size)
        self._train_part = Rows(samples, device=self._device, is_scaled=scaling_of is not None)
        self._at_once = max(1, len(samples) * MEASURED_AT_ONCE[self._device.type] // samples.inputs.size)
        self._last: tuple[DataSettings, Split, Scaling | None] | None = None

    @property
    def how(self) -> str:
        if self._device.type == "cpu":
            return "in the memory of each process"
        return f"on the device: {self._train_part.nbytes / 2**20:,.0f} MiB"

    @property
    def given(self) -> Mapping[str, Any]:
        return self._given

    def training(self, settings: DataSettings, *, batch_size: int, seed: int) -> Stream:
        split, scaling = self._parts(settings)
        return RowBatches(
            self._train_part,
            indices=split.train_indices,
            batch_size=batch_size,
            seed=seed,
            scaling=scaling,
            share=self._share,
        )

    def validation(self, settings: DataSettings) -> Iterable[Batch]:
        split, scaling = self._parts(settings)
        own = split.val_indices[self._share.of(len(split.val_indices))]
        return self._train_part.in_order(own, batch_size=self._at_once, scaling=scaling)

    def testing(self, settings: DataSettings) -> Iterable[Batch]:
        if self._test is None:
            raise DataError("the data have no test part", where="test", remedy="give them one, or a test_ratio above 0")
        _, scaling = self._parts(settings)
        everything = np.arange(len(self._test))
        test_part = Rows(self._test, device=self._device)
        return test_part.in_order(everything, batch_size=self._at_once, scaling=scaling)

    def _parts(self, settings: DataSettings) -> tuple[Split, Scaling | None]:
        if self._last is None or self._last[0] != settings:
            split = split_of(self._strata, settings)
            scaling = self._scaling_of(split.train_indices, settings) if self._scaling_of else None
            self._last = settings, split, scaling
        return self._last[1:]


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
    """

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
        return Dataset(type(self).__name__.lower(), self.samples().fingerprint)

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        return self.given

    def open(self, setting: Setting) -> ArraySource:
        samples = self.samples()
        samples.check_same(setting.dataset.fingerprint, where=setting.dataset.name)
        return ArraySource(samples, given=self.given, setting=setting)
