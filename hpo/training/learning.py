"""What the training loop needs to know of what it trains: nothing of classes, images or regression."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, device, nn
from torch.optim import Optimizer

from hpo.protocols import Setting
from hpo.training.settings import DataSettings, LoopSettings
from hpo.trial import Config

Batch = tuple[Tensor, Tensor]
"""Inputs and targets of the same samples, on the device."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean over a batch, of outputs and targets."""


Settings = TypeVar("Settings", bound=DataSettings)


class Stream(Protocol):
    """The training samples of one trial: each iteration is one epoch, drawn anew.

    Law: from the same `state()` it goes on with the same batches, bit for bit.
    """

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the next epoch."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain containers that the epochs to come depend on; taken between two epochs."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""


class Source(ABC, Generic[Settings]):
    """Data on the device, opened once in a process and kept from trial to trial."""

    @property
    @abstractmethod
    def given(self) -> Mapping[str, Any]:
        """What the data tell a model: names of arguments, and their values."""

    @abstractmethod
    def training(self, settings: Settings, *, batch_size: int, seed: int) -> Stream:
        """The samples to train on; their order and augmentation follow from `seed` alone."""

    @abstractmethod
    def validation(self, settings: Settings) -> Iterable[Batch]:
        """The samples that are held out, always in the same order."""

    @abstractmethod
    def testing(self) -> Iterable[Batch]:
        """The samples of the test part, always in the same order.

        Raises:
            DataError: There is none.
        """


class Tally(ABC):
    """Sums over the batches of one pass, on the device: only `result` waits for it."""

    @abstractmethod
    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Count one batch."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """The measures of all batches so far, by name."""


@dataclass(frozen=True)
class Recipe:
    """What one configuration comes to.

    Attributes:
        model: Builds the model on the CPU; draws its first weights from PyTorch's global generator.
        optimizer: Builds the optimizer of some parameters.
        loss: What is minimised.
        measured_loss: What is reported for samples not trained on; the same for all configurations, so that
            trials can be compared.
        data: Which samples, and how.
        loop: How long, in which batches and precision.
    """

    model: Callable[[], nn.Module]
    optimizer: Callable[[list[nn.Parameter]], Optimizer]
    loss: Loss
    measured_loss: Loss
    data: DataSettings
    loop: LoopSettings


class Learning(ABC):
    """A kind of problem: how its data are opened, what a configuration means, what is measured."""

    @property
    @abstractmethod
    def train_measures(self) -> tuple[str, ...]:
        """Names out of `Tally.result` that are reported of training, as `train_<name>`."""

    @property
    @abstractmethod
    def measures(self) -> tuple[str, ...]:
        """Names out of `Tally.result` that are reported of validation and test, as `val_<name>` and `test_<name>`."""

    @abstractmethod
    def open(self, setting: Setting) -> Source[Any]:
        """The data, on the device."""

    @abstractmethod
    def recipe(self, config: Config, given: Mapping[str, Any]) -> Recipe:
        """What `config` comes to on data that tell `given`.

        Raises:
            ExperimentError: See `Task.check_config`.
        """

    @abstractmethod
    def tally(self, given: Mapping[str, Any], *, device: device) -> Tally:
        """A tally of nothing yet."""
