"""One optimizer step: run by Python each time, or captured once as a CUDA graph and repeated.

A captured step launches the whole of forward, backward, optimizer and measuring at once; a small model spends most of
its time on these launches otherwise. What it captured reads and writes tensors that stay where they are, so another
trial may have it whose step is the same but for the values in them: see `CapturedStep.take`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hpo.training import update
from hpo.training.blueprint import Blueprint, blueprint, describe, difference
from hpo.training.capturable import Capturable, Uncapturable
from hpo.training.distributed import ALONE, Team
from hpo.training.learning import Recipe, Stream, Tally
from hpo.training.randomness import host_state, left_as_found
from hpo.training.share import Share
from hpo.training.update import Average
from hpo.training.watch import UpdateWatch, over_step

Record = Callable[[Callable[[], None], torch.device], Callable[[], None]]
"""Captures a function on a device, and returns what repeats it; may call it some times before."""


@dataclass(frozen=True)
class Work:
    """What a step works on.

    Attributes:
        model: In training mode.
        forward: The model, or a compiled or distributed form of it.
        optimizer: Of the model's parameters.
        stream: Where batches come from.
        recipe: The loss, and how inputs are laid out.
        tally: Counts each batch.
        cast: Sets the precision of the forward pass; may be entered again and again.
        device: Where all of these are.
        place: Of the stream, when the step was made.
        team: The processes that step together.
        distributed: What averages their gradients, around the model; None where there is one process.
        average: Of the model's weights, over the steps; None where there is none.
        watch: Sees each step; None where nobody wants to.
        is_compiled: Whether `forward` is.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: Optimizer
    stream: Stream
    recipe: Recipe
    tally: Tally
    cast: AbstractContextManager[object]
    device: torch.device
    place: object = None
    team: Team = ALONE
    distributed: DistributedDataParallel | None = None
    average: Average | None = None
    watch: UpdateWatch | None = None
    is_compiled: bool = False


class TrainStep(ABC):
    """Trains on one batch after another.

    Law, which an inheritable test class holds against both: the same losses, within float tolerance, where nothing is
    random; the same statistics where something is.
    """

    def __init__(self, work: Work) -> None:
        self.work = work

    @abstractmethod
    def __call__(self) -> None:
        """One optimizer step on the batch that is within the stream's reach; waits for nothing."""

    @property
    def is_compiled(self) -> bool:
        """Whether its forward pass is."""
        return self.work.is_compiled

    @abstractmethod
    def push(self) -> None:
        """Have the next steps use the numbers that the optimizer has now."""


class EagerStep(TrainStep):
    """Runs Python, and each kernel, each time."""

    def __call__(self) -> None:
        train_once(self.work, Numbers.of(self.work.recipe))

    def push(self) -> None:
        if isinstance(self.work.optimizer, Capturable):
            self.work.optimizer.push()


class CapturedStep(TrainStep):
    """Repeats what was captured.

    Capturing leaves model, optimizer and random generators as they were.

    Args:
        work: Its optimizer must be capturable.
        record: What captures.

    Raises:
        Uncapturable: The step does something that cannot be repeated.
        Exception: Whatever the model raises.
    """

    def __init__(self, work: Work, record: Record) -> None:
        super().__init__(work)
        if not isinstance(work.optimizer, Capturable):
            raise Uncapturable("its optimizer reads its numbers on the host")
        self.optimizer: Capturable = work.optimizer
        self.form = form(work.model, work.optimizer, work.stream, work.recipe)
        self._numbers = Numbers.of(work.recipe).on(work.device)
        with left_as_it_was(work):
            self._refuse_what_changes_on_the_host()
            self._repeat = record(self._once, work.device)

    def __call__(self) -> None:
        self._repeat()

    def push(self) -> None:
        self.optimizer.push()

    def take(self, model: nn.Module, optimizer: Capturable, recipe: Recipe) -> None:
        """Become the step of another trial, whose `form` is equal: take its weights, its numbers and its state."""
        with torch.no_grad():
            for ours, theirs in zip(_tensors(self.work.model), _tensors(model), strict=True):
                ours.copy_(theirs)
            self._numbers.take(Numbers.of(recipe))
            self.optimizer.take(optimizer)
        if self.work.average is not None:
            self.work.average.begin()

    def _once(self) -> None:
        train_once(self.work, self._numbers)

    def _refuse_what_changes_on_the_host(self) -> None:
        """Raise Uncapturable where a step depends on what Python does anew each time, which a graph would not."""
        self._once()  # the first step may make what later ones keep
        before, drawn = blueprint(self.work.model), host_state(torch_too=self.work.device.type != "cpu")
        self._once()
        if drawn != host_state(torch_too=self.work.device.type != "cpu"):
            raise Uncapturable("a step draws random numbers on the host")
        if changed := difference(before, blueprint(self.work.model)):
            raise Uncapturable(f"a step changes the model on the host: before and after it {changed}")


