"""The loop on data that grow: chunks one after the other, each a fine-tune of the last state."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from hpo.errors import ExperimentError
from hpo.protocols import Dataset, Step, Trainer
from hpo.training import Classification
from hpo.training.data import Digits
from hpo.training.models import ConvNet
from hpo.training.trainer import ModelTrainer
from tests.training.contract import TrainerContract, same, saved
from tests.training.fresh import Order, exact, in_new_process, task_of, trainer_of
from tests.training.growing import HELD_OUT, SIZES, GrowingFit
from tests.training.recorders import called_again
from tests.training.test_trainer_fine_tuning import Deep

HERE = "tests.training.test_trainer_growing"
FAST = {"lr": 0.1, "batch_size": 8, "optimizer": "sgd"}


def growing() -> GrowingFit:
    return GrowingFit()


def deep() -> GrowingFit:
    return GrowingFit(model=Deep)


class TestGrowing(TrainerContract):
    """A chunk has two epochs, and another part of the model trains from the second chunk on."""

    task = f"{HERE}:deep"
    config: ClassVar = {"lr": 0.05, "batch_size": 8, "epochs_per_chunk": 2, "chunk_lr_decay": 0.5, "chunk_freeze": 1}
    other_config: ClassVar = {"lr": 0.5, "batch_size": 4, "optimizer": "sgd"}
    metric = "val_loss"
    interval = 2

    def test_the_test_part_is_measured_with_the_best_weights(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        trainer.step()
        trainer.save(tmp_path / "a.pt")
        assert set(trainer.test(tmp_path / "a.pt")) == {"test_loss"}

    def test_goes_on_across_chunks_in_a_new_trainer(self, trainer: Trainer, tmp_path: Path) -> None:
        config = {**self.config, "val_check_interval": 2}
        trainer.begin(config, seed=self.seed)
        steps = [trainer.step()]
        while not steps[-1].finished:
            trainer.save(tmp_path / f"{len(steps)}.pt")
            steps.append(trainer.step())
        trainer.save(tmp_path / "last.pt")
        other = trainer_of(self.task, metric=self.metric, cache_dir=str(tmp_path))
        for before in (3, 4, len(steps) - 1):  # within the second epoch; between chunks; in the last epoch
            other.begin(config, seed=self.seed)
            other.load(tmp_path / f"{before}.pt")
            assert [exact(other.step()) for _ in steps[before:]] == list(map(exact, steps[before:]))
            other.save(tmp_path / "again.pt")
            assert same(saved(tmp_path / "last.pt"), saved(tmp_path / "again.pt"))


def digits() -> Classification:
    """Two chunks of five digits each, the second with some of the first."""
    return Classification(
        model=partial(ConvNet, filters=(4, 8)), data=Digits().in_chunks(2, by="label", mode="replace", replay=0.5)
    )


def test_images_go_on_from_within_an_epoch_into_the_next_chunk_in_a_new_process(tmp_path: Path) -> None:
    config = {
        "lr": 3e-3,
        "batch_size": 32,
        "dropout": 0.2,
        "augment": ("crop", "flip"),
        "train_samples": 200,
        "val_check_interval": 2,
        "epochs_per_chunk": 2,
        "lr_schedule": "cosine",
        "epochs_warmup": 0.5,
        "chunk_freeze": 1,
    }
    trainer = trainer_of(f"{HERE}:digits", metric="val_accuracy", cache_dir=str(tmp_path))
    trainer.begin(config, seed=1)
    steps = []
    while not (steps and steps[-1].finished):
        steps.append(trainer.step())
        trainer.save(tmp_path / f"{len(steps)}.pt")
    places = [(step.chunk, step.epoch, step.num_epochs) for step in steps]
    before = places.index((1, 2, 1)) + 1  # in the middle of the last epoch of the first chunk
    order = Order(
        f"{HERE}:digits",
        config,
        1,
        steps=len(steps) - before,
        metric="val_accuracy",
        cache_dir=str(tmp_path),
        save=str(tmp_path / "new.pt"),
        load=str(tmp_path / f"{before}.pt"),
    )
    assert in_new_process(order) == list(map(exact, steps[before:]))
    assert same(saved(tmp_path / f"{len(steps)}.pt"), saved(tmp_path / "new.pt"))
    assert {step.chunk for step in steps[before:]} == {1, 2}


@pytest.fixture
def line(tmp_path: Path) -> Trainer:
    return trainer_of(f"{HERE}:growing", metric="val_loss", cache_dir=str(tmp_path))


@pytest.fixture
def net(tmp_path: Path) -> Trainer:
    return trainer_of(f"{HERE}:deep", metric="val_loss", cache_dir=str(tmp_path))


def all_steps(trainer: Trainer, config: dict[str, Any], *, seed: int = 0) -> list[Step]:
    trainer.begin(config, seed=seed)
    steps = [trainer.step()]
    while not steps[-1].finished:
        steps.append(trainer.step())
    return steps


def test_an_epoch_is_of_one_chunk_and_the_last_one_finishes_the_trial(line: Trainer) -> None:
    steps = all_steps(line, {**FAST, "epochs_per_chunk": 2})
    assert [step.chunk for step in steps] == [1, 1, 2, 2, 3, 3]
    assert [step.epoch for step in steps] == [step.num_epochs for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.num_chunks for step in steps] == [0, 1, 1, 2, 2, 3]
    assert [step.num_samples for step in steps] == [24, 24, 16, 16, 16, 16]  # whole batches of 8


def test_steps_within_an_epoch_say_what_is_complete(line: Trainer) -> None:
    steps = all_steps(line, {**FAST, "val_check_interval": 2})
    told = [(step.epoch, step.num_epochs, step.chunk, step.num_chunks, step.num_samples) for step in steps]
    assert told == [(1, 0, 1, 0, 16), (1, 1, 1, 1, 8), (2, 2, 2, 2, 16), (3, 3, 3, 3, 16)]


def test_what_is_held_out_is_measured_in_parts(line: Trainer) -> None:
    first, second, third = (step.metrics for step in all_steps(line, FAST))
    assert set(first) == {"train_loss", "val_loss", "val_new_loss"}
    assert first["val_loss"] == first["val_new_loss"]
    for num_old, metrics in ((1, second), (2, third)):
        assert set(metrics) == {"train_loss", "val_loss", "val_new_loss", "val_old_loss"}
        num = [num_old * HELD_OUT, HELD_OUT]
        mean = (num[0] * metrics["val_old_loss"] + num[1] * metrics["val_new_loss"]) / sum(num)
        assert metrics["val_loss"] == pytest.approx(mean)
    # Slopes 3 and -1: the weights leave the old chunk behind as they come to the new one.
    slow, fast = (all_steps(line, {**FAST, "lr": lr, "epochs_per_chunk": 4})[7].metrics for lr in (1e-9, 0.3))
    assert fast["val_new_loss"] < slow["val_new_loss"]
    assert fast["val_old_loss"] > fast["val_new_loss"]


def test_the_rate_falls_with_each_chunk_and_begins_anew_with_it(line: Trainer) -> None:
    config = {
        **FAST,
        "epochs_per_chunk": 2,
        "chunk_lr_decay": 0.5,
        "lr_schedule": "polynomial",
        "schedule_every": "epoch",
    }
    anew = [step.lr for step in all_steps(line, config)]
    assert anew == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025, 0.0125])
    on = [step.lr for step in all_steps(line, {**config, "chunk_rewarm": False})]
    assert on == pytest.approx([0.1 * (1 - epoch / 6) * 0.5 ** (epoch // 2) for epoch in range(6)])


def test_leading_blocks_are_frozen_from_the_second_chunk_on(net: Trainer, tmp_path: Path) -> None:
    net.begin({**FAST, "epochs_per_chunk": 2, "chunk_freeze": (2, 1)}, seed=0)
    weights = []
    for number in range(7):
        net.save(tmp_path / f"{number}.pt")
        weights.append(saved(tmp_path / f"{number}.pt")["model"])
        if number < 6:
            net.step()

    def moved(name: str) -> list[bool]:
        return [not torch.equal(one[name], other[name]) for one, other in pairwise(weights)]

    assert moved("first.weight") == [True, True, False, False, False, False]
    assert moved("second.weight") == [True, True, False, False, True, True]
    assert moved("norm.running_mean") == [True, True, False, False, True, True]
    assert moved("head.weight") == [True] * 6


def test_a_trial_with_other_numbers_goes_on_within_the_same_chunk(line: Trainer, tmp_path: Path) -> None:
    line.begin({**FAST, "epochs_per_chunk": 3, "val_check_interval": 1}, seed=0)
    for _ in range(3 * 3 + 2 + 1):  # three epochs of three batches; one epoch of two; a batch
        last = line.step()
    assert (last.chunk, last.epoch, last.num_epochs) == (2, 5, 4)
    line.save(tmp_path / "other.pt")
    taken = []
    for epochs_per_chunk in (1, 2, 4):
        line.begin({**FAST, "epochs_per_chunk": epochs_per_chunk, "lr": 0.01}, seed=1)
        line.take_over(tmp_path / "other.pt")
        taken.append(line.step())
    # Of one epoch a chunk, the second one is over; of two and four, one epoch and a batch are had.
    assert [(step.chunk, step.epoch) for step in taken] == [(3, 3), (2, 4), (2, 6)]
    assert [step.num_samples for step in taken] == [16, 8, 8]
    assert {step.lr for step in taken} == {0.01}


def test_another_place_of_the_batches_is_another_step(tmp_path: Path) -> None:
    def train(task: GrowingFit) -> tuple[list[Step], list[int]]:
        setting = trainer_of(f"{HERE}:growing", metric="val_loss", cache_dir=str(tmp_path))._setting  # type: ignore[attr-defined]
        trainer = ModelTrainer(task, setting, record=called_again)
        trainer.begin({**FAST, "optimizer": "adam", "epochs_per_chunk": 2}, seed=0)
        steps, made = [], []
        while not (steps and steps[-1].finished):
            steps.append(trainer.step())
            made.append(id(trainer._trial.train_step))
            kept.append(trainer._trial.train_step)
        return steps, made

    kept: list[Any] = []
    (together, one), (apart, several) = train(GrowingFit()), train(GrowingFit(apart=True))
    assert len(set(one)) == 1
    assert len(set(several)) == 6
    assert [dict(step.metrics) for step in together] == [dict(step.metrics) for step in apart]


def test_a_captured_step_learns_across_chunks_what_python_learns(tmp_path: Path) -> None:
    setting = trainer_of(f"{HERE}:deep", metric="val_loss", cache_dir=str(tmp_path))._setting  # type: ignore[attr-defined]
    config = {"lr": 0.05, "batch_size": 8, "val_check_interval": 2, "chunk_freeze": 1, "lr_schedule": "cosine"}
    captured, eager = (
        all_steps(ModelTrainer(deep(), setting, record=record), config) for record in (called_again, None)
    )
    assert captured[0].notes["step"] == "captured"
    assert eager[0].notes["step"].startswith("eager")
    assert [step.lr for step in captured] == [step.lr for step in eager]
    for one, other in zip(captured, eager, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)


def test_epochs_with_growing_data_are_an_error() -> None:
    task = task_of(f"{HERE}:growing")
    with pytest.raises(
        ExperimentError, match=r"^epochs: 9 epochs are given, but the data grow.*\n  leave it out; epochs"
    ):
        task.check_config({**FAST, "epochs": 9})
    task.check_config({**FAST, "epochs_per_chunk": 9})
    assert task.num_epochs({"epochs_per_chunk": 9}, Dataset("line", "0")) == 9 * len(SIZES)


def test_freezing_all_in_a_later_chunk_is_an_error_of_the_trial(net: Trainer) -> None:
    with pytest.raises(ExperimentError, match=r"chunk_freeze: 3 leaves nothing to train.*\n  freeze fewer, at most 2"):
        net.begin({**FAST, "chunk_freeze": (1, 3)}, seed=0)
