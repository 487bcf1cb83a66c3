"""The loop, where weights are there already: what trains when and at which rate, and what a trial begins with."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from hpo.errors import CheckpointError, DataError, ExperimentError
from hpo.protocols import Trainer
from hpo.training.capturable import INITIAL_LR
from hpo.training.lean import lean
from hpo.training.optimizers import OPTIMIZERS
from hpo.training.step import Record
from tests.training.contract import TrainerContract, same, saved
from tests.training.fresh import trainer_of
from tests.training.line import LineFit
from tests.training.recorders import called_again, cuda_graph_or_skip
from tests.training.test_stepping import CONFIG, steps, trainer_on

HERE = "tests.training.test_trainer_fine_tuning"
FAST = {"lr": 0.1, "batch_size": 8, "optimizer": "sgd", "momentum": 0.5}


class Deep(nn.Module):
    """Three blocks: first, second (with a norm), head."""

    def __init__(self, in_features: int, *, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(in_features, 4), nn.Linear(4, width)
        self.norm, self.head = nn.BatchNorm1d(width), nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(self.second(self.first(inputs).relu())).relu()).squeeze(1)


def deep() -> LineFit:
    return LineFit(model=Deep)


class TestAcrossThaws(TrainerContract):
    """Blocks thaw before the second epoch and before the third."""

    task = f"{HERE}:deep"
    config: ClassVar = {
        "lr": 0.05,
        "batch_size": 8,
        "freeze": -1,
        "unfreeze_every": 1,
        "lr_decay_per_block": 0.5,
        "head_lr_factor": 3.0,
        "ema": 0.5,
    }
    other_config: ClassVar = {"lr": 0.5, "batch_size": 16, "optimizer": "swats", "freeze": 2, "unfreeze_every": 1}
    metric = "val_loss"


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return trainer_of(f"{HERE}:deep", metric="val_loss", cache_dir=str(tmp_path / "cache"))


def weights(trainer: Trainer, path: Path) -> dict[str, Tensor]:
    trainer.save(path)
    found: dict[str, Tensor] = saved(path)["model"]
    return found


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The modules of which a tensor differs."""
    return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "sgd with momentum"])
def test_what_is_frozen_does_not_move_and_thaws_from_the_top(trainer: Trainer, tmp_path: Path, optimizer: str) -> None:
    name, _, more = optimizer.partition(" ")
    momentum = {"momentum": 0.9} if more else {}
    trainer.begin({"lr": 0.1, "batch_size": 8, "optimizer": name, **momentum, "freeze": 2, "unfreeze_every": 2}, seed=0)
    states = [weights(trainer, tmp_path / "0.pt")]
    for epoch in range(1, 6):
        trainer.step()
        states.append(weights(trainer, tmp_path / f"{epoch}.pt"))
    moved = [changed(before, after) for before, after in pairwise(states)]
    assert moved[:2] == [{"head"}] * 2  # nor does the norm count batches
    assert moved[2:4] == [{"head", "second", "norm"}] * 2
    assert moved[4] == {"head", "second", "norm", "first"}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "swats", "muon"])
def test_a_trial_goes_on_from_any_epoch_as_if_nothing_had_happened(
    trainer: Trainer, tmp_path: Path, optimizer: str
) -> None:
    config = {"lr": 0.05, "batch_size": 8, "optimizer": optimizer, "freeze": "*.weight", "unfreeze_every": 1}
    momentum = {"momentum": 0.9} if optimizer == "sgd" else {}
    trainer.begin({**config, **momentum}, seed=0)
    for epoch in range(5):
        trainer.save(tmp_path / f"{epoch}.pt")
        trainer.step()
    trainer.save(tmp_path / "5.pt")
    for epoch in range(5):
        trainer.begin({**config, **momentum}, seed=0)
        trainer.load(tmp_path / f"{epoch}.pt")
        trainer.step()
        trainer.save(tmp_path / "again.pt")
        assert same(saved(tmp_path / f"{epoch + 1}.pt"), saved(tmp_path / "again.pt"))


