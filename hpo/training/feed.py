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

    @abstractmethod
    def locate(self, data_dir: Path | None) -> Dataset:
        """See `Task.locate`."""

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

    def locate(self, data_dir: Path | None) -> Dataset:
        return self.feed.locate(data_dir)

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        return self.feed.given_by(dataset)

    def open(self, setting: Setting) -> Source[Any]:
        return self.feed.open(setting)
