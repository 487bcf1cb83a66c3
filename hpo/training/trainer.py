"""The loop: one trial after another in a process that is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpo.errors import CheckpointError
from hpo.protocols import Setting, Step, Trainer
from hpo.seeds import derive
from hpo.training import checkpoint
from hpo.training.learning import Batch, Learning, Recipe, Stream, Tally
from hpo.training.randomness import left_as_found, process_state, restore_process, seed_process
from hpo.trial import Config


@dataclass
class _Best:
    """The best step so far. `weights` is None while the model still holds them: most trials end on their best."""

    step: int = 0
    score: float | None = None
    weights: dict[str, Tensor] | None = None

    def see(self, step: int, score: float) -> None:
        if math.isfinite(score) and (self.score is None or score > self.score):
            self.step, self.score, self.weights = step, score, None

    def before_training(self, model: nn.Module) -> None:
        """Copy the weights out of a model that is about to leave them."""
        if self.score is not None and self.weights is None:
            self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}


@dataclass
class _Trial:
    """All that belongs to one trial and not to the process."""

    config: Config
    recipe: Recipe
    model: nn.Module
    optimizer: Optimizer
    stream: Stream
    validation: Iterable[Batch]
    epoch: int = 0
    best: _Best = field(default_factory=_Best)

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state(),
            "best": {"step": self.best.step, "score": self.best.score, "model": self.best.weights},
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        best, weights = state["best"], state["best"]["model"]
        if weights is not None:
            weights = {name: value.to(device) for name, value in weights.items()}
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stream.restore(state["stream"])
        self.epoch, self.best = state["epoch"], _Best(best["step"], best["score"], weights)


class ModelTrainer(Trainer):
    """Trains a PyTorch model, one epoch a step, on one device.

    The data stay on the device from trial to trial; each pass over them waits for the device once, to read the
    metrics. A loss that is no number is reported like any other; what PyTorch or the model raises passes through.

    Args:
        learning: What is trained.
        setting: Where.
    """

    def __init__(self, learning: Learning, setting: Setting) -> None:
        self._learning, self._setting = learning, setting
        self._device = torch.device(setting.device)
        self._prepare_process()
        self._source = learning.open(setting)
        self._running: _Trial | None = None

    def begin(self, config: Config, *, seed: int) -> None:
        self._running = None  # its memory is free before the next trial needs it
        self._prepare_process()
        recipe = self._learning.recipe(config, self._source.given)
        seed_process(derive(seed, "weights"))
        model = self._placed(recipe)
        optimizer = recipe.optimizer([p for p in model.parameters() if p.requires_grad])
        self._running = _Trial(
            config=dict(config),
            recipe=recipe,
            model=model,
            optimizer=optimizer,
            stream=self._source.training(recipe.data, batch_size=recipe.loop.batch_size, seed=derive(seed, "batches")),
            validation=self._source.validation(recipe.data),
        )
        seed_process(derive(seed, "training"))

    def step(self) -> Step:
        trial, learning = self._trial, self._learning
        trial.best.before_training(trial.model)
        trained = self._train(trial).result()
        validated = self._evaluate(trial.model, trial.recipe, trial.validation).result()
        trial.epoch += 1
        metrics = {f"train_{name}": trained[name] for name in learning.train_measures}
        metrics |= {f"val_{name}": validated[name] for name in learning.measures}
        trial.best.see(trial.epoch, self._setting.sign * metrics[self._setting.metric])
        return Step(
            metrics=metrics,
            epoch=trial.epoch,
            num_samples=trial.stream.num_samples,
            lr=float(trial.optimizer.param_groups[0]["lr"]),
            finished=trial.epoch == trial.recipe.loop.epochs,
            device_memory_mb=self._peak_memory_mb(),
        )

    def save(self, path: Path) -> int:
        trial = self._trial
        state = {**trial.state(), "process": process_state(self._device)}
        return checkpoint.write(path, state, config=trial.config)

    def load(self, path: Path) -> None:
        trial = self._trial
        state = checkpoint.read(path)
        checkpoint.check_same(trial.config, state["config"], path=path)
        try:
            trial.restore(state, self._device)
            restore_process(state["process"], self._device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _unfit(path, error) from error

    def test(self, path: Path) -> Mapping[str, float]:
        state = checkpoint.read(path)
        recipe = self._learning.recipe(state["config"], self._source.given)
        batches = self._source.testing()
        with left_as_found(self._device):
            model = self._placed(recipe)
            try:
                model.load_state_dict(state["best"]["model"] or state["model"])
            except (KeyError, TypeError, RuntimeError) as error:
                raise _unfit(path, error) from error
            measured = self._evaluate(model, recipe, batches).result()
        return {f"test_{name}": measured[name] for name in self._learning.measures}

    # --- one pass over the data ---

    def _train(self, trial: _Trial) -> Tally:
        model, optimizer, recipe = trial.model, trial.optimizer, trial.recipe
        loss_of, cast, tally = recipe.loss, self._cast(recipe), self._tally()
        model.train()
        for inputs, targets in trial.stream:
            with cast:
                outputs = model(_laid_out(inputs, recipe))
                loss = loss_of(outputs, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tally.add(outputs.detach(), targets, loss.detach())
        return tally

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, recipe: Recipe, batches: Iterable[Batch]) -> Tally:
        loss_of, cast, tally = recipe.measured_loss, self._cast(recipe), self._tally()
        model.eval()
        for inputs, targets in batches:
            with cast:
                outputs = model(_laid_out(inputs, recipe))
                loss = loss_of(outputs, targets)
            tally.add(outputs, targets, loss)
        return tally

    def _tally(self) -> Tally:
        return self._learning.tally(self._source.given, device=self._device)

    # --- the device ---

    @property
    def _trial(self) -> _Trial:
        if self._running is None:
            raise RuntimeError("begin() comes before step(), save() and load()")
        return self._running

    def _prepare_process(self) -> None:
        """Set what a user's code may have changed since the last trial."""
        torch.set_num_threads(self._setting.num_threads)
        if self._device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
            torch.cuda.reset_peak_memory_stats(self._device)

    def _placed(self, recipe: Recipe) -> nn.Module:
        """A new model on the device; channels-last was a fifth faster on one CPU core, too."""
        model = recipe.model().to(self._device)
        if not recipe.loop.channels_last or any(parameter.dim() == 5 for parameter in model.parameters()):
            return model  # PyTorch has no such layout for three-dimensional convolutions
        return model.to(memory_format=torch.channels_last)

    def _cast(self, recipe: Recipe) -> AbstractContextManager[object]:
        precision = recipe.loop.precision
        if precision == "auto":
            low = self._device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            low = precision == "bfloat16"
        return torch.autocast(self._device.type, torch.bfloat16) if low else nullcontext()

    def _peak_memory_mb(self) -> float | None:
        return torch.cuda.max_memory_allocated(self._device) / 2**20 if self._device.type == "cuda" else None


def _laid_out(inputs: Tensor, recipe: Recipe) -> Tensor:
    if recipe.loop.channels_last and inputs.dim() == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def _unfit(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint does not fit the model ({' '.join(str(error).split())})",
        where=str(path),
        remedy="start the trial over: the model's code has changed since",
    )
