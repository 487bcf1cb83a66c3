from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from sklearn import metrics
from torch.nn import functional

from hpo.errors import ExperimentError
from hpo.training import MultiLabel
from hpo.training.data import Arrays
from hpo.training.models import Mlp
from hpo.training.multi_label import LabelTally
from tests.training.fresh import trainer_of

CPU = torch.device("cpu")


def table() -> tuple[NDArray[Any], NDArray[Any]]:
    inputs = np.random.default_rng(0).normal(size=(300, 4))
    return inputs, (inputs[:, :3] > 0.8).astype(int)


def above() -> MultiLabel:
    return MultiLabel(model=Mlp, data=Arrays(table))


TASK = above()
LABELS = st_numpy.arrays(np.bool_, st.tuples(st.integers(1, 6), st.just(3)))
PAIRS = LABELS.flatmap(lambda true: st.tuples(st.just(true), st_numpy.arrays(np.bool_, true.shape)))
BATCHES = st.lists(PAIRS, min_size=1, max_size=4)


def tallied(batches: list[Any]) -> LabelTally:
    tally = LabelTally(3, device=CPU)
    for true, said in batches:
        logits = torch.where(torch.from_numpy(said), 0.5, -0.5)
        tally.add(logits, torch.from_numpy(true).float(), torch.tensor(float(len(true))))
    return tally


@given(BATCHES)
def test_measures_are_those_of_scikit_learn(batches: list[Any]) -> None:
    measured = tallied(batches).result()
    true, said = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert measured["accuracy"] == pytest.approx(1 - metrics.hamming_loss(true, said))
    assert measured["exact_match"] == pytest.approx(metrics.accuracy_score(true, said))
    assert measured["f1"] == pytest.approx(metrics.f1_score(true, said, average="macro", zero_division=0))
    assert measured["micro_f1"] == pytest.approx(metrics.f1_score(true, said, average="micro", zero_division=0))
    assert measured["loss"] == pytest.approx(sum(len(t) ** 2 for t, _ in batches) / len(true))


@given(BATCHES, BATCHES)
def test_sums_over_two_sets_of_batches_are_those_of_both(first: list[Any], second: list[Any]) -> None:
    one, other, both = (tallied(batches) for batches in (first, second, first + second))
    for total, more in zip(one.sums(), other.sums(), strict=True):
        total.add_(more)
    assert one.result() == both.result()
    one.clear()
    assert not any(total.any() for total in one.sums())


@given(LABELS, st.sampled_from([0.5, 1.0, 4.0]))
def test_the_loss_is_that_of_pytorch(true: NDArray[np.bool_], weight: float) -> None:
    targets = torch.from_numpy(true).float()
    outputs = torch.linspace(-3, 3, targets.numel()).view_as(targets)
    expected = functional.binary_cross_entropy_with_logits(outputs, targets, pos_weight=torch.full((3,), weight))
    for pos_weight in (weight, torch.tensor(weight)):
        torch.testing.assert_close(TASK.loss(outputs, targets, pos_weight=pos_weight), expected)


def test_rare_labels_are_found_sooner_with_a_weight_which_validation_does_without(tmp_path: Path) -> None:
    trainer = trainer_of(f"{__name__}:above", metric="val_f1", cache_dir=str(tmp_path))

    def trained(pos_weight: float, lr: float, epochs: int) -> dict[str, float]:
        trainer.begin({"lr": lr, "batch_size": 32, "hidden": (16,), "pos_weight": pos_weight}, seed=0)
        return dict([trainer.step() for _ in range(epochs)][-1].metrics)

    plain, weighted = (trained(pos_weight, 1e-30, 1) for pos_weight in (1.0, 5.0))
    assert plain["val_loss"] == weighted["val_loss"]
    assert plain["train_loss"] < weighted["train_loss"]
    assert trained(4.0, 1e-2, 15)["val_f1"] > 0.8


def test_outputs_of_another_shape_are_an_error() -> None:
    with pytest.raises(ExperimentError, match=r"model: its outputs have shape \(4, 2\), not .* = \(4, 3\)"):
        TASK.loss(torch.zeros(4, 2), torch.zeros(4, 3))


def test_a_weight_that_is_none_is_an_error() -> None:
    with pytest.raises(ExperimentError, match="pos_weight: 0 is not a number above 0"):
        TASK.check_config({"pos_weight": 0})