def test_no_gradient_is_computed_for_what_is_frozen(trainer: Trainer) -> None:
    trainer.begin({**FAST, "freeze": "first"}, seed=0)
    trainer.step()
    model = trainer._running.model  # type: ignore[attr-defined]
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == {
        "first.weight",
        "first.bias",
    }


def test_each_block_has_its_rate_and_all_follow_the_schedule(trainer: Trainer) -> None:
    rates = {"lr_decay_per_block": 0.5, "head_lr_factor": 3.0}
    trainer.begin({**FAST, **rates, "lr_schedule": "step", "step_size": 1, "gamma": 0.1}, seed=0)
    reported = [trainer.step().lr for _ in range(2)]
    assert reported == pytest.approx([0.3, 0.03])
    groups = trainer._running.optimizer.param_groups  # type: ignore[attr-defined]
    assert [group[INITIAL_LR] for group in groups] == pytest.approx([0.025, 0.05, 0.3])
    assert [group["lr"] for group in groups] == pytest.approx([0.0025, 0.005, 0.03])
    assert [len(group["params"]) for group in groups] == [2, 4, 2]


def test_discriminative_rates_are_those_of_groups_made_by_hand(trainer: Trainer, tmp_path: Path) -> None:
    trainer.begin({"lr": 0.1, "batch_size": 40, "optimizer": "sgd", "lr_decay_per_block": 0.5}, seed=0)
    before = weights(trainer, tmp_path / "0.pt")
    trainer.step()  # all samples in one batch: one step
    after = weights(trainer, tmp_path / "1.pt")
    model, source = Deep(2), deep().open(trainer._setting)  # type: ignore[attr-defined]
    model.load_state_dict(before)
    parts = [("first", 0.025), ("second", 0.05), ("norm", 0.05), ("head", 0.1)]
    groups = [{"params": [*model.get_submodule(name).parameters()], "lr": lr} for name, lr in parts]
    optimizer = lean(torch.optim.SGD)(groups)
    (model(source.inputs[:40]) - source.targets[:40]).square().mean().backward()
    optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(after[name], value.detach())


def test_with_everything_off_nothing_is_different(trainer: Trainer, tmp_path: Path) -> None:
    off = {"freeze": None, "unfreeze_every": None, "lr_decay_per_block": 1.0, "head_lr_factor": 1.0, "start_from": None}
    states = []
    for extra in ({}, off, {"freeze": 0}, {"head_lr_factor": 1, "partial": True}):
        trainer.begin({**FAST, **extra}, seed=0)
        trainer.step()
        trainer.save(tmp_path / "a.pt")
        states.append({**saved(tmp_path / "a.pt"), "config": None})
    assert all(same(states[0], other) for other in states[1:])


def test_what_is_watched_is_of_the_layers_that_train(trainer: Trainer) -> None:
    trainer.begin({**FAST, "freeze": 2, "unfreeze_every": 1, "watch": "gradients"}, seed=0)
    named = [{name for name in trainer.step().metrics if "grad_norm." in name} for _ in range(3)]
    assert named[0] == {"grad_norm.head"}
    assert named[1] - named[0] == {"grad_norm.second", "grad_norm.norm"}
    assert named[2] - named[1] == {"grad_norm.first"}


