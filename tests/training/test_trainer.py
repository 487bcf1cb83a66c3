"""The loop, with a task that has nothing to do with images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from hpo.errors import CheckpointError, ExperimentError
from hpo.protocols import Step, Trainer
from hpo.training.trainer import ModelTrainer
from tests.training.contract import TrainerContract, same, saved
from tests.training.fresh import exact, trainer_of
from tests.training.line import Line, LineFit

LINE = "tests.training.line:LineFit"
FAST = {"lr": 0.1, "batch_size": 8, "optimizer": "sgd"}


class TestLineFit(TrainerContract):
    task = LINE
    config: ClassVar = {"lr": 0.05, "batch_size": 8, "dropout": 0.1, "betas": (0.8, 0.99)}
    other_config: ClassVar = {"lr": 0.5, "batch_size": 16, "optimizer": "sgd"}
    metric = "val_loss"


class TestLineFitWithAllThatChangesAStep(TrainerContract):
    task = LINE
    config: ClassVar = {
        "lr": 0.05,
        "batch_size": 8,
        "optimizer": "nadam",
        "lr_schedule": "plateau",
        "scheduler_patience": 0,
        "scheduler_threshold": 10.0,
        "epochs_warmup": 0.5,
        "ema": 0.9,
        "grad_clip": 0.1,
        "l1": 1e-3,
    }
    other_config: ClassVar = {"lr": 0.5, "batch_size": 16, "optimizer": "swats", "lr_schedule": "exponential"}
    metric = "val_loss"


@pytest.fixture
def line(tmp_path: Path) -> Trainer:
    return trainer_of(LINE, metric="val_loss", cache_dir=str(tmp_path))


def test_training_learns_the_line(line: Trainer) -> None:
    line.begin({**FAST, "lr": 0.3}, seed=0)
    losses = [line.step().metrics["val_loss"] for _ in range(20)]
    assert losses[-1] < 0.02 < losses[0]


def test_a_loss_that_is_no_number_is_reported_and_never_best(line: Trainer, tmp_path: Path) -> None:
    line.begin({**FAST, "lr": 1e30}, seed=0)
    steps = [line.step() for _ in range(2)]
    assert math.isnan(steps[-1].metrics["val_loss"])
    line.save(tmp_path / "nan.pt")
    assert saved(tmp_path / "nan.pt")["best"] == {"step": 0, "score": None, "model": None, "chunk": None}
    assert math.isnan(line.test(tmp_path / "nan.pt")["test_loss"])


def test_validation_loss_compares_configurations_that_train_differently(line: Trainer) -> None:
    line.begin({**FAST, "lr": 1e-30, "power": 1.0}, seed=0)
    absolute = line.step().metrics
    line.begin({**FAST, "lr": 1e-30}, seed=0)
    squared = line.step().metrics
    assert absolute["val_loss"] == squared["val_loss"]
    assert absolute["train_loss"] != squared["train_loss"]


def test_an_error_of_the_model_passes_through_and_the_next_trial_is_well(line: Trainer) -> None:
    line.begin({**FAST, "broken": True}, seed=0)
    with pytest.raises(RuntimeError, match="the model is broken"):
        line.step()
    line.begin(FAST, seed=0)
    assert line.step().epoch == 1


def test_the_learning_rate_is_reported(line: Trainer) -> None:
    line.begin(FAST, seed=0)
    assert line.step().lr == 0.1


def test_the_learning_rate_follows_its_schedule(line: Trainer) -> None:
    line.begin({**FAST, "lr_schedule": "step", "step_size": 2, "gamma": 0.5}, seed=0)
    assert [line.step().lr for _ in range(5)] == [0.1, 0.1, 0.05, 0.05, 0.025]
    line.begin({**FAST, "lr_schedule": "polynomial", "epochs": 2, "end_lr": 0.01}, seed=0)
    ends = [line.step().lr for _ in range(2)]
    assert 0.01 < ends[1] < 0.055 < ends[0] < 0.1


@pytest.mark.parametrize("interval", [None, 2])
def test_each_batch_has_the_rate_of_its_place(line: Trainer, interval: int | None) -> None:
    """Five batches to an epoch: a warm-up of five, then half a cosine of five."""
    line.begin(
        {**FAST, "lr_schedule": "cosine", "epochs": 2, "epochs_warmup": 1.0, "val_check_interval": interval}, seed=0
    )
    optimizer = line._running.optimizer  # type: ignore[attr-defined]
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    while not line.step().finished:
        pass
    rising = [0.1 * (batch + 1) / 6 for batch in range(5)]
    falling = [0.1 * (1 + math.cos(math.pi * batch / 5)) / 2 for batch in range(5)]
    assert seen == pytest.approx([*rising, *falling])


def test_what_the_policies_allow_is_the_span_of_a_schedule(line: Trainer) -> None:
    setting = line._setting  # type: ignore[attr-defined]
    config = {**FAST, "lr_schedule": "polynomial", "schedule_every": "epoch"}
    within = {**config, "val_check_interval": 3}

    def rates(config: dict[str, object], **limits: int) -> list[float | None]:
        trainer = ModelTrainer(LineFit(), replace(setting, **limits))
        trainer.begin(config, seed=0)
        return [trainer.step().lr for _ in range(4)]

    assert rates(config, max_steps=4) == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert rates(within, max_steps=4, max_epochs=4) == pytest.approx([0.1, 0.1, 0.075, 0.075])
    with pytest.raises(ExperimentError, match="how many epochs"):  # so many steps are nobody knows how many epochs
        rates(within, max_steps=4)


def test_measuring_more_often_changes_nothing_of_the_training(line: Trainer, tmp_path: Path) -> None:
    config = {**FAST, "dropout": 0.2, "lr_schedule": "exponential", "ema": 0.9, "epochs": 2}
    weights = []
    for interval in (None, 1, 3, 5, 99):
        line.begin({**config, "val_check_interval": interval}, seed=0)
        steps = [line.step()]
        while not steps[-1].finished:
            steps.append(line.step())
        line.save(tmp_path / "a.pt")
        weights.append(saved(tmp_path / "a.pt")["model"])
        per_epoch = 1 if interval is None else -(-5 // interval)
        assert [step.epoch for step in steps] == [1] * per_epoch + [2] * per_epoch
        assert [step.num_epochs for step in steps] == [0] * (per_epoch - 1) + [1] * per_epoch + [2]
    assert all(same(weights[0], others) for others in weights[1:])


def test_a_plateau_is_told_by_each_measurement(line: Trainer) -> None:
    config = {**FAST, "lr": 1e-30, "lr_schedule": "plateau", "scheduler_patience": 0, "val_check_interval": 3}
    line.begin(config, seed=0)
    assert [line.step().lr for _ in range(4)] == pytest.approx([1e-30, 1e-30, 1e-31, 1e-32])


def test_a_checkpoint_of_whole_epochs_alone_is_still_loaded(line: Trainer, tmp_path: Path) -> None:
    """One of before there were steps within an epoch."""
    line.begin(FAST, seed=0)
    line.step()
    line.save(tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    for name in ("position", "step", "chunk"):
        del state[name]
    del state["best"]["chunk"]
    torch.save(state, tmp_path / "before.pt")
    going_on = []
    for name in ("a.pt", "before.pt"):
        line.begin(FAST, seed=0)
        line.load(tmp_path / name)
        going_on.append(exact(line.step()))
        line.save(tmp_path / f"after {name}")
    assert going_on[0] == going_on[1]
    assert same(saved(tmp_path / "after a.pt"), saved(tmp_path / "after before.pt"))


def test_a_plateau_lowers_the_rate_after_an_epoch_that_is_no_better(line: Trainer) -> None:
    line.begin({**FAST, "lr": 1e-30, "lr_schedule": "plateau", "scheduler_patience": 0}, seed=0)
    assert [line.step().lr for _ in range(3)] == pytest.approx([1e-30, 1e-30, 1e-31])


def test_the_average_is_what_is_measured_and_kept(line: Trainer, tmp_path: Path) -> None:
    config = {**FAST, "ema": 0.999999, "lr": 0.3}
    line.begin(config, seed=0)
    steps = [line.step() for _ in range(6)]
    losses = [step.metrics["val_loss"] for step in steps]
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-3)  # it hardly moves
    assert steps[-1].metrics["train_loss"] < 0.5 * steps[0].metrics["train_loss"]  # the weights do
    line.save(tmp_path / "a.pt")
    tested = line.test(tmp_path / "a.pt")["test_loss"]
    line.begin({**FAST, "lr": 0.3}, seed=0)
    for _ in range(6):
        line.step()
    line.save(tmp_path / "b.pt")
    assert line.test(tmp_path / "b.pt")["test_loss"] < 0.5 * tested


def test_another_trials_place_is_taken_with_its_average_or_without(line: Trainer, tmp_path: Path) -> None:
    for source, own in (({}, {"ema": 0.9}), ({"ema": 0.9}, {}), ({"ema": 0.5}, {"ema": 0.9})):
        line.begin({**FAST, **source}, seed=0)
        line.step()
        line.save(tmp_path / "other.pt")
        line.begin({**FAST, "lr": 0.01, **own}, seed=1)
        line.take_over(tmp_path / "other.pt")
        assert line.step().lr == 0.01


def test_a_checkpoint_of_changed_code_is_an_error(
    line: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.begin(FAST, seed=0)
    line.save(tmp_path / "old.pt")
    before = Line.__init__

    def renamed(self: Line, in_features: int, *, dropout: float = 0.0) -> None:
        before(self, in_features, dropout=dropout)
        self.more = torch.nn.Linear(1, 1)

    monkeypatch.setattr(Line, "__init__", renamed)
    line.begin(FAST, seed=0)
    with pytest.raises(
        CheckpointError, match=r"old\.pt: the checkpoint does not fit the model .*more.weight.*\n.*code has changed"
    ):
        line.load(tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match=r"does not fit the model"):
        line.test(tmp_path / "old.pt")


def test_low_precision_computes_in_bfloat16_and_keeps_float32_weights(line: Trainer, tmp_path: Path) -> None:
    def losses(precision: str) -> float:
        line.begin({**FAST, "precision": precision}, seed=0)
        return line.step().metrics["val_loss"]

    assert losses("auto") == losses("float32")
    assert losses("bfloat16") != losses("float32")
    assert losses("bfloat16") == pytest.approx(losses("float32"), rel=0.1)
    line.save(tmp_path / "a.pt")
    assert {weight.dtype for weight in saved(tmp_path / "a.pt")["model"].values()} == {torch.float32}


def test_frozen_parameters_are_left_alone(tmp_path: Path) -> None:
    line = trainer_of("tests.training.test_trainer:frozen_bias", metric="val_loss", cache_dir=str(tmp_path))
    line.begin(FAST, seed=0)
    line.save(tmp_path / "0.pt")
    line.step()
    line.save(tmp_path / "1.pt")
    before, after = saved(tmp_path / "0.pt")["model"], saved(tmp_path / "1.pt")["model"]
    assert torch.equal(before["layer.bias"], after["layer.bias"])
    assert not torch.equal(before["layer.weight"], after["layer.weight"])


def frozen_bias() -> LineFit:
    def model(in_features: int) -> Line:
        made = Line(in_features)
        made.layer.bias.requires_grad_(False)
        return made

    return LineFit(model=model)


class TestTooLittleMemory:
    """The same steps, in as many parts as there is room for."""

    CONFIG: ClassVar = {**FAST, "batch_size": 20, "momentum": 0.5}

    def train(self, line: Trainer, **changed: object) -> list[Step]:
        line.begin({**self.CONFIG, **changed}, seed=0)
        return [line.step() for _ in range(3)]

    @pytest.mark.parametrize(("room", "at_once"), [(20, None), (19, 10), (6, 5), (1, 1)])
    def test_gives_the_same_losses(self, line: Trainer, room: int, at_once: int | None) -> None:
        with_room, without = self.train(line), self.train(line, room=room)
        for one, other in zip(with_room, without, strict=True):
            assert one.metrics == pytest.approx(other.metrics, rel=1e-5)
        notes = without[0].notes.get("micro_batch_size")
        assert notes is None if at_once is None else notes is not None and notes.startswith(f"{at_once}: out of memory")
        assert "micro_batch_size" not in without[1].notes  # told once

    def test_is_found_out_once_a_trial(self, line: Trainer) -> None:
        self.train(line, room=6)
        trial = line._running  # type: ignore[attr-defined]
        seen = [num for training, num in trial.model.seen if training]
        assert seen[:3] == [20, 10, 5]
        assert set(seen[3:]) == {5}

    def test_for_one_sample_fails_the_trial(self, line: Trainer) -> None:
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            self.train(line, room=0)
        assert self.train(line)[0].epoch == 1
