from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from sklearn import metrics
from torch.nn import functional

from hpo.errors import ExperimentError
from hpo.training.regression import RegressionTally
from tests.training.contract import TrainerContract
from tests.training.fresh import trainer_of
from tests.training.tables import PRODUCT

CPU = torch.device("cpu")


HUBER = {"loss": "huber", "huber_delta": 0.7}


class TestRegression(TrainerContract):
    task = "tests.training.tables:PRODUCT"
    config: ClassVar = {"lr": 3e-3, "batch_size": 16, "hidden": (16,), "dropout": 0.1, **HUBER}
    other_config: ClassVar = {"batch_size": 32, "optimizer": "sgd", "momentum": 0.9, "train_ratio": 0.5, "hidden": (8,)}
    metric = "val_loss"
    interval = 5


TASK = PRODUCT


# --- the loss ---

PAIRS = st.integers(1, 9).flatmap(
    lambda num: st.tuples(
        *[st_numpy.arrays(np.float32, (num, 2), elements=st.floats(-50, 50, width=32)) for _ in range(2)]
    )
)


@given(PAIRS, st.sampled_from([0.25, 1.0, 3.0]))
def test_losses_and_their_gradients_are_those_of_pytorch(pair: Any, delta: float) -> None:
    expected = {
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": lambda outputs, targets: functional.huber_loss(outputs, targets, delta=delta),
    }
    for name, theirs in expected.items():
        for huber_delta in (delta, torch.tensor(delta)):
            ours, reference = (torch.tensor(pair[0], requires_grad=True) for _ in range(2))
            loss = TASK.loss(ours, torch.tensor(pair[1]), loss=name, huber_delta=huber_delta)
            loss.backward()
            wanted = theirs(reference, torch.tensor(pair[1]))
            wanted.backward()
            torch.testing.assert_close(loss, wanted)
            torch.testing.assert_close(ours.grad, reference.grad)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": "l2"}, "loss: 'l2' is not one of 'mse', 'mae', 'huber'"),
        ({"loss": "huber", "huber_delta": 0}, "huber_delta: 0 is not a number above 0"),
        ({"huber_delta": 1.0}, r"huber_delta: loss='mse' does not take it; .*\n.*\.when\(loss='huber'\)"),
        ({"loss": "mae", "loss.huber_delta": 1.0}, r"loss\.huber_delta: loss='mae' does not take it"),
    ],
)
def test_a_configuration_that_cannot_be_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        TASK.check_config(config)


def test_outputs_of_another_shape_are_an_error() -> None:
    with pytest.raises(ExperimentError, match=r"model: its outputs have shape \(4,\), not .* = \(4, 1\)\n  let"):
        TASK.loss(torch.zeros(4), torch.zeros(4, 1))


# --- the measures ---


def tallied(batches: list[Any], std: list[float]) -> RegressionTally:
    tally = RegressionTally(std, device=CPU)
    for outputs, targets in batches:
        tally.add(torch.from_numpy(outputs), torch.from_numpy(targets), torch.tensor(float(len(targets))))
    return tally


@given(st.lists(PAIRS, min_size=1, max_size=4), st.sampled_from([[1.0, 1.0], [0.5, 20.0]]))
def test_measures_are_those_of_scikit_learn(batches: list[Any], std: list[float]) -> None:
    measured = tallied(batches, std).result()
    outputs, targets = (np.concatenate(parts).astype(np.float64) for parts in zip(*batches, strict=True))
    units = np.array(std)
    assert measured["mse"] == pytest.approx(metrics.mean_squared_error(targets * units, outputs * units))
    assert measured["mae"] == pytest.approx(metrics.mean_absolute_error(targets * units, outputs * units))
    assert measured["loss"] == pytest.approx(sum(len(t) ** 2 for _, t in batches) / len(targets))
    spread = targets.var(axis=0)
    if len(targets) > 1 and (spread[spread > 0] > 1e-9 * np.square(targets).mean()).all():
        assert measured["r2"] == pytest.approx(metrics.r2_score(targets, outputs), rel=1e-6, abs=1e-6)


@given(st.lists(PAIRS, min_size=1, max_size=2), st.lists(PAIRS, min_size=1, max_size=2))
def test_sums_over_two_sets_of_batches_are_those_of_both(first: list[Any], second: list[Any]) -> None:
    one, other, both = (tallied(batches, [1.0, 2.0]) for batches in (first, second, first + second))
    for total, more in zip(one.sums(), other.sums(), strict=True):
        total.add_(more)
    for name, value in one.result().items():
        torch.testing.assert_close(value, both.result()[name])
    one.clear()
    assert not any(total.any() for total in one.sums())


@pytest.mark.parametrize(("outputs", "r2"), [([0.1, 0.1, 0.1], 1.0), ([0.1, 0.1, 0.2], 0.0)])
def test_r2_of_targets_that_are_all_equal(outputs: list[float], r2: float) -> None:
    column = [np.array(values, np.float32).reshape(3, 1) for values in (outputs, [0.1] * 3)]
    assert tallied([tuple(column)], [1.0]).result()["r2"] == r2


def test_losses_are_standardised_and_measures_are_in_the_users_units(tmp_path: Path) -> None:
    trainer = trainer_of(TestRegression.task, metric="val_r2", cache_dir=str(tmp_path))
    trainer.begin({"lr": 1e-2, "batch_size": 16, "hidden": (32,), "loss": "mae"}, seed=0)
    steps = [trainer.step().metrics for _ in range(30)]
    variance = TASK.locate(None).located["target_std"][0] ** 2
    for measured in steps:
        assert measured["val_mse"] == pytest.approx(variance * measured["val_loss"], rel=1e-5)
    assert max(measured["val_r2"] for measured in steps) > 0.7