def test_momentum_stays_when_a_block_thaws(trainer: Trainer) -> None:
    trainer.begin({**FAST, "freeze": 2, "unfreeze_every": 1}, seed=0)
    trainer.step()
    trial = trainer._running  # type: ignore[attr-defined]
    head = trial.model.head.weight
    had = trial.optimizer.state[head]["momentum_buffer"].clone()
    trainer._refit(trial, trial.tuning, epoch=1)  # type: ignore[attr-defined]
    assert torch.equal(trial.optimizer.state[head]["momentum_buffer"], had)
    assert not trial.optimizer.state[trial.model.second.weight]["momentum_buffer"].any()


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ({"freeze": 2, "unfreeze_every": 1}, {"freeze": 1}),
        ({"freeze": 2}, {}),
        ({}, {"freeze": 2, "head_lr_factor": 2.0}),
        ({"lr_decay_per_block": 0.5}, {"lr_decay_per_block": 0.9}),
    ],
)
def test_another_trials_place_is_taken_whatever_it_froze(
    trainer: Trainer, tmp_path: Path, source: dict[str, Any], own: dict[str, Any]
) -> None:
    trainer.begin({**FAST, **source}, seed=0)
    trainer.step(), trainer.step()
    trainer.save(tmp_path / "other.pt")
    trainer.begin({**FAST, "lr": 0.01, **own}, seed=1)
    trainer.take_over(tmp_path / "other.pt")
    assert same(weights(trainer, tmp_path / "mine.pt"), saved(tmp_path / "other.pt")["model"])
    trainer.save(tmp_path / "mine.pt")
    trainer.step()
    trainer.save(tmp_path / "went on.pt")
    trainer.begin({**FAST, "lr": 0.01, **own}, seed=1)
    trainer.load(tmp_path / "mine.pt")
    trainer.step()
    trainer.save(tmp_path / "again.pt")
    assert same(saved(tmp_path / "went on.pt"), saved(tmp_path / "again.pt"))
    moved = changed(saved(tmp_path / "mine.pt")["model"], saved(tmp_path / "went on.pt")["model"])
    assert moved == {"head", "norm", "second", "first"} - (
        {"first", "second", "norm"} if own.get("freeze") == 2 else {"first"} if own.get("freeze") else set()
    )


