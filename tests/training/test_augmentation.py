"""Augmentation as a trial has it: what mixed images are compared with, and that strengths are only numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from hpo.training import Classification
from hpo.training.classification import ConfusionTally
from hpo.training.data import Digits
from hpo.training.data.augment import AUGMENTATIONS, USUAL
from hpo.training.models import ConvNet, Mlp
from tests.training.test_stepping import CONFIG, steps, trainer_on

EVERYTHING = {**CONFIG, "augment": AUGMENTATIONS}
OTHERWISE: dict[str, float] = {name: getattr(USUAL, name) / 2 for name in AUGMENTATIONS}


def task() -> Classification:
    return Classification(model=ConvNet, data=Digits())


@given(st.floats(0, 1), st.floats(0, 0.9), st.integers(0, 2**32))
def test_the_loss_of_mixed_targets_is_the_mixed_loss(share: float, smoothing: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels, others = torch.randint(5, (2, 6), generator=generator)
    targets = torch.lerp(*(functional.one_hot(some, 5).double() for some in (labels, others)), share)
    loss, number = task().loss, torch.tensor(smoothing, dtype=torch.float64)
    of_labels, of_others = (loss(outputs, some, num_classes=5, label_smoothing=smoothing) for some in (labels, others))
    for label_smoothing in (smoothing, number):
        found = loss(outputs, targets, num_classes=5, label_smoothing=label_smoothing)
        torch.testing.assert_close(found, of_labels.lerp(of_others, share))


def test_the_loss_of_mixed_targets_in_bfloat16() -> None:
    outputs, targets = torch.randn(4, 3), torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [0, 0.1, 0.9], [0, 0, 1]])
    with torch.autocast("cpu", torch.bfloat16):
        found = task().loss(outputs.bfloat16(), targets, num_classes=3, label_smoothing=torch.tensor(0.1))
    expected = functional.cross_entropy(outputs, targets, label_smoothing=0.1)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_a_mixed_image_counts_as_its_larger_part() -> None:
    mixed, plain = (ConfusionTally(3, device=torch.device("cpu")) for _ in range(2))
    outputs = torch.eye(3)[[0, 1, 1, 2]]
    mixed.add(outputs, torch.tensor([[0.6, 0.4, 0], [0.7, 0.3, 0], [0, 1, 0], [0.2, 0.3, 0.5]]), torch.tensor(1.5))
    plain.add(outputs, torch.tensor([0, 0, 1, 2]), torch.tensor(1.5))
    for one, other in zip(mixed.sums(), plain.sums(), strict=True):
        assert torch.equal(one, other)
    assert float(mixed.result()["accuracy"]) == 0.75


def test_a_trial_with_everything_on_goes_on_bit_for_bit(tmp_path: Path) -> None:
    first = trainer_on("cpu", tmp_path, record=None)
    steps(first, EVERYTHING, num=1)
    first.save(tmp_path / "a.pt")
    expected = [first.step().metrics for _ in range(2)]
    torch.manual_seed(99)
    second = trainer_on("cpu", tmp_path, record=None)
    second.begin(EVERYTHING, seed=0)
    second.load(tmp_path / "a.pt")
    assert [second.step().metrics for _ in range(2)] == expected


def test_another_that_differs_in_strengths_takes_the_captured_step_over(tmp_path: Path) -> None:
    used, fresh = trainer_on("cpu", tmp_path), trainer_on("cpu", tmp_path)
    steps(used, EVERYTHING, seed=1)
    captured = used._trial.train_step
    taken = steps(used, {**EVERYTHING, **OTHERWISE}, seed=2)
    assert used._trial.train_step is captured
    assert taken[0].notes["step"] == "captured before: it fits this trial, too"
    new = steps(fresh, {**EVERYTHING, **OTHERWISE}, seed=2)
    assert [step.metrics for step in taken] == [step.metrics for step in new]
    assert [step.metrics for step in taken] != [step.metrics for step in steps(fresh, EVERYTHING, seed=2)]


@pytest.mark.parametrize("other", [{"mixup": 0}, {"rotate": 0.0}, {"noise": 0.0}])
def test_another_in_which_one_is_off_is_captured_anew(tmp_path: Path, other: dict[str, Any]) -> None:
    trainer = trainer_on("cpu", tmp_path)
    steps(trainer, EVERYTHING, num=1)
    captured = trainer._trial.train_step
    assert steps(trainer, {**EVERYTHING, **other}, num=1)[0].notes["step"] == "captured"
    assert trainer._trial.train_step is not captured


def test_mixed_batches_are_taken_in_pieces(tmp_path: Path) -> None:
    trainer = trainer_on("cpu", tmp_path, model=Mlp, record=None)
    config = {"batch_size": 32, "train_samples": 320, "mixup": 1.0, "cutmix": 1.0, "precision": "float32"}
    (whole,) = steps(trainer, config, num=1)
    (pieces,) = steps(trainer, {**config, "micro_batch_size": 10}, num=1)
    assert pieces.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-4)


@pytest.mark.gpu
def test_strengths_are_numbers_to_a_cuda_graph(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    from hpo.training.cuda_graph import cuda_graph

    trainer = trainer_on("cuda", tmp_path, record=cuda_graph)
    assert steps(trainer, EVERYTHING, seed=1)[0].notes["step"] == "captured"
    taken = steps(trainer, {**EVERYTHING, **OTHERWISE, "noise": 0.001}, seed=2)
    assert taken[0].notes["step"] == "captured before: it fits this trial, too"
    eager = trainer_on("cuda", tmp_path, record=None)
    expected = steps(eager, {**EVERYTHING, **OTHERWISE, "noise": 0.001}, seed=2)
    for step, other in zip(taken, expected, strict=True):
        assert step.metrics["train_loss"] == pytest.approx(other.metrics["train_loss"], rel=0.05)
