"""How the trials of a process step: captured where that can be, compiled where that is asked for or repaid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpo.errors import ExperimentError, WorkerLost
from hpo.training.blueprint import Blueprint, difference
from hpo.training.capturable import Capturable, Uncapturable
from hpo.training.cuda_graph import free_what_graphs_left
from hpo.training.fine_tuning import FineTuning
from hpo.training.groups import keep_state, optimizer_for
from hpo.training.learning import Recipe, Stream
from hpo.training.settings import LoopSettings
from hpo.training.step import (
    CapturedStep,
    EagerStep,
    Numbers,
    Record,
    TrainStep,
    Work,
    form,
    left_as_it_was,
    train_once,
)
from hpo.training.update import Average

COMPILED_SAVES = 0.25
"""Share of an epoch that compiling saves: a captured ConvNet trained 133,000 images/s on an H200, compiled 177,000."""
COMPILING_TAKES_S = 60.0
"""Seconds that it has to save before it is worth beginning: it takes so long where nothing is in the node's cache."""

_log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """What a trial trains: the model, its optimizer, and the average of its weights where there is one."""

    model: nn.Module
    optimizer: Optimizer
    average: Average | None


class Stepping:
    """Gives each trial its step, and keeps a captured one for the next trials that it fits.

    Args:
        device: Where trials train.
        record: What captures; None where nothing can.
        no_record: Why not.
        planned_epochs: Epochs that this process is likely to train, of all its trials together, where that is known.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        record: Record | None,
        no_record: str = "there is no GPU",
        planned_epochs: float | None = None,
    ) -> None:
        self._device, self._record, self._no_record = device, record, no_record
        self._planned_epochs = planned_epochs
        self._num_epochs, self._epoch_s = 0.0, 0.0
        self._captured: CapturedStep | None = None
        self._refused: tuple[Blueprint, str] | None = None
        self._uncompilable = ""
        self._notes: dict[str, str] = {}

    @property
    def notes(self) -> Mapping[str, str]:
        """How the trial that trains now does so, and why."""
        return dict(self._notes)

    def begin(self, model: nn.Module, recipe: Recipe, stream: Stream, *, tuning: FineTuning | None = None) -> Prepared:
        """What a new trial trains, on the device, in the state that `model`, on the host, is in.

        Where the captured step fits, they are those that it works on; else it is given up, and its memory is free.

        Args:
            model: Its parameters say which of them train at first.
            recipe: Of the trial.
            stream: Of the trial.
            tuning: Which of them train at which part of the learning rate; None: all at all of it.

        Raises:
            ExperimentError: `capture` is "on", and nothing here can capture.
        """
        self._notes = {}
        if recipe.loop.capture == "on" and self._record is None:
            raise ExperimentError(
                f"'on' is asked for, but {self._no_record}",
                where="capture",
                remedy="leave it out: 'auto' captures where that can be",
            )
        fresh = self._fresh_optimizer(model, recipe, tuning)
        if self._captured is not None:
            why = self._misfit(self._captured, model, fresh, recipe, stream)
            if not why and isinstance(fresh, Capturable):
                self._captured.take(model, fresh, recipe)
                self._say("step", "captured before: it fits this trial, too")
                return Prepared(self._captured.work.model, self._captured.optimizer, self._captured.work.average)
            _log.info("the captured step does not fit: %s", why)
            self._give_up()
        if self._device.type != "cpu":
            model = model.to(self._device)
            fresh = self._fresh_optimizer(model, recipe, tuning)
        return Prepared(model, fresh, Average(model) if recipe.loop.ema else None)

    def step(self, work: Work) -> TrainStep:
        """The step of a trial whose `begin` was the last.

        Raises:
            ExperimentError: It cannot be captured, or compiled, though that is asked for.
            Exception: What the model raises.
        """
        if self._captured is not None:
            return self._captured
        loop = work.recipe.loop
        if not self._repays(loop):
            self._say("compile", f"off: {self._uncompilable}" if self._uncompilable else "off")
            return self._made(work)
        try:
            step = self._made(replace(work, forward=_compiled(work.forward), is_compiled=True))
        except (ExperimentError, WorkerLost, torch.OutOfMemoryError):
            raise
        except Exception as error:
            self._uncompilable = f"the model cannot be compiled ({_words(error)})"
            if loop.compile == "on":
                raise ExperimentError(self._uncompilable, where="compile", remedy="--set compile=off") from error
        else:
            self._say("compile", "on")
            return step
        # Not in the midst of the error, which keeps what the failed step had in memory.
        self._say("compile", f"off: {self._uncompilable}")
        return self._made(work)

    def trained(self, *, step_s: float, share: float) -> None:
        """A step, that `share` of an epoch, took so long."""
        self._num_epochs += share
        self._epoch_s = step_s / share

    def outgrown(self, step: TrainStep) -> bool:
        """Whether another step would be better by now; the captured one is then given up."""
        if step.is_compiled or not self._repays(step.work.recipe.loop):
            return False
        self._give_up()
        return True

    def make_room(self) -> None:
        """Give the captured step up: another one is needed, for which there has to be memory."""
        self._give_up()

    def _give_up(self) -> None:
        self._captured = None
        if self._device.type == "cuda":
            free_what_graphs_left()

    def refitted(self, model: nn.Module, recipe: Recipe, *, tuning: FineTuning | None, before: Optimizer) -> Optimizer:
        """An optimizer of the parameters that train from now on, with the state of those that trained `before`.

        The captured step, which is of others, is given up.
        """
        self._give_up()
        optimizer = self._fresh_optimizer(model, recipe, tuning)
        keep_state(optimizer, of=before)
        return optimizer

    def _fresh_optimizer(self, model: nn.Module, recipe: Recipe, tuning: FineTuning | None) -> Optimizer:
        if self._record is not None and recipe.loop.capture != "off":
            try:
                return optimizer_for(model, recipe.capturable, tuning)
            except Uncapturable as why:
                self._say("step", f"eager: {why}")
        return optimizer_for(model, recipe.optimizer, tuning)

    def _misfit(
        self, captured: CapturedStep, model: nn.Module, fresh: Optimizer, recipe: Recipe, stream: Stream
    ) -> str:
        if not isinstance(fresh, Capturable):
            return "this trial is not captured"
        if captured.is_compiled and recipe.loop.compile == "off":
            return "this trial is not compiled"
        if not captured.is_compiled and self._repays(recipe.loop):
            return "this trial is compiled"
        return difference(captured.form, form(model, fresh, stream, recipe))

    def _made(self, work: Work) -> TrainStep:
        why_not = self._why_not_capture(work)
        if not why_not and self._record is not None:
            try:
                self._captured = CapturedStep(work, self._record)
            except Uncapturable as why:
                why_not = str(why)
                if isinstance(work.optimizer, Capturable) and not isinstance(why.__cause__, torch.OutOfMemoryError):
                    self._refused = form(work.model, work.optimizer, work.stream, work.recipe), why_not
            else:
                self._say("step", "captured")
                return self._captured
        if work.recipe.loop.capture == "on":
            raise ExperimentError(
                f"the step cannot be captured: {why_not}", where="capture", remedy="mend it, or --set capture=auto"
            )
        self._say("step", f"eager: {why_not}")
        if work.is_compiled and work.stream.place is not None:
            with work.team.in_touch(), left_as_it_was(work):
                train_once(work, Numbers.of(work.recipe))  # compiles now, so that a failure is known as that
        return EagerStep(work)

    def _why_not_capture(self, work: Work) -> str:
        if self._record is None:
            return self._no_record
        if work.recipe.loop.capture == "off":
            return "capture is off"
        if work.stream.place is None:
            return "its batches come from the host"
        if not isinstance(work.optimizer, Capturable):
            return self._notes.get("step", "").removeprefix("eager: ")
        if self._refused is not None:
            refused, why = self._refused
            if not difference(refused, form(work.model, work.optimizer, work.stream, work.recipe)):
                return why
        return ""

    def _repays(self, loop: LoopSettings) -> bool:
        if loop.compile != "auto":
            return loop.compile == "on"
        if self._record is None or self._uncompilable or self._planned_epochs is None:
            return False  # without a captured step nobody has measured what compiling saves
        to_come = max(self._planned_epochs - self._num_epochs, 0)
        return to_come * self._epoch_s * COMPILED_SAVES > COMPILING_TAKES_S

    def _say(self, what: str, how: str) -> None:
        self._notes[what] = how
        _log.info("%s: %s", what, how)


def _compiled(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()  # or the ninth architecture of a process would not be compiled any more, without a word
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    return compiled


def _words(error: Any) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:197]}..."
