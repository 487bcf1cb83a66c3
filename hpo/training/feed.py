"""How data reach a task, so that one task takes several kinds of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.declared import Declared
from hpo.errors import ExperimentError
from hpo.protocols import Dataset, Setting
from hpo.training.learning import Source
from hpo.training.settings import DataSettings
from hpo.training.supervised import SupervisedTask
from hpo.trial import Config


class Feed(ABC):
    """Finds the data of a task, tells what they give a model, and opens them."""

    @property
    @abstractmethod
    def data(self) -> Declared:
        """What the user declared."""

    @property
    @abstractmethod
    def gives(self) -> tuple[str, ...]:
        """See `SupervisedTask.gives`."""

    @property
    @abstractmethod
    def settings(self) -> type[DataSettings]:
        """See `SupervisedTask.data_settings`."""

    def check_config(self, config: Config) -> None:
        """Raise ExperimentError where a hyper-parameter does not go with how the data were declared."""
        return

    @abstractmethod
    def locate(self, data_dir: Path | None) -> Dataset:
        """See `Task.locate`."""

    def as_of(self, dataset: Dataset, num_pieces: int) -> Dataset | None:
        """See `Task.as_of`; None: nothing but all of the data can be had."""
        return None

    def num_chunks(self, dataset: Dataset) -> int | None:
        """See `Task.num_chunks`; by default, each shard is one."""
        return len(dataset.pieces) or None

    @abstractmethod
    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        """See `SupervisedTask.given_by`."""

    @abstractmethod
    def open(self, setting: Setting) -> Source[Any]:
        """See `Learning.open`."""


@dataclass(frozen=True)
class FedTask(SupervisedTask):
    """A supervised task whose data come by a feed; a subclass names it, the loss and the measures."""

    @property
    @abstractmethod
    def feed(self) -> Feed:
        """What feeds it.

        Raises:
            ExperimentError: The task does not take such data.
        """

    @property
    def gives(self) -> tuple[str, ...]:
        return self.feed.gives

    @property
    def data_settings(self) -> type[DataSettings]:
        return self.feed.settings

    def check(self) -> None:
        super().check()
        try:
            self.feed.data.check()
        except ExperimentError as error:
            where = error.where if error.where == "data" else f"data.{error.where}"
            raise ExperimentError(error.problem, where=where, remedy=error.remedy) from None

    def check_config(self, config: Config) -> None:
        super().check_config(config)
        self.feed.check_config(config)

    def locate(self, data_dir: Path | None) -> Dataset:
        return self.feed.locate(data_dir)

    def as_of(self, dataset: Dataset, num_pieces: int) -> Dataset:
        return self.feed.as_of(dataset, num_pieces) or super().as_of(dataset, num_pieces)

    def num_chunks(self, dataset: Dataset) -> int | None:
        return self.feed.num_chunks(dataset)

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        return self.feed.given_by(dataset)

    def open(self, setting: Setting) -> Source[Any]:
        return self.feed.open(setting)
