"""Tables as the training loop wants them: on the device, split, normalised by what is trained on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from hpo.errors import DataError, ExperimentError
from hpo.protocols import Dataset, Setting
from hpo.training.arrays import ArraySource
from hpo.training.data.epochs import Indices
from hpo.training.data.rows import Scaling
from hpo.training.data.samples import Samples
from hpo.training.data.tables import ChunkedTable, TableData, numbers
from hpo.training.feed import Feed
from hpo.training.rules import Rule, number
from hpo.training.settings import ChunkSettings, DataSettings
from hpo.trial import Config

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TableSettings(DataSettings):
    """Which of the rows a trial sees, and how.

    Attributes:
        min_std: Features are normalised by mean and standard deviation of the rows that are trained on, and this is
            the least deviation, in a feature's own unit: one that hardly varies there is not blown up where it does.
    """

    rules: ClassVar[Mapping[str, Rule]] = {**DataSettings.rules, "min_std": number(1e-3, above=0)}

    min_std: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class ChunkedTableSettings(TableSettings, ChunkSettings):
    """Which of the rows of a growing table a trial sees, and how; they are normalised by those of the first chunk."""

    rules: ClassVar[Mapping[str, Rule]] = {**TableSettings.rules, **ChunkSettings.rules}


class Targets(ABC):
    """What the targets of a table mean to a task."""

    @abstractmethod
    def told(self, targets: NDArray[Any], *, where: str, first: Indices | None = None) -> dict[str, Any]:
        """JSON of what the targets of the train part tell: at least `num_outputs`.

        Args:
            targets: (N, …), all of them.
            where: They are from, for people.
            first: Rows of those that are there at first, where data grow.

        Raises:
            DataError: They are not what the task learns.
        """

    @abstractmethod
    def coded(self, targets: NDArray[Any], told: Mapping[str, Any], *, where: str) -> NDArray[Any]:
        """(N,) int64 or (N, K) float32: the targets of any part, as the loss takes them.

        Raises:
            DataError: They are not like those of the train part.
        """

    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64] | None:
        """(N,) class of each row, which parts are to hold in proportion; None: they are drawn plainly."""
        return None

    def preprocessing(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """What `Source.preprocessing` says of outputs."""
        return {}


class Classes(Targets):
    """One class a row, (N,): numbers or names, sorted."""

    def told(self, targets: NDArray[Any], *, where: str, first: Indices | None = None) -> dict[str, Any]:
        if targets.ndim != 1:
            raise DataError(
                f"targets have shape {targets.shape}, not (rows,)",
                where=where,
                remedy="give one class a row; for several labels a row there is MultiLabel",
            )
        classes = np.unique(targets)
        if len(classes) < 2 or (targets.dtype.kind == "f" and (classes != np.floor(classes)).any()):
            raise DataError(
                f"{_some(classes)} are not two or more classes",
                where=where,
                remedy="give whole numbers or names; for other numbers there is Regression",
            )
        names = [str(name) if targets.dtype.kind == "U" else str(int(name)) for name in classes]
        return {"num_outputs": len(names), "classes": names}

    def coded(self, targets: NDArray[Any], told: Mapping[str, Any], *, where: str) -> NDArray[np.int64]:
        labels = {name: label for label, name in enumerate(told["classes"])}
        names = targets if targets.dtype.kind == "U" else targets.astype(np.int64).astype(np.str_)
        for name in np.unique(names):
            if name not in labels:
                raise DataError(
                    f"class {str(name)!r} is not in the train part",
                    where=where,
                    remedy="give both parts the same classes",
                )
        return np.array([labels[name] for name in names], np.int64)

    def preprocessing(self, told: Mapping[str, Any]) -> dict[str, Any]:
        return {"classes": told["classes"]}

    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        return np.unique(targets, return_inverse=True)[1].astype(np.int64)


class Quantities(Targets):
    """Numbers to be predicted, (N,) or (N, K), standardised by mean and deviation of the train part.

    Of the whole train part, validation included, so that trials with other splits have losses of the same unit; of
    growing data, of the first chunk of it.
    """

    def told(self, targets: NDArray[Any], *, where: str, first: Indices | None = None) -> dict[str, Any]:
        values = _rows_of(numbers(targets, "targets", where=where))
        mean, std = _standard(values if first is None else values[first])
        return {"num_outputs": len(mean), "target_mean": mean.tolist(), "target_std": std.tolist()}

    def coded(self, targets: NDArray[Any], told: Mapping[str, Any], *, where: str) -> NDArray[np.float32]:
        values = _rows_of(numbers(targets, "targets", where=where))
        coded: NDArray[np.float32] = ((values - told["target_mean"]) / told["target_std"]).astype(np.float32)
        return coded

    def preprocessing(self, told: Mapping[str, Any]) -> dict[str, Any]:
        return {"targets": {"mean": told["target_mean"], "std": told["target_std"]}}


class Labels(Targets):
    """Any number of K labels a row, (N, K): 1 or True where the row has the label, else 0."""

    def told(self, targets: NDArray[Any], *, where: str, first: Indices | None = None) -> dict[str, Any]:
        return {"num_outputs": self.coded(targets, {}, where=where).shape[1]}

    def coded(self, targets: NDArray[Any], told: Mapping[str, Any], *, where: str) -> NDArray[np.float32]:
        if targets.ndim != 2 or targets.dtype.kind == "U" or not np.isin(targets, (0, 1)).all():
            raise DataError(
                f"targets are not rows of 0 and 1, but of shape {targets.shape} with {_some(np.unique(targets))}",
                where=where,
                remedy="give one column a label; for one class a row there is Classification",
            )
        return targets.astype(np.float32)


TABLES_GIVE = ("in_features", "num_outputs", "out_features", "num_classes")
"""The last three are one number, so that any network serves that names its outputs in one of these ways."""


class TableFeed(Feed):
    """Rows of a table.

    Args:
        data: The table.
        targets: What its targets mean.

    Raises:
        ExperimentError: `data` is no table.
    """

    gives = TABLES_GIVE

    def __init__(self, data: TableData, targets: Targets) -> None:
        if not isinstance(data, TableData):
            raise ExperimentError(
                f"{data!r} is no table", where="data", remedy='give one, e.g. data=TableFile("x.csv", targets="y")'
            )
        self._data, self._targets = data, targets
        self._chunks = data.chunks if isinstance(data, ChunkedTable) else None

    @property
    def settings(self) -> type[TableSettings]:
        return TableSettings if self._chunks is None else ChunkedTableSettings

    def check_config(self, config: Config) -> None:
        if self._chunks is not None:
            self._chunks.check_config(config)

    @property
    def data(self) -> TableData:
        return self._data

    def num_chunks(self, dataset: Dataset) -> int | None:
        return None if self._chunks is None else self._chunks.num_chunks

    def locate(self, data_dir: Path | None) -> Dataset:
        path = self._data.find(data_dir)
        samples = self._read(path)
        told = self._targets.told(samples.targets, where=self._data.name, first=self._first(samples))
        self._coded(samples, told)
        located = {"source": None if path is None else str(path), "in_features": samples.inputs.shape[1], **told}
        return Dataset(self._data.name, samples.fingerprint, located=located)

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        given = {name: value for name, value in dataset.located.items() if name != "source"}
        return {**given, "out_features": given["num_outputs"], "num_classes": given["num_outputs"]}

    def open(self, setting: Setting) -> ArraySource:
        source = setting.dataset.located["source"]
        samples = self._read(None if source is None else Path(source))
        samples.check_same(setting.dataset.fingerprint, where=setting.dataset.name)
        features = Features(samples.inputs, device=torch.device(setting.device))
        coded = self._coded(samples, setting.dataset.located)
        test = coded.test and Samples(features.stored(coded.test.inputs), coded.test.targets)
        of_outputs = self._targets.preprocessing(setting.dataset.located)
        return ArraySource(
            Samples(features.stored(coded.inputs), coded.targets, test),
            given=self.given_by(setting.dataset),
            setting=setting,
            strata=self._targets.strata(samples.targets),
            scaling_of=features.scaling,
            told_of=lambda indices, settings: {**features.preprocessing(indices, settings), **of_outputs},
            chunks=self._chunks,
        )

    def _first(self, samples: Samples) -> Indices | None:
        """Rows of the first chunk of growing data, once it is sure that they can be divided as was declared."""
        if self._chunks is None:
            return None
        strata = self._targets.strata(samples.targets)
        self._chunks.check_fits(len(samples), num_classes=None if strata is None else int(strata.max()) + 1)
        return self._chunks.first(np.zeros(len(samples), np.int64) if strata is None else strata)

    def _read(self, path: Path | None) -> Samples:
        samples = self._data.read(path)
        return samples.held_out(self._data.test_ratio, strata=self._targets.strata(samples.targets))

    def _coded(self, samples: Samples, told: Mapping[str, Any]) -> Samples:
        targets = self._targets.coded(samples.targets, told, where=self._data.name)
        return Samples(samples.inputs, targets, samples.test and self._coded(samples.test, told))


class Features:
    """The features of a table's train part, and how trials normalise them.

    Args:
        inputs_NF: In their own units.
        device: Where trials train.
    """

    def __init__(self, inputs_NF: Numbers, *, device: torch.device) -> None:
        self._inputs_NF, self._device = inputs_NF, device
        self._centre_F, self._unit_F = _standard(inputs_NF)

    def stored(self, inputs_NF: Numbers) -> NDArray[np.float32]:
        """What lies on the device: near 0 and 1, where float32 is fine enough for years and for prices."""
        stored: NDArray[np.float32] = ((inputs_NF - self._centre_F) / self._unit_F).astype(np.float32)
        return stored

    def scaling(self, train_indices: Indices, settings: TableSettings) -> Scaling:
        """What brings stored features to mean 0 and deviation 1 over the rows that are trained on."""
        mean, std = self._standard(train_indices, settings)
        parts = (mean - self._centre_F) / self._unit_F, self._unit_F / std
        return Scaling(*(torch.from_numpy(part.astype(np.float32)).to(self._device) for part in parts))

    def preprocessing(self, train_indices: Indices, settings: TableSettings) -> dict[str, Any]:
        """What `Source.preprocessing` says of inputs, in the features' own units."""
        mean, std = self._standard(train_indices, settings)
        return {"inputs": {"mean": mean.tolist(), "std": std.tolist()}}

    def _standard(self, train_indices: Indices, settings: TableSettings) -> tuple[Numbers, Numbers]:
        rows = self._inputs_NF[train_indices]
        return rows.mean(0), np.maximum(rows.std(0), settings.min_std)


def _rows_of(values: Numbers) -> Numbers:
    return values.reshape(len(values), -1)


def _standard(values_NF: Numbers) -> tuple[Numbers, Numbers]:
    """Mean (F,) and standard deviation (F,) over the rows, the latter 1 where all are equal but for rounding."""
    mean, std = values_NF.mean(0), values_NF.std(0)
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0)


def _some(values: NDArray[Any], most: int = 5) -> str:
    shown = ", ".join(map(str, values[:most]))
    return f"{shown}, …" if len(values) > most else shown
