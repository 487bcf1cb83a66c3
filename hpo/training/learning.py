"""What the training loop needs to know of what it trains: nothing of classes, images or regression."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

from torch import Tensor, device, nn
from torch.optim import Optimizer

from hpo.protocols import Setting
from hpo.training.capturable import Capturable
from hpo.training.fine_tuning import FineTuningSettings
from hpo.training.schedules import Schedule
from hpo.training.settings import ChunkSettings, DataSettings, LoopSettings, StartSettings
from hpo.trial import Config

Batch = tuple[Tensor, Tensor]
"""Inputs and targets of the same samples, on the device."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean over a batch, of outputs and targets."""


Settings = TypeVar("Settings", bound=DataSettings)


class Stream(ABC):
    """The training samples of one trial, in epochs that are drawn anew each time.

    Whoever subclasses it says what an epoch's batches are, in `__iter__`. The loop begins an epoch, brings batch after
    batch within reach, and computes with it. A stream whose `batch` computes from tensors that stay where they are
    can be captured; it has a `place`, and implements these three itself.

    Law: from the same `state()`, taken between any two batches, it goes on with the same batches, bit for bit.

    Attributes:
        position: Batches of the epoch under way that were had; 0 between two epochs.
        batch_size: Samples of each whole batch, where it may be another number than the one that was asked for.
    """

    position: int = 0
    batch_size: int | None = None
    _batches: Iterator[Batch]
    _within_reach: Batch

    @property
    def place(self) -> object:
        """Equals that of another stream where `batch` does the same with the same tensors; None: nowhere."""
        return None

    @property
    def whole_batch(self) -> int | None:
        """Samples of a batch, where `batch` gives this process's share of them alone; None: it gives all of them."""
        return None

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Samples of the epoch under way, or, between two, of the next one, those of other processes included."""

    @property
    def chunk(self) -> int | None:
        """Piece of growing data, from 1, that the epoch under way is of, or, between two, the next one."""
        return None

    @property
    def num_epochs(self) -> int | None:
        """Epochs after which all pieces of growing data have been had; None: there is no such number."""
        return None

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """The batches of the next epoch."""

    def begin_epoch(self) -> None:
        """Begin the next epoch; or go on with one, where `restore` has put `position` into it."""
        self._batches = islice(iter(self), self.position, None)

    def advance(self) -> bool:
        """Bring the next batch within reach; False at the end of the epoch."""
        batch = next(self._batches, None)
        if batch is None:
            self.position = 0
            return False
        self.position += 1
        self._within_reach = batch
        return True

    def batch(self) -> Batch:
        """The batch within reach; of a stream with a place, before the first `advance`, any batch of that form."""
        return self._within_reach

    def look_ahead(self) -> None:
        """Prepare what the next epoch needs from the host, while the device is busy."""
        return

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors and plain containers that the batches to come depend on; taken between any two of them."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; `begin_epoch` comes next, also where that was within an epoch."""


class Source(ABC, Generic[Settings]):
    """Data, opened once in a process and kept from trial to trial.

    Where several processes train a trial, each opens the data. A source may read no more than its process's share of
    each batch (`Setting.group`); of one that does not, a process takes what it is to train on, and leaves the rest.
    """

    is_shared = False
    """Whether its streams and its validation give this process's share alone."""

    @property
    def how(self) -> str:
        """In words, where the data lie and why; nothing where there is nothing to tell."""
        return ""

    @property
    @abstractmethod
    def given(self) -> Mapping[str, Any]:
        """What the data tell a model: names of arguments, and their values."""

    @abstractmethod
    def training(self, settings: Settings, *, batch_size: int, seed: int) -> Stream:
        """The samples to train on; their order and augmentation follow from `seed` alone."""

    @abstractmethod
    def validation(self, settings: Settings) -> Iterable[Batch]:
        """The samples that are held out, always in the same order; of growing data, `parts` are asked for instead."""

    def parts(self, settings: Settings, *, chunk: int) -> Mapping[str, Iterable[Batch]]:
        """Of growing data, the samples that are held out of the chunks up to this one (from 1), in the same order.

        By name: "new" has those of this chunk; "old" has those of the chunks before, and is left out for the first.
        """
        return {}

    @abstractmethod
    def testing(self, settings: Settings) -> Iterable[Batch]:
        """The samples of the test part, always in the same order, as a model trained with `settings` takes them.

        Raises:
            DataError: There is none.
        """

    def preprocessing(self, settings: Settings) -> Mapping[str, Any]:
        """JSON of what lies between raw samples and a model trained with `settings`, for those who have its weights.

        "inputs" has a `mean` and a `std`, (F,) each, of a row's features or of the channels of pixels from 0 to 255:
        the model takes (inputs - mean) / std. "targets" has those of the outputs (K,): outputs * std + mean are in the
        units of the targets. "classes" names the outputs. What is left out is taken as it is.
        """
        return {}


class Tally(ABC):
    """Sums over the batches of one pass, in tensors that stay where they are, on the device.

    Law: with the sums over two sets of batches added up, `result` is that of both.
    """

    @abstractmethod
    def sums(self) -> list[Tensor]:
        """The tensors themselves, to be replaced by their sums over several processes."""

    @abstractmethod
    def clear(self) -> None:
        """Begin another pass."""

    @abstractmethod
    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Count one batch."""

    @abstractmethod
    def result(self) -> dict[str, Tensor]:
        """The measures () of all batches so far, by name; waits for nothing."""


@dataclass(frozen=True)
class Recipe:
    """What one configuration comes to.

    Attributes:
        model: Builds the model on the CPU; draws its first weights from PyTorch's global generator.
        optimizer: Builds the optimizer of some parameters, or of groups of them.
        capturable: Builds one that computes the same and can be captured; or raises Uncapturable.
        loss: What is minimised; it takes `loss_numbers` by name.
        loss_numbers: Settings of the loss that may be tensors () on the device, and change in a captured step.
        loss_settings: Its other settings, which `loss` has built in.
        measured_loss: What is reported for samples not trained on; the same for all configurations, so that
            trials can be compared.
        schedule: Begins the learning rate's schedule, for a goal of the mode "min" or "max".
        data: Which samples, and how.
        loop: How long, in which batches and precision.
        fine_tuning: What of the model trains when, and at what part of the learning rate.
        start: Which weights it begins with.
    """

    model: Callable[[], nn.Module]
    optimizer: Callable[[list[Any]], Optimizer]
    capturable: Callable[[list[Any]], Capturable]
    loss: Callable[..., Tensor]
    loss_numbers: Mapping[str, float]
    loss_settings: Mapping[str, object]
    measured_loss: Loss
    schedule: Callable[[str], Schedule]
    data: DataSettings
    loop: LoopSettings
    fine_tuning: FineTuningSettings = field(default_factory=FineTuningSettings)
    start: StartSettings = field(default_factory=StartSettings)

    @property
    def chunks(self) -> ChunkSettings | None:
        """How a trial trains on data that grow; None where they do not."""
        return self.data if isinstance(self.data, ChunkSettings) else None

    @property
    def tunes(self) -> bool:
        """Whether some of the model's parameters do not always train, or not all at the whole learning rate."""
        return not self.fine_tuning.is_off or (self.chunks is not None and self.chunks.chunk_freeze is not None)


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