def form(model: nn.Module, optimizer: Capturable, stream: Stream, recipe: Recipe) -> Blueprint:
    """All that a captured step has built in, but for where it runs; it fits another trial where this is equal."""
    return {
        **blueprint(model),
        **{name: describe(value) for name, value in optimizer.form().items()},
        "batches": describe(stream.place),
        "loss": describe(recipe.loss_settings),
        "numbers of the loss": describe(tuple(recipe.loss_numbers)),
        "numbers of the update": describe(tuple(update.numbers(recipe.loop))),
        "fine-tuning is off": describe(recipe.fine_tuning.is_off),
        "what is watched": describe(recipe.loop.watched & {"gradients", "updates"}),
        "loop": describe((recipe.loop.channels_last, recipe.loop.precision, recipe.loop.micro_batch_size)),
    }


@contextmanager
def left_as_it_was(work: Work) -> Iterator[None]:
    """Steps inside leave no trace in the model, its optimizer and the random generators."""
    had = set(work.optimizer.state)
    averages = [] if work.average is None else work.average.tensors
    tensors = [*_tensors(work.model), *_state(work.optimizer), *averages]
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        with left_as_found(work.device):
            yield
    finally:
        work.tally.clear()
        if work.watch is not None:
            work.watch.clear()
        for parameter in [parameter for parameter in work.optimizer.state if parameter not in had]:
            del work.optimizer.state[parameter]  # PyTorch's optimizers make it in their first step
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)


class Numbers(NamedTuple):
    """What a step does to a degree that may change without capturing it anew, by name.

    Attributes:
        loss: Settings of the loss.
        update: What happens to gradients and weights.
    """

    loss: Mapping[str, float | Tensor]
    update: Mapping[str, float | Tensor]

    @classmethod
    def of(cls, recipe: Recipe) -> Numbers:
        """Those of a recipe, on the host."""
        return cls(recipe.loss_numbers, update.numbers(recipe.loop))

    def on(self, device: torch.device) -> Numbers:
        """The same as tensors ()."""
        return Numbers(
            *({name: torch.full((), float(value), device=device) for name, value in part.items()} for part in self)
        )

    def take(self, others: Numbers) -> None:
        """Have these tensors hold the others' values."""
        for ours, theirs in zip(self, others, strict=True):
            for name, number in ours.items():
                assert isinstance(number, Tensor)  # noqa: S101 - made by `on`
                number.fill_(theirs[name])


def train_once(work: Work, numbers: Numbers) -> None:
    """One optimizer step on this process's part of the batch within reach."""
    inputs, targets, weight, sizes, counts = work.team.portion(work.stream)
    pieces = _pieces(len(targets), sizes, at_once=work.recipe.loop.micro_batch_size)
    trained = []
    work.optimizer.zero_grad()
    for number, piece in enumerate(pieces, 1):
        with work.team.reducing(work.distributed, last=number == len(pieces)):
            with work.cast:
                outputs = work.forward(laid_out(inputs[piece], work.recipe))
                loss = work.recipe.loss(outputs, targets[piece], **numbers.loss)
            scale = weight * len(targets[piece]) / len(targets)
            (loss if scale == 1 else loss * scale).backward()  # type: ignore[no-untyped-call]
        trained.append((outputs.detach(), targets[piece], loss.detach()))
    with over_step(work.watch):
        update.change_gradients(work.model.parameters(), numbers.update)
        work.optimizer.step()
    if work.average is not None:
        work.average.update(numbers.update["ema"])
    for one in trained if counts else ():  # now that all of them had room
        work.tally.add(*one)


def _pieces(num: int, sizes: tuple[int, int], *, at_once: int | None) -> list[slice]:
    """The parts of `num` samples that go through the model one after the other.

    They are equally many in each process, whose portions have the `sizes` (least, most), since processes that normalise
    over a batch meet in each of them: so a part has a sample more where some process has too few for one part more.
    """
    least, most = sizes
    num_pieces = 1 if at_once is None else min(-(-most // at_once), least)
    return [Share(rank, num_pieces).of(num) for rank in range(num_pieces)]


def cast_of(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """What sets the precision of a forward pass there; may be entered again and again."""
    precision = recipe.loop.precision
    if precision == "auto":
        low = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        low = precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16) if low else nullcontext()


def laid_out(inputs: Tensor, recipe: Recipe) -> Tensor:
    """The inputs in the memory format that the recipe says."""
    if inputs.dim() != 4:
        return inputs
    if recipe.loop.channels_last:
        return inputs.contiguous(memory_format=torch.channels_last)
    # Not contiguous(): images of one channel are that already, in strides that convolutions take for channels-last.
    return inputs.clone(memory_format=torch.contiguous_format)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _state(optimizer: Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
