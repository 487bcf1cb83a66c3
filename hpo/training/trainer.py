"""The loop: one trial after another in a process that is kept."""

from __future__ import annotations

import math
import os
import time
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
from hpo.training.cuda_graph import cuda_graph
from hpo.training.learning import Batch, Learning, Recipe, Stream
from hpo.training.randomness import left_as_found, process_state, restore_process, seed_process
from hpo.training.step import Record, TrainStep, Work, laid_out
from hpo.training.stepping import Stepping
from hpo.trial import Config

_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable", "decoupled_weight_decay")


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
    train_step: TrainStep | None = None
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
        _restore_optimizer(self.optimizer, state["optimizer"])
        self.stream.restore(state["stream"])
        self.epoch, self.best = state["epoch"], _Best(best["step"], best["score"], weights)


class ModelTrainer(Trainer):
    """Trains a PyTorch model, one epoch a step, on one device.

    The data stay on the device from trial to trial, where they fit, and so does a captured step; an epoch waits for
    the device once, to read the metrics. A loss that is no number is reported like any other; what PyTorch or the
    model raises passes through.

    Args:
        learning: What is trained.
        setting: Where.
        record: What captures a step; by default CUDA graphs where there is a GPU.
    """

    def __init__(self, learning: Learning, setting: Setting, *, record: Record | None = None) -> None:
        self._learning, self._setting = learning, setting
        self._device = torch.device(setting.device)
        if record is None and self._device.type == "cuda":
            record = cuda_graph
        self._prepare_process()
        self._source = learning.open(setting)
        self._train_tally, self._tally = (learning.tally(self._source.given, device=self._device) for _ in range(2))
        self._stepping = Stepping(self._device, record=record, planned_epochs=setting.planned_epochs)
        self._running: _Trial | None = None
        self._told: Mapping[str, str] = {}

    def begin(self, config: Config, *, seed: int) -> None:
        self._running = None  # its memory is free before the next trial needs it
        self._prepare_process()
        recipe = self._learning.recipe(config, self._source.given)
        seed_process(derive(seed, "weights"))
        stream = self._source.training(recipe.data, batch_size=recipe.loop.batch_size, seed=derive(seed, "batches"))
        model, optimizer = self._stepping.begin(_formatted(recipe), recipe, stream)
        self._running = _Trial(
            config=dict(config),
            recipe=recipe,
            model=model,
            optimizer=optimizer,
            stream=stream,
            validation=self._source.validation(recipe.data),
        )
        self._told = {}
        seed_process(derive(seed, "training"))

    def step(self) -> Step:
        trial, learning = self._trial, self._learning
        train_step = self._step_of(trial)
        began = time.perf_counter()
        trial.best.before_training(trial.model)
        trained = self._train(trial, train_step)
        validated = self._evaluate(trial.model, trial.recipe, trial.validation)
        trial.stream.look_ahead()
        measured = {f"train_{name}": trained[name] for name in learning.train_measures}
        metrics = _read(measured | {f"val_{name}": validated[name] for name in learning.measures})
        self._stepping.trained(epoch_s=time.perf_counter() - began)
        trial.epoch += 1
        trial.best.see(trial.epoch, self._setting.sign * metrics[self._setting.metric])
        return Step(
            metrics=metrics,
            epoch=trial.epoch,
            num_samples=trial.stream.num_samples,
            lr=float(trial.optimizer.param_groups[0]["lr"]),
            finished=trial.epoch == trial.recipe.loop.epochs,
            device_memory_mb=self._peak_memory_mb(),
            device_memory_total_mb=self._memory_mb(),
            notes=self._news(),
        )

    def snapshot(self) -> checkpoint.StateSnapshot:
        trial = self._trial
        state = {**trial.state(), "process": process_state(self._device)}
        return checkpoint.StateSnapshot(state, config=trial.config)

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
            model = _formatted(recipe).to(self._device)
            try:
                model.load_state_dict(state["best"]["model"] or state["model"])
            except (KeyError, TypeError, RuntimeError) as error:
                raise _unfit(path, error) from error
            measured = _read(self._evaluate(model, recipe, batches))
        return {f"test_{name}": measured[name] for name in self._learning.measures}

    # --- one pass over the data ---

    def _step_of(self, trial: _Trial) -> TrainStep:
        if trial.train_step is not None and self._stepping.outgrown(trial.train_step):
            trial.train_step = None  # its memory is free before the next one needs it
        if trial.train_step is None:
            trial.model.train()
            trial.train_step = self._stepping.step(
                Work(
                    model=trial.model,
                    forward=trial.model,
                    optimizer=trial.optimizer,
                    stream=trial.stream,
                    recipe=trial.recipe,
                    tally=self._train_tally,
                    cast=self._cast(trial.recipe),
                    device=self._device,
                )
            )
        return trial.train_step

    def _train(self, trial: _Trial, train_step: TrainStep) -> Mapping[str, Tensor]:
        trial.model.train()
        train_step.push()
        self._train_tally.clear()
        trial.stream.begin_epoch()
        while trial.stream.advance():
            train_step()
        return self._train_tally.result()

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, recipe: Recipe, batches: Iterable[Batch]) -> Mapping[str, Tensor]:
        loss_of, cast, tally = recipe.measured_loss, self._cast(recipe), self._tally
        model.eval()
        tally.clear()
        for inputs, targets in batches:
            with cast:
                outputs = model(laid_out(inputs, recipe))
                loss = loss_of(outputs, targets)
            tally.add(outputs, targets, loss)
        return tally.result()

    def _news(self) -> Mapping[str, str]:
        """How the trial trains, where it was not told before."""
        notes = {"data": self._source.how, **self._stepping.notes}
        news = {name: note for name, note in notes.items() if note and self._told.get(name) != note}
        self._told = notes
        return news

    # --- the device ---

    @property
    def _trial(self) -> _Trial:
        if self._running is None:
            raise RuntimeError("begin() comes before step(), save() and load()")
        return self._running

    def _prepare_process(self) -> None:
        """Set what a user's code may have changed since the last trial."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self._setting.cache_dir / "compiled"))
        torch.set_num_threads(self._setting.num_threads)
        if self._device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
            torch.cuda.reset_peak_memory_stats(self._device)

    def _cast(self, recipe: Recipe) -> AbstractContextManager[object]:
        precision = recipe.loop.precision
        if precision == "auto":
            low = self._device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            low = precision == "bfloat16"
        return torch.autocast(self._device.type, torch.bfloat16) if low else nullcontext()

    def _memory_mb(self) -> float | None:
        return torch.cuda.mem_get_info(self._device)[1] / 2**20 if self._device.type == "cuda" else None

    def _peak_memory_mb(self) -> float | None:
        # Reserved, not allocated: a captured step keeps memory that the allocator counts as free.
        return torch.cuda.max_memory_reserved(self._device) / 2**20 if self._device.type == "cuda" else None


def _formatted(recipe: Recipe) -> nn.Module:
    """A new model on the host; channels-last was a fifth faster on one CPU core, too."""
    model = recipe.model()
    if not recipe.loop.channels_last or any(parameter.dim() == 5 for parameter in model.parameters()):
        return model  # PyTorch has no such layout for three-dimensional convolutions
    return model.to(memory_format=torch.channels_last)


def _restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Take state and numbers; which of PyTorch's implementations computes is for this process to say."""
    own = optimizer.state_dict()["param_groups"]
    groups = [
        {**ours, **{name: value for name, value in theirs.items() if name not in _IMPLEMENTATION}}
        for ours, theirs in zip(own, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _read(measured: Mapping[str, Tensor]) -> dict[str, float]:
    """The values, for which the host waits once."""
    values = torch.stack([value.double() for value in measured.values()]).tolist()
    return dict(zip(measured, values, strict=True))


def _unfit(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint does not fit the model ({' '.join(str(error).split())})",
        where=str(path),
        remedy="start the trial over: the model's code has changed since",
    )
