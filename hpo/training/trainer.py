"""The loop: one trial after another in a process that is kept."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpo.errors import CheckpointError
from hpo.protocols import Setting, Step, Trainer
from hpo.seeds import derive
from hpo.training import checkpoint
from hpo.training.cuda_graph import cuda_graph
from hpo.training.distributed import ALONE, join
from hpo.training.fine_tuning import FineTuning
from hpo.training.learning import Batch, Learning, Recipe, Stream
from hpo.training.learning_rate import LearningRate
from hpo.training.randomness import left_as_found, process_state, restore_process, seed_process
from hpo.training.running import Running
from hpo.training.start_weights import load_weights
from hpo.training.step import Record, TrainStep, Work, laid_out
from hpo.training.stepping import Stepping
from hpo.training.watch import ActivationWatch, UpdateWatch, over_pass
from hpo.trial import Config

_log = logging.getLogger(__name__)


class ModelTrainer(Trainer):
    """Trains a PyTorch model, one epoch a step, on one device, alone or together with other processes.

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
        self._team = ALONE if setting.group is None else join(setting.group, device=self._device)
        self._stepping = Stepping(
            self._device,
            record=record if self._team.is_alone else None,
            no_record="there is no GPU" if self._team.is_alone else "several processes train the trial",
            planned_epochs=setting.planned_epochs,
        )
        self._running: Running | None = None
        self._measured_at_once: int | None = None
        self._told: Mapping[str, str] = {}

    def begin(self, config: Config, *, seed: int) -> None:
        self._running = None  # its memory is free before the next trial needs it
        self._measured_at_once = None
        self._prepare_process()
        recipe = self._learning.recipe(config, self._source.given)
        self._team.check_batch_size(recipe.loop.batch_size)
        seed_process(derive(seed, "weights"))
        stream = self._source.training(recipe.data, batch_size=recipe.loop.batch_size, seed=derive(seed, "batches"))
        new = self._team.prepared(_formatted(recipe), sync_batch_norm=recipe.loop.sync_batch_norm, device=self._device)
        tuning = None if recipe.fine_tuning.is_off else FineTuning(new, recipe.fine_tuning)
        if tuning is not None:
            tuning.prepare(new, epoch=0)
        model, optimizer, average = self._stepping.begin(new, recipe, stream, tuning=tuning)
        self._running = Running(
            config=dict(config),
            seed=seed,
            recipe=recipe,
            model=model,
            optimizer=optimizer,
            average=average,
            learning_rate=self._learning_rate(recipe, stream, seed=derive(seed, "lr")),
            stream=stream,
            validation=self._source.validation(recipe.data),
            tuning=tuning,
            activations=ActivationWatch.asked_for(model, recipe.loop),
        )
        self._told = {}
        seed_process(derive(seed, "training"))

    def _learning_rate(self, recipe: Recipe, stream: Stream, *, seed: int) -> LearningRate:
        limits = [limit for limit in (recipe.loop.epochs, self._setting.max_steps) if limit is not None]
        return LearningRate(
            recipe.schedule("max" if self._setting.sign > 0 else "min"),
            recipe.loop,
            epochs=min(limits, default=None),
            num_batches=-(-stream.num_samples // max(min(recipe.loop.batch_size, stream.num_samples), 1)),
            seed=seed,
        )

    def step(self) -> Step:
        with self._team.in_touch():
            return self._step(self._trial)

    def _step(self, trial: Running) -> Step:
        learning = self._learning
        if not self._team.is_alone:  # so that no process has a state of its own to be kept
            seed_process(derive(trial.seed, "training", trial.epoch, self._team.share.rank))
        if trial.tuning is not None and trial.tuning.thaws(trial.epoch):
            self._refit(trial, trial.tuning, epoch=trial.epoch)
        self._step_of(trial)  # what it takes to make it is not the epoch's
        began = time.perf_counter()
        trial.best.before_training(trial.shown)
        trained = self._train(trial)
        self._team.same_buffers(trial.model)
        own = self._team.dealt(trial.validation, is_share=self._source.is_shared)
        with nullcontext() if trial.average is None else trial.average.shown(), over_pass(trial.activations):
            validated = self._evaluate(trial.model, trial.recipe, own)
        trial.stream.look_ahead()
        measured = {f"train_{name}": trained[name] for name in learning.train_measures}
        measured |= {f"val_{name}": validated[name] for name in learning.measures}
        metrics = _read(measured | trial.watched(self._team, trained, validated))
        self._stepping.trained(epoch_s=time.perf_counter() - began)
        trial.epoch += 1
        trial.best.see(trial.epoch, self._setting.sign * metrics[self._setting.metric])
        trial.learning_rate.measured(metrics[self._setting.metric])
        _log.info("epoch %d: %s, lr %.4g", trial.epoch, _in_words(metrics), trial.lr)
        return Step(
            metrics=metrics,
            epoch=trial.epoch,
            num_samples=trial.stream.num_samples,
            lr=trial.lr,
            finished=trial.recipe.loop.epochs is not None and trial.epoch >= trial.recipe.loop.epochs,
            device_memory_mb=self._peak_memory_mb(),
            device_memory_total_mb=self._memory_mb(),
            notes=self._news(),
        )

    def snapshot(self) -> checkpoint.StateSnapshot:
        trial = self._trial
        state = {**trial.state(), "process": process_state(self._device)}
        return checkpoint.StateSnapshot(state, config=trial.config)

    def load(self, path: Path) -> None:
        state = checkpoint.read(path)
        checkpoint.check_same(self._trial.config, state["config"], path=path)
        self._restore(state, path, own_numbers=False)

    def take_over(self, path: Path) -> None:
        self._restore(checkpoint.read(path), path, own_numbers=True)

    def start_from(self, weights: Path | str) -> str:
        trial = self._trial
        report, digest = load_weights(weights, trial.model, recipe=trial.recipe)
        if trial.average is not None:
            trial.average.begin()
        trial.notes["start"] = report.summary
        return digest

    def _restore(self, state: Mapping[str, Any], path: Path, *, own_numbers: bool) -> None:
        trial = self._trial
        try:
            self._restore_into(trial, state, own_numbers=own_numbers)
            if self._team.is_alone:
                restore_process(state["process"], self._device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _unfit(path, error) from error

    def _restore_into(self, trial: Running, state: Mapping[str, Any], *, own_numbers: bool) -> None:
        """Restore by an optimizer of the parameters that the saved one had, which may be others than the trial's."""
        epoch = max(state["epoch"] - 1, 0)  # what thaws after that thaws when the next epoch begins
        theirs = trial.tuning
        if own_numbers and (trial.tuning is not None or not self._recipe(state["config"]).fine_tuning.is_off):
            theirs = self._tuning(state["config"])
        if theirs is not None and (theirs is not trial.tuning or theirs.frozen(epoch) != theirs.frozen(0)):
            self._refit(trial, theirs, epoch=epoch)
        trial.restore(state, self._device, own_numbers=own_numbers)
        if theirs is not trial.tuning:
            self._refit(trial, trial.tuning or self._tuning(trial.config), epoch=epoch)

    def _refit(self, trial: Running, tuning: FineTuning, *, epoch: int) -> None:
        """Have the parameters train that do in that epoch, by an optimizer and a step of their own."""
        tuning.prepare(trial.model, epoch=epoch)
        trial.train_step = None  # its memory is free before the next one needs it
        trial.optimizer = self._stepping.refitted(trial.model, trial.recipe, tuning=tuning, before=trial.optimizer)

    def _recipe(self, config: Config) -> Recipe:
        return self._learning.recipe(config, self._source.given)

    def _tuning(self, config: Config) -> FineTuning:
        """Which parameters train when, of another configuration of the same architecture."""
        recipe = self._recipe(config)
        with left_as_found(self._device):
            return FineTuning(recipe.model(), recipe.fine_tuning)

    def test(self, path: Path) -> Mapping[str, float]:
        state = checkpoint.read(path)
        recipe = self._learning.recipe(state["config"], self._source.given)
        batches = self._source.testing(recipe.data)
        with left_as_found(self._device):
            model = _formatted(recipe).to(self._device)
            try:
                model.load_state_dict(checkpoint.best_weights(state))
            except (KeyError, TypeError, RuntimeError) as error:
                raise _unfit(path, error) from error
            measured = _read(self._evaluate(model, recipe, batches))
        return {f"test_{name}": measured[name] for name in self._learning.measures}

    # --- one pass over the data ---

    def _step_of(self, trial: Running) -> TrainStep:
        if trial.train_step is not None and self._stepping.outgrown(trial.train_step):
            trial.train_step = None  # its memory is free before the next one needs it
        if trial.train_step is None:
            trial.to_training()
            unused = trial.recipe.loop.find_unused_parameters
            distributed = self._team.around(trial.model, find_unused_parameters=unused)
            trial.train_step = self._stepping.step(
                Work(
                    model=trial.model,
                    forward=trial.model if distributed is None else distributed,
                    optimizer=trial.optimizer,
                    stream=trial.stream,
                    recipe=trial.recipe,
                    tally=self._train_tally,
                    cast=self._cast(trial.recipe),
                    device=self._device,
                    team=self._team,
                    distributed=distributed,
                    average=trial.average,
                    watch=UpdateWatch.asked_for(trial.model, trial.recipe.loop),
                )
            )
        return trial.train_step

    def _train_batch(self, trial: Running) -> None:
        """One step on the batch within reach, in as many parts as the memory asks for."""
        while True:
            try:
                self._step_of(trial)()
            except torch.OutOfMemoryError:
                if not self._team.is_alone or not trial.halve():
                    raise
            else:
                return
            # Not in the midst of the error, which keeps what the failed step had in memory.
            self._stepping.make_room()

    def _train(self, trial: Running) -> Mapping[str, Tensor]:
        trial.to_training()
        self._train_tally.clear()
        trial.stream.begin_epoch()
        if (watch := self._step_of(trial).work.watch) is not None:
            watch.clear()
        rates, number = trial.rates(), 0
        while trial.stream.advance():
            if next(rates, False):
                self._step_of(trial).push()
            self._train_batch(trial)
            number += 1
            if trial.recipe.loop.print_freq and number % trial.recipe.loop.print_freq == 0:
                self._say_batch(trial, number)
        self._team.add_up(self._train_tally.sums())
        return self._train_tally.result()

    def _say_batch(self, trial: Running, number: int) -> None:
        """Tell the means over the epoch so far; where several processes train, those of this one's samples."""
        measured = self._train_tally.result()
        means = _read({f"train_{name}": measured[name] for name in self._learning.train_measures})
        of = trial.num_batches
        _log.info("epoch %d, batch %d of %d: %s, lr %.4g", trial.epoch + 1, number, of, _in_words(means), trial.lr)

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, recipe: Recipe, batches: Iterable[Batch]) -> Mapping[str, Tensor]:
        self._tally.clear()
        model.eval()
        for inputs, targets in batches:
            measured = 0
            while measured < len(targets):
                part = slice(measured, None if self._measured_at_once is None else measured + self._measured_at_once)
                if self._measure(model, recipe, (inputs[part], targets[part])):
                    measured += len(targets[part])
        self._team.add_up(self._tally.sums())
        return self._tally.result()

    def _measure(self, model: nn.Module, recipe: Recipe, batch: Batch) -> bool:
        """Whether there was room for so many samples; else fewer are measured at once from now on."""
        inputs, targets = batch
        try:
            with self._cast(recipe):
                outputs = model(laid_out(inputs, recipe))
                loss = recipe.measured_loss(outputs, targets)
        except torch.OutOfMemoryError:
            if not self._team.is_alone or len(targets) == 1:
                raise
            self._measured_at_once = (len(targets) + 1) // 2
            return False
        self._tally.add(outputs, targets, loss)
        return True

    def _news(self) -> Mapping[str, str]:
        """How the trial trains, where it was not told before."""
        notes = {"data": self._source.how, **self._stepping.notes, **self._trial.notes}
        news = {name: note for name, note in notes.items() if note and self._told.get(name) != note}
        self._told = notes
        return news

    # --- the device ---

    @property
    def _trial(self) -> Running:
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


def _read(measured: Mapping[str, Tensor]) -> dict[str, float]:
    """The values, for which the host waits once."""
    values = torch.stack([value.double() for value in measured.values()]).tolist()
    return dict(zip(measured, values, strict=True))


def _in_words(metrics: Mapping[str, float]) -> str:
    """Those of the whole model: names of layers have a dot before them."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "." not in name)


def _unfit(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint does not fit the model ({' '.join(str(error).split())})",
        where=str(path),
        remedy="start the trial over: the model's code has changed since",
    )
