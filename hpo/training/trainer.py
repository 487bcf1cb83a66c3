"""The loop: one trial after another in a process that is kept."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
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
from hpo.training.learning import Learning, Recipe, Stream
from hpo.training.learning_rate import LearningRate
from hpo.training.measuring import HeldOut, Measured, Measuring
from hpo.training.randomness import left_as_found, process_state, restore_process, seed_process
from hpo.training.running import Best, Running
from hpo.training.settings import ChunkSettings
from hpo.training.start_weights import load_weights
from hpo.training.step import Record, TrainStep, Work, cast_of
from hpo.training.stepping import Stepping
from hpo.training.watch import ActivationWatch, UpdateWatch, over_pass
from hpo.trial import Config

_log = logging.getLogger(__name__)


class ModelTrainer(Trainer):
    """Trains a PyTorch model on one device, alone or together with other processes.

    A step is an epoch, or, with `val_check_interval`, so many batches of one. Of data that grow, each chunk goes on
    with the state that the one before has left.

    The data stay on the device from trial to trial, where they fit, and so does a captured step; a step of the trial
    waits for the device once, to read the metrics. A loss that is no number is reported like any other; what PyTorch or
    the model raises passes through.

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
        self._train_tally, tally = (learning.tally(self._source.given, device=self._device) for _ in range(2))
        self._team = ALONE if setting.group is None else join(setting.group, device=self._device)
        self._measuring = Measuring(tally, device=self._device, team=self._team)
        self._stepping = Stepping(
            self._device,
            record=record if self._team.is_alone else None,
            no_record="there is no GPU" if self._team.is_alone else "several processes train the trial",
            planned_epochs=setting.planned_epochs,
        )
        self._running: Running | None = None
        self._told: Mapping[str, str] = {}

    def begin(self, config: Config, *, seed: int) -> None:
        self._running = None  # its memory is free before the next trial needs it
        self._measuring.begin()
        self._prepare_process()
        recipe = self._learning.recipe(config, self._source.given)
        self._team.check_batch_size(recipe.loop.batch_size)
        seed_process(derive(seed, "weights"))
        stream = self._source.training(recipe.data, batch_size=recipe.loop.batch_size, seed=derive(seed, "batches"))
        new = self._team.prepared(_formatted(recipe), sync_batch_norm=recipe.loop.sync_batch_norm, device=self._device)
        tuning = FineTuning(new, recipe.fine_tuning, recipe.chunks) if recipe.tunes else None
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
            held_out=HeldOut(self._source, recipe),
            tuning=tuning,
            activations=ActivationWatch.asked_for(model, recipe.loop),
        )
        self._told = {}
        seed_process(derive(seed, "training"))

    def _learning_rate(self, recipe: Recipe, stream: Stream, *, seed: int) -> LearningRate:
        limits = [recipe.loop.epochs, stream.num_epochs, self._setting.max_epochs]
        if recipe.loop.val_check_interval is None:
            limits.append(self._setting.max_steps)
        return LearningRate(
            recipe.schedule("max" if self._setting.sign > 0 else "min"),
            recipe.loop,
            epochs=min((limit for limit in limits if limit is not None), default=None),
            chunks=recipe.chunks,
            seed=seed,
        )

    def step(self) -> Step:
        with self._team.in_touch():
            return self._step(self._trial)

    def _step(self, trial: Running) -> Step:
        learning = self._learning
        first = trial.stream.position
        if not self._team.is_alone:  # so that no process has a state of its own to be kept
            place = (trial.epoch, *(("batch", first) if first else ()))
            seed_process(derive(trial.seed, "training", *place, self._team.share.rank))
        if trial.tuning is not None and not first and trial.tuning.thaws(trial.epoch):
            self._refit(trial, trial.tuning, epoch=trial.epoch)
        self._begin_epoch(trial)
        chunk, share = trial.stream.chunk, trial.share_of_epoch
        num_samples = trial.num_samples(first, trial.until)
        self._step_of(trial)  # what it takes to make it is not the epoch's
        began = time.perf_counter()
        trial.best.before_training(trial.shown)
        trained = self._train(trial)
        self._team.same_buffers(trial.model)
        validated = self._validate(trial, chunk)
        if not trial.is_under_way:
            trial.stream.look_ahead()
        measured = {f"train_{name}": trained[name] for name in learning.train_measures}
        for part, values in validated.items():
            measured |= {f"val_{part}_{name}" if part else f"val_{name}": values[name] for name in learning.measures}
        metrics = _read(measured | trial.watched(self._team, trained, validated[""]))
        self._stepping.trained(step_s=time.perf_counter() - began, share=share)
        epoch = trial.epoch + 1
        trial.epoch += not trial.is_under_way
        trial.num_steps += 1
        trial.best.see(trial.num_steps, self._setting.sign * metrics[self._setting.metric], chunk)
        trial.learning_rate.measured(metrics[self._setting.metric])
        _log.info("epoch %d: %s, lr %.4g", epoch, _in_words(metrics), trial.lr)
        return Step(
            metrics=metrics,
            epoch=epoch,
            num_samples=num_samples,
            lr=trial.lr,
            chunk=chunk,
            num_epochs=trial.epoch,
            num_chunks=trial.num_chunks,
            finished=trial.last_epoch is not None and trial.epoch >= trial.last_epoch,
            device_memory_mb=self._peak_memory_mb(),
            device_memory_total_mb=self._memory_mb(),
            notes=self._news(),
        )

    def _begin_epoch(self, trial: Running) -> None:
        """Begin the next epoch, where none is under way; a step that reads its batches elsewhere is given up."""
        trial.begin_epoch()
        if trial.train_step is not None and trial.train_step.work.place != trial.stream.place:
            trial.train_step = None  # its memory is free before the next one needs it
            self._stepping.make_room()

    def _validate(self, trial: Running, chunk: int | None) -> Mapping[str, Measured]:
        """The measures of what is held out, by part, and of all of it by the name ""."""
        parts = trial.held_out.parts(chunk)
        own = {name: self._team.dealt(part, is_share=self._source.is_shared) for name, part in parts.items()}
        with nullcontext() if trial.average is None else trial.average.shown(), over_pass(trial.activations):
            return self._measuring.of_parts(trial.model, trial.recipe, own)

    def snapshot(self) -> checkpoint.StateSnapshot:
        trial = self._trial
        preprocessing = self._source.preprocessing(trial.recipe.data)
        state = {**trial.state(), "process": process_state(self._device), "preprocessing": preprocessing}
        return checkpoint.StateSnapshot(state, config=trial.config)

    def load(self, path: Path) -> None:
        state = checkpoint.read(path)
        checkpoint.check_same(self._trial.config, state["config"], path=path)
        self._restore(state, path, own_numbers=False)

    def take_over(self, path: Path) -> None:
        self._restore(checkpoint.read(path), path, own_numbers=True)

    def forget_best(self) -> None:
        self._trial.best = Best()

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
            if own_numbers:
                state = _in_own_epochs(state, theirs=self._recipe(state["config"]).chunks, own=trial.recipe.chunks)
            self._restore_into(trial, state, own_numbers=own_numbers)
            if self._team.is_alone:
                restore_process(state["process"], self._device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _unfit(path, error) from error

    def _restore_into(self, trial: Running, state: Mapping[str, Any], *, own_numbers: bool) -> None:
        """Restore by an optimizer of the parameters that the saved one had, which may be others than the trial's."""
        # What thaws after that thaws when the next epoch begins.
        epoch = state["epoch"] if state.get("position") else max(state["epoch"] - 1, 0)
        theirs = trial.tuning
        if own_numbers and (trial.tuning is not None or self._recipe(state["config"]).tunes):
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
            return FineTuning(recipe.model(), recipe.fine_tuning, recipe.chunks)

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
            measured = _read(self._measuring.of(model, recipe, batches))
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
                    cast=cast_of(trial.recipe, self._device),
                    device=self._device,
                    place=trial.stream.place,
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
        if (watch := self._step_of(trial).work.watch) is not None:
            watch.clear()
        every, until = trial.recipe.loop.print_freq, trial.until
        rates = trial.rates(until)
        while trial.advance(until):
            if next(rates, False):
                self._step_of(trial).push()
            self._train_batch(trial)
            if every and trial.stream.position % every == 0:
                self._say_batch(trial)
        self._team.add_up(self._train_tally.sums())
        return self._train_tally.result()

    def _say_batch(self, trial: Running) -> None:
        """Tell the means over the step so far; where several processes train, those of this one's samples."""
        measured = self._train_tally.result()
        means = _read({f"train_{name}": measured[name] for name in self._learning.train_measures})
        at = (trial.epoch + 1, trial.stream.position, trial.num_batches)
        _log.info("epoch %d, batch %d of %d: %s, lr %.4g", *at, _in_words(means), trial.lr)

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


def _in_own_epochs(
    state: Mapping[str, Any], *, theirs: ChunkSettings | None, own: ChunkSettings | None
) -> Mapping[str, Any]:
    """The state of a trial that stays for longer or shorter with a chunk, at the same place within the data.

    What it has had of a chunk counts up to all that this trial gives to one.
    """
    if theirs is None or own is None or theirs.epochs_per_chunk == own.epochs_per_chunk:
        return state
    chunk, within = divmod(state["epoch"], theirs.epochs_per_chunk)
    epoch = chunk * own.epochs_per_chunk + min(within, own.epochs_per_chunk)
    place = {"epoch": epoch, "position": state["position"] if within < own.epochs_per_chunk else 0}
    return {**state, **place, "stream": {**state["stream"], **place}}


def _unfit(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint does not fit the model ({' '.join(str(error).split())})",
        where=str(path),
        remedy="start the trial over: the model's code has changed since",
    )
