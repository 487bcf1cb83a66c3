"""Trials in one process: which step each of them gets, and that it makes no difference to what is learnt."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from hpo.errors import ExperimentError
from hpo.protocols import Setting, Step
from hpo.training import Classification, Dropout
from hpo.training import stepping as stepping_module
from hpo.training.cuda_graph import cuda_graph
from hpo.training.data import Digits
from hpo.training.models import ConvNet
from hpo.training.step import Record
from hpo.training.trainer import ModelTrainer
from tests.training.recorders import called_again
from tests.training.test_step import Counting, Looking, Moody

CONFIG = {"lr": 0.01, "batch_size": 32, "filters": (4, 8), "augment": ("crop", "flip"), "train_samples": 320}

Train = Callable[..., ModelTrainer]


def trainer_on(
    device: str, folder: Path, *, model: Any = ConvNet, record: Record | None = called_again, **setting: Any
) -> ModelTrainer:
    task = Classification(model=model, data=Digits())
    where = Setting(
        device=device,
        num_threads=1,
        dataset=task.locate(None),
        cache_dir=folder,
        metric="val_accuracy",
        gpus=float(device == "cuda"),
        **setting,
    )
    return ModelTrainer(task, where, record=record)


def steps(trainer: ModelTrainer, config: dict[str, Any], *, seed: int = 0, num: int = 2) -> list[Step]:
    trainer.begin(config, seed=seed)
    return [trainer.step() for _ in range(num)]


def metrics(some: list[Step], *, names: tuple[str, ...] = ()) -> Tensor:
    """Of each step; accuracies of few samples leap where losses move by a hair."""
    return torch.tensor(
        [[value for name, value in step.metrics.items() if not names or name in names] for step in some]
    )


class TestTrials:
    """On a CPU, where what is captured is called again."""

    device: ClassVar[str] = "cpu"
    record: ClassVar[Record] = staticmethod(called_again)
    exactly: ClassVar[dict[str, float]] = {"rtol": 0, "atol": 0}
    compared: ClassVar[tuple[str, ...]] = ()

    def assert_same(self, some: list[Step], others: list[Step]) -> None:
        torch.testing.assert_close(
            metrics(some, names=self.compared), metrics(others, names=self.compared), **self.exactly
        )

    @pytest.fixture
    def make(self, tmp_path: Path) -> Train:
        return lambda **options: trainer_on(self.device, tmp_path, **{"record": type(self).record, **options})

    def test_the_first_is_captured_and_says_so_once(self, make: Train) -> None:
        first, second = steps(make(), CONFIG)
        assert first.notes["step"] == "captured"
        assert first.notes["compile"] == "off"
        assert first.notes["data"]
        assert second.notes == {}

    @pytest.mark.parametrize(
        "other",
        [
            {"lr": 0.03, "dropout": 0.4},
            {"weight_decay": 0.2},
            {"label_smoothing": 0.3},
            {"train_samples": 640},
            {"epochs": 5},
        ],
    )
    def test_another_that_differs_in_numbers_takes_it_over(self, make: Train, other: dict[str, Any]) -> None:
        before = {**CONFIG, **{name: 0.1 for name in other if name in ("weight_decay", "label_smoothing")}}
        used, fresh = make(), make()
        steps(used, before, seed=1)
        captured = used._trial.train_step
        taken = steps(used, {**CONFIG, **other}, seed=2)
        assert used._trial.train_step is captured
        assert taken[0].notes["step"] == "captured before: it fits this trial, too"
        new = steps(fresh, {**CONFIG, **other}, seed=2)
        assert fresh._trial.train_step is not captured
        self.assert_same(taken, new)
        assert taken[0].num_samples == new[0].num_samples

    @pytest.mark.parametrize(
        "other",
        [
            {"filters": (4, 6)},
            {"batch_size": 64},
            {"augment": ()},
            {"optimizer": "sgd"},
            {"weight_decay": 0.1},
            {"betas": (0.8, 0.99)},
            {"channels_last": False},
            {"precision": "bfloat16"},
            {"kernel_size": 1},
        ],
    )
    def test_another_that_differs_in_more_is_captured_anew(self, make: Train, other: dict[str, Any]) -> None:
        used, fresh = make(), make()
        steps(used, CONFIG, seed=1)
        captured = used._trial.train_step
        anew = steps(used, {**CONFIG, **other}, seed=2)
        assert used._trial.train_step is not captured
        assert anew[0].notes["step"] == "captured"
        self.assert_same(anew, steps(fresh, {**CONFIG, **other}, seed=2))

    def test_a_constant_in_a_users_module_is_noticed(self, make: Train) -> None:
        trainer = make(model=Scaled)
        steps(trainer, {"batch_size": 32, "scale": 1.0}, num=1)
        captured = trainer._trial.train_step
        steps(trainer, {"batch_size": 32, "scale": 1.0, "lr": 0.1}, num=1)
        assert trainer._trial.train_step is captured
        steps(trainer, {"batch_size": 32, "scale": 2.0}, num=1)
        assert trainer._trial.train_step is not captured

    def test_it_learns_what_python_learns(self, make: Train) -> None:
        config = {**CONFIG, "dropout": 0.0}
        captured, eager = steps(make(), config, num=3), steps(make(), {**config, "capture": "off"}, num=3)
        assert eager[0].notes["step"] == "eager: capture is off"
        assert abs(captured[-1].metrics["train_loss"] - eager[-1].metrics["train_loss"]) < 0.05

    @pytest.mark.parametrize(("model", "why"), [(Moody, "draws random numbers"), (Counting, "changes the model")])
    def test_what_cannot_be_captured_trains_all_the_same(self, make: Train, model: type[nn.Module], why: str) -> None:
        trainer = make(model=model)
        for _ in range(2):
            first, second = steps(trainer, {"batch_size": 32})
            assert first.notes["step"].startswith("eager: a step ")
            assert why in first.notes["step"]
            assert second.metrics["train_loss"] < first.metrics["train_loss"]

    def test_what_was_refused_is_not_tried_again(self, tmp_path: Path) -> None:
        tried = 0

        def counting(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
            nonlocal tried
            tried += 1
            return called_again(function, device)

        trainer = trainer_on(self.device, tmp_path, model=Moody, record=counting)
        for seed in range(3):
            steps(trainer, {"batch_size": 32, "lr": 0.01 * (seed + 1)}, seed=seed, num=1)
        assert tried == 0  # refused before anything was recorded
        refused = trainer._stepping._refused
        steps(trainer, {"batch_size": 32}, num=1)
        assert trainer._stepping._refused is refused

    def test_on_means_on(self, make: Train) -> None:
        trainer = make(model=Moody)
        trainer.begin({"batch_size": 32, "capture": "on"}, seed=0)
        with pytest.raises(ExperimentError, match=r"(?s)capture: the step cannot.*a step draws.*capture=auto"):
            trainer.step()
        assert steps(make(), {**CONFIG, "capture": "on"}, num=1)[0].notes["step"] == "captured"

    def test_dampening_is_not_captured_and_the_reason_told(self, make: Train) -> None:
        config = {**CONFIG, "optimizer": "sgd", "momentum": 0.9, "dampening": 0.5}
        assert steps(make(), config, num=1)[0].notes["step"] == "eager: dampening makes the first step another one"

    @pytest.mark.parametrize(("first", "second"), [("auto", "off"), ("off", "auto"), ("auto", "auto")])
    def test_a_checkpoint_serves_either_kind(self, make: Train, tmp_path: Path, first: str, second: str) -> None:
        config = {**CONFIG, "dropout": 0.0}
        trainer = make()
        steps(trainer, config | {"capture": first}, num=2)
        trainer.save(tmp_path / "a.pt")
        expected = trainer.step()
        other = make()
        steps(other, {**CONFIG, "lr": 0.5}, num=1, seed=4)
        other.begin(config | {"capture": first}, seed=0)
        other.load(tmp_path / "a.pt")
        as_written = other.step()
        self.assert_same([as_written], [expected])
        checkpoint = torch.load(tmp_path / "a.pt", weights_only=True)
        changed = checkpoint["config"].replace(f'"capture": "{first}"', f'"capture": "{second}"')
        torch.save({**checkpoint, "config": changed}, tmp_path / "b.pt")
        other.begin(config | {"capture": second}, seed=0)
        other.load(tmp_path / "b.pt")
        step = other.step()
        assert step.epoch == 3
        here, there = (metrics([one], names=("train_loss", "val_loss")) for one in (step, expected))
        torch.testing.assert_close(here, there, rtol=0.02, atol=0.02)

    def test_a_long_study_compiles_in_the_midst_of_it(self, make: Train, monkeypatch: pytest.MonkeyPatch) -> None:
        if not _can_compile(self.device):
            pytest.skip("no compiler is here, or not Python's headers; torch.compile needs them")
        monkeypatch.setattr(stepping_module, "COMPILING_TAKES_S", 0.0)
        trainer = make(planned_epochs=1e9)
        first, second, third = steps(trainer, {**CONFIG, "compile": "auto", "dropout": 0.0}, num=3)
        assert (first.notes["compile"], second.notes["compile"]) == ("off", "on")
        assert "step" not in second.notes  # captured, as before
        plain = steps(make(), {**CONFIG, "dropout": 0.0}, num=3)
        compiled, uncompiled = (metrics(some, names=("train_loss",)) for some in ([first, second, third], plain))
        torch.testing.assert_close(compiled, uncompiled, rtol=0.05, atol=0.05)

    def test_a_model_that_cannot_be_compiled(self, make: Train, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no compiler is here")

        monkeypatch.setattr(torch, "compile", broken)
        trainer = make()
        trainer.begin({**CONFIG, "compile": "on"}, seed=0)
        with pytest.raises(ExperimentError, match=r"compile: the model cannot be compiled \(RuntimeError: no compiler"):
            trainer.step()


def _can_compile(device: str) -> bool:
    compilers = ("g++",) if device == "cpu" else ("gcc", "clang")
    return any(map(shutil.which, compilers)) and Path(sysconfig.get_path("include"), "Python.h").is_file()


def test_capture_on_a_cpu_is_an_error(tmp_path: Path) -> None:
    trainer = trainer_on("cpu", tmp_path, record=None)
    with pytest.raises(ExperimentError, match="capture: 'on' is asked for, but there is no GPU"):
        trainer.begin({**CONFIG, "capture": "on"}, seed=0)
    assert steps(trainer, CONFIG, num=1)[0].notes["step"] == "eager: there is no GPU"


class Scaled(nn.Module):
    def __init__(self, in_features: int, num_classes: int, *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = Dropout(0.1)
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(inputs.flatten(1))) * self.scale
        return logits


# --- on a GPU ---


class Huge(nn.Module):
    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        torch.empty(2**50, dtype=torch.uint8, device=inputs.device)
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
class TestTrialsOnGpu(TestTrials):
    device = "cuda"
    record: ClassVar[Record] = staticmethod(cuda_graph)
    exactly: ClassVar[dict[str, float]] = {"rtol": 5e-2, "atol": 5e-2}  # its sums come in another order each time
    compared: ClassVar[tuple[str, ...]] = ("train_loss", "val_loss")

    def test_control_flow_that_depends_on_data_falls_back(self, make: Train) -> None:
        for _ in range(2):
            first, second = steps(make(model=Looking), {"batch_size": 32})
            assert first.notes["step"].startswith("eager: the host waits for the device in a step, at ")
            assert second.metrics["train_loss"] < first.metrics["train_loss"]

    def test_streamed_data_are_captured_too(self, make: Train) -> None:
        streamed = make(data_memory_fraction=1e-9)
        first, last = steps(streamed, {**CONFIG, "dropout": 0.0})
        assert first.notes["data"].startswith("streamed: ")
        assert first.notes["step"] == "captured"
        resident = steps(make(), {**CONFIG, "dropout": 0.0})
        self.assert_same([first, last], resident)

    def test_an_epoch_waits_for_the_device_once(self, make: Train) -> None:
        trainer = make()
        steps(trainer, CONFIG, num=2)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchronizing") as warned:
                trainer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len([one for one in warned if "called a synchronizing" in str(one.message)]) <= 3

    def test_out_of_memory_is_survived(self, make: Train) -> None:
        task = make(model=Huge)
        task.begin({"batch_size": 32}, seed=0)
        with pytest.raises(torch.OutOfMemoryError):
            task.step()
        assert steps(make(), CONFIG)[1].metrics["train_loss"] > 0
