"""One optimizer step: run by Python each time, or captured once as a CUDA graph and repeated.

A captured step launches the whole of forward, backward, optimizer and measuring at once; a small model spends most of
its time on these launches otherwise. What it captured reads and writes tensors that stay where they are, so another
trial may have it whose step is the same but for the values in them: see `CapturedStep.take`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpo.training.blueprint import Blueprint, blueprint, describe, difference
from hpo.training.capturable import Capturable, Uncapturable
from hpo.training.learning import Recipe, Stream, Tally
from hpo.training.randomness import host_state, left_as_found

Record = Callable[[Callable[[], None], torch.device], Callable[[], None]]
"""Captures a function on a device, and returns what repeats it; may call it some times before."""


@dataclass(frozen=True)
class Work:
    """What a step works on.

    Attributes:
        model: In training mode.
        forward: The model, or a compiled form of it.
        optimizer: Of the model's parameters.
        stream: Where batches come from.
        recipe: The loss, and how inputs are laid out.
        tally: Counts each batch.
        cast: Sets the precision of the forward pass; may be entered again and again.
        device: Where all of these are.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: Optimizer
    stream: Stream
    recipe: Recipe
    tally: Tally
    cast: AbstractContextManager[object]
    device: torch.device

    @property
    def is_compiled(self) -> bool:
        """Whether the forward pass is."""
        return self.forward is not self.model


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
        train_once(self.work, self.work.recipe.loss_numbers)

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
        self._numbers = {
            name: torch.full((), value, device=work.device) for name, value in work.recipe.loss_numbers.items()
        }
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
            for name, number in self._numbers.items():
                number.fill_(recipe.loss_numbers[name])
            self.optimizer.take(optimizer)

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
        "loop": describe((recipe.loop.channels_last, recipe.loop.precision)),
    }


@contextmanager
def left_as_it_was(work: Work) -> Iterator[None]:
    """Steps inside leave no trace in the model, its optimizer and the random generators."""
    tensors = [*_tensors(work.model), *_state(work.optimizer)]
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        with left_as_found(work.device):
            yield
    finally:
        work.tally.clear()
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)


def train_once(work: Work, loss_numbers: Mapping[str, float | Tensor]) -> None:
    """One optimizer step on the batch within reach."""
    inputs, targets = work.stream.batch()
    with work.cast:
        outputs = work.forward(laid_out(inputs, work.recipe))
        loss = work.recipe.loss(outputs, targets, **loss_numbers)
    work.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    work.optimizer.step()
    work.tally.add(outputs.detach(), targets, loss.detach())


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