@pytest.mark.parametrize(
    ("device", "record"),
    [("cpu", called_again), pytest.param("cuda", cuda_graph_or_skip, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("optimizer", [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_a_captured_step_is_captured_anew_when_a_block_thaws(
    tmp_path: Path, device: str, record: Record, optimizer: dict[str, Any]
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    rates = {"lr_decay_per_block": 0.5, "precision": "float32"}
    config = {**CONFIG, **optimizer, **rates, "freeze": 1, "unfreeze_every": 1, "augment": ()}
    eager = steps(trainer_on(device, tmp_path, record=None), {**config, "capture": "off"}, num=3)
    captured = trainer_on(device, tmp_path, record=record)
    for _ in range(2):  # the second trial begins after one that thawed
        told = steps(captured, config, num=3)
        assert told[0].notes["step"] == "captured"
        for one, other in zip(eager, told, strict=True):
            assert one.metrics["val_loss"] == pytest.approx(other.metrics["val_loss"], rel=1e-3)


class TestStartFrom:
    def test_the_weights_are_those_of_the_file(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin({**FAST, "ema": 0.5}, seed=0)
        trainer.step()
        trainer.save(tmp_path / "parent.pt")
        torch.save(Deep(2).state_dict(), tmp_path / "plain.pt")
        for name in ("parent.pt", "plain.pt"):
            trainer.begin({**FAST, "start_from": "anything", "ema": 0.5}, seed=1)
            assert len(trainer.start_from(tmp_path / name)) == 16
            parent = torch.load(tmp_path / name, weights_only=True)
            averages = parent.get("average", {})
            expected = {**parent["model"], **averages} if "model" in parent else parent
            mine = weights(trainer, tmp_path / "mine.pt")
            assert all(torch.equal(value, expected[key]) for key, value in mine.items())
            average = saved(tmp_path / "mine.pt")["average"]
            assert all(torch.equal(value, mine[key]) for key, value in average.items() if key in mine)
            assert trainer.step().notes["start"] == f"{len(mine)} loaded"

    def test_another_shape_is_an_error_unless_partial(
        self, trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        torch.save(Deep(2, width=5).state_dict(), tmp_path / "wide.pt")
        trainer.begin(FAST, seed=0)
        with pytest.raises(
            ExperimentError, match=r"start_from: .*shape differs: second.weight \(5, 4\) in the weights"
        ):
            trainer.start_from(tmp_path / "wide.pt")
        trainer.begin({**FAST, "partial": True}, seed=0)
        caplog.set_level("INFO", "hpo")
        trainer.start_from(tmp_path / "wide.pt")
        assert trainer.step().notes["start"].startswith("4 loaded, 7 shape differs (second.weight, second.bias, ")
        assert "first.weight: loaded (in the model (4, 2), in the weights (4, 2))" in caplog.text
        assert "head.weight: shape differs (in the model (1, 4), in the weights (1, 5))" in caplog.text

    def test_a_file_that_is_missing_is_an_error(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(FAST, seed=0)
        with pytest.raises(DataError, match=r"nowhere\.pt: there is no such file of weights"):
            trainer.start_from(tmp_path / "nowhere.pt")

    def test_a_resumed_trial_needs_the_file_no_more(self, trainer: Trainer, tmp_path: Path) -> None:
        torch.save(Deep(2).state_dict(), tmp_path / "plain.pt")
        config = {**FAST, "start_from": str(tmp_path / "plain.pt"), "freeze": 2}
        trainer.begin(config, seed=0)
        trainer.start_from(tmp_path / "plain.pt")
        trainer.save(tmp_path / "a.pt")
        trainer.step()
        trainer.save(tmp_path / "b.pt")
        (tmp_path / "plain.pt").unlink()
        trainer.begin(config, seed=0)
        trainer.load(tmp_path / "a.pt")
        trainer.step()
        trainer.save(tmp_path / "c.pt")
        assert same(saved(tmp_path / "b.pt"), saved(tmp_path / "c.pt"))


class TestErrors:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"start_from": ""}, r"start_from: '' is not a file of weights, \"best:EXPERIMENT\""),
            ({"start_from": "trial:two"}, r"start_from: 'trial:two' is not a file"),
            ({"start_from": 3}, r"start_from: 3 is not a file"),
            ({"start_from": "torchvision:DEFAULT"}, r"start_from: torchvision has no weights for Deep"),
            ({"partial": 1}, r"partial: 1 is not True or False"),
            ({"unfreeze_every": 1}, r"unfreeze_every: 1 epochs to a block are given, but nothing is frozen"),
            ({"lr_decay_per_block": 0}, r"lr_decay_per_block: 0 is not a number"),
            ({"head_lr_factor": 0.0}, r"head_lr_factor: 0.0 is not a number above 0"),
        ],
    )
    def test_a_wrong_value_is_found_before_anything_starts(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ExperimentError, match=message):
            deep().check_config(config)

    def test_freezing_all_is_an_error_of_the_trial(self, trainer: Trainer) -> None:
        with pytest.raises(ExperimentError, match="freeze: 3 leaves nothing to train"):
            trainer.begin({**FAST, "freeze": 3}, seed=0)

    def test_frozen_parameters_need_no_room_in_a_checkpoint(self) -> None:
        task = deep()
        sizes = [task.checkpoint_mb({"freeze": freeze}, task.locate(None)) for freeze in (None, 1, 2)]
        assert sizes[0] > sizes[1] > sizes[2]
        assert task.checkpoint_mb({"freeze": 2, "unfreeze_every": 1}, task.locate(None)) == sizes[0]

    def test_a_checkpoint_of_other_blocks_is_an_error(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin({**FAST, "freeze": 1}, seed=0)
        trainer.save(tmp_path / "a.pt")
        trainer.begin({**FAST, "freeze": 2}, seed=0)
        with pytest.raises(CheckpointError, match="another configuration: freeze is 1 there and 2 here"):
            trainer.load(tmp_path / "a.pt")
