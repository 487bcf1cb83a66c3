"""A task of one's own on samples in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hpo.errors import DataError, ExperimentError
from hpo.protocols import Setting
from hpo.training import ArrayTask
from hpo.training.arrays import MEASURED_AT_ONCE, MeanTally
from hpo.training.data import Samples
from hpo.training.settings import DataSettings
from hpo.training.trainer import ModelTrainer
from tests.training.recorders import called_again

CPU = torch.device("cpu")


class Next(nn.Module):
    def __init__(self, num_symbols: int, *, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(num_symbols, width), nn.Linear(width, num_symbols))

    def forward(self, symbols_BL: Tensor) -> Tensor:
        logits: Tensor = self.layers(symbols_BL)
        return logits


@dataclass(frozen=True)
class Counting(ArrayTask):
    """What comes after each digit."""

    model: Any = Next
    length: int = 5
    measures = ("loss", "accuracy")
    given = {"num_symbols": 10}  # noqa: RUF012

    def samples(self) -> Samples:
        digits = (np.arange(200)[:, None] + np.arange(self.length + 1)) % 10
        return Samples(digits[:, :-1], digits[:, 1:]).held_out(0.1)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), label_smoothing=label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"accuracy": (outputs.argmax(-1) == targets).double().mean()}


def setting(task: ArrayTask) -> Setting:
    return Setting("cpu", 1, task.locate(None), Path("no cache"), "val_accuracy")


def test_twenty_lines_are_a_task(tmp_path: Path) -> None:
    task = Counting()
    task.check()
    task.check_config({"lr": 0.1, "width": 16, "label_smoothing": 0.1, "train_ratio": 0.5})
    assert task.metrics == ("train_loss", "val_loss", "val_accuracy")
    trainer = task.begin(setting(task))
    trainer.begin({"lr": 0.03, "batch_size": 20}, seed=0)
    steps = [trainer.step() for _ in range(15)]
    assert steps[-1].metrics["val_accuracy"] == 1
    assert steps[0].num_samples == 160
    trainer.save(tmp_path / "a.pt")
    assert trainer.test(tmp_path / "a.pt")["test_accuracy"] == 1
    assert task.checkpoint_mb({}, task.locate(None)) > 0


def test_its_step_can_be_captured() -> None:
    task = Counting()
    trainer = ModelTrainer(task, setting(task), record=called_again)
    trainer.begin({"batch_size": 20}, seed=0)
    assert trainer.step().notes["step"] == "captured"
    trainer.begin({"batch_size": 20, "lr": 0.1, "split_seed": 4}, seed=1)
    assert trainer.step().notes["step"] == "captured before: it fits this trial, too"


@pytest.mark.parametrize(("numbers", "sizes"), [(50, [10, 10]), (1, [1] * 20), (10**6, [20])])
def test_what_is_measured_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch, numbers: int, sizes: list[int]) -> None:
    monkeypatch.setitem(MEASURED_AT_ONCE, "cpu", numbers)
    task = Counting()
    source = task.open(setting(task))
    assert [len(targets) for _, targets in source.testing(DataSettings())] == sizes


def test_a_wrong_value_is_named_by_its_annotation() -> None:
    with pytest.raises(ExperimentError, match="label_smoothing: 'much' is not a number"):
        Counting().check_config({"label_smoothing": "much"})
    with pytest.raises(ExperimentError, match="num_symbols: Next gets it from the task"):
        Counting().check_config({"num_symbols": 3})


def test_other_samples_than_in_the_driver_are_refused() -> None:
    task = Counting()
    with pytest.raises(DataError, match=r"counting: its fingerprint is .* here, but .* where the run was started"):
        replace(task, length=6).begin(setting(task))


def test_a_measure_that_is_not_given_is_named() -> None:
    tally = MeanTally(lambda outputs, _: {"hits": outputs.mean()}, ("loss", "accuracy"), device=CPU)
    with pytest.raises(
        ExperimentError, match=r"measures: measure\(\) gives loss, hits, not 'accuracy'\n  let it return 'accuracy'"
    ):
        tally.add(torch.zeros(2), torch.zeros(2), torch.zeros(()))


@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=5), min_size=2, max_size=5))
def test_means_are_over_all_samples_whatever_the_batches(batches: list[list[float]]) -> None:
    one, other, both = (
        MeanTally(lambda outputs, _: {"mean": outputs.mean()}, ("mean", "loss"), device=CPU) for _ in range(3)
    )
    for number, batch in enumerate(batches):
        for tally in (both, (one, other)[number % 2]):
            tally.add(torch.tensor(batch), torch.zeros(len(batch)), torch.tensor(1.5))
    everything = [value for batch in batches for value in batch]
    assert both.result()["mean"] == pytest.approx(sum(everything) / len(everything), abs=1e-6)
    assert both.result()["loss"] == pytest.approx(1.5)
    for total, more in zip(one.sums(), other.sums(), strict=True):
        total.add_(more)
    torch.testing.assert_close(one.result(), both.result())
    one.clear()
    assert not any(total.any() for total in one.sums())
