"""Trials on data that are all there and come in chunks: images, tables, and a user's own samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpo.errors import DataError, ExperimentError
from hpo.protocols import Group, Setting, Task
from hpo.training import ArrayTask, Classification, Regression
from hpo.training.data import Arrays, Digits, Samples
from hpo.training.data.split import split_of
from hpo.training.models import Mlp
from hpo.training.supervised import SupervisedTask
from tests.training import shards
from tests.training.fresh import exact
from tests.training.tables import CLASSES, NUMBERS, numbers

QUICK = {"hidden": (8,), "lr": 1e-2, "batch_size": 16}


def line() -> nn.Module:
    return nn.Linear(4, 2)


@dataclass(frozen=True)
class Parity(ArrayTask):
    """Which of two classes a row is of."""

    model: Any = line

    def samples(self) -> Samples:
        labels = np.arange(80) % 2
        return Samples(np.random.default_rng(0).normal(size=(80, 4)) + 3 * labels[:, None], labels)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


def images(**how: Any) -> Classification:
    return Classification(model=Mlp, data=Digits().in_chunks(5, **how))


GROWING: dict[str, SupervisedTask] = {
    "images": images(by="label", mode="replace"),
    "classes": Classification(model=Mlp, data=CLASSES.data.in_chunks(3, by="label", mode="replace", replay=0.5)),  # type: ignore[union-attr]
    "numbers": Regression(model=Mlp, data=Arrays(numbers).in_chunks(4, by="order")),
    "samples": Parity().in_chunks(2, by="label", mode="replace", replay=1.0),
}


def opened(task: SupervisedTask, cache_dir: Path, group: Group | None = None) -> Any:
    return task.open(Setting("cpu", 1, task.locate(None), cache_dir, "val_loss", sign=-1, group=group))


@pytest.mark.parametrize("task", GROWING.values(), ids=GROWING)
def test_a_trial_has_one_chunk_after_the_other(task: SupervisedTask, tmp_path: Path) -> None:
    config = {"lr": 1e-2, "batch_size": 16, "epochs_per_chunk": 2}
    task.check()
    task.check_config(config)
    num_chunks = task.num_chunks(task.locate(None))
    assert num_chunks is not None
    setting = Setting("cpu", 1, task.locate(None), tmp_path, "val_loss", sign=-1)
    trainer = task.begin(setting)
    trainer.begin(config, seed=0)
    steps = [trainer.step() for _ in range(2 * num_chunks)]
    assert [step.chunk for step in steps] == [index // 2 + 1 for index in range(2 * num_chunks)]
    assert [step.finished for step in steps] == [False] * (2 * num_chunks - 1) + [True]
    assert {name for name in steps[0].metrics if name.startswith("val_old")} == set()
    assert "val_old_loss" in steps[2].metrics
    # as a trial goes on in another process
    trainer.begin(config, seed=0)
    trainer.step()
    trainer.step()
    trainer.save(tmp_path / "a.pt")
    other = task.begin(setting)
    other.begin(config, seed=0)
    other.load(tmp_path / "a.pt")
    assert [exact(other.step()) for _ in steps[2:]] == [exact(step) for step in steps[2:]]


@pytest.mark.parametrize("task", GROWING.values(), ids=GROWING)
def test_what_is_held_out_is_that_of_the_chunks_so_far_and_shared(task: SupervisedTask, tmp_path: Path) -> None:
    settings = task.data_settings()
    whole, *own = (opened(task, tmp_path, group) for group in (None, *(Group(r, 2, "nowhere:1") for r in range(2))))
    sizes = []
    for chunk in range(1, (task.num_chunks(task.locate(None)) or 0) + 1):
        parts = whole.parts(settings, chunk=chunk)
        assert set(parts) == ({"new"} if chunk == 1 else {"old", "new"})
        num = {name: sum(len(targets) for _, targets in part) for name, part in parts.items()}
        assert num.get("old", 0) == sum(sizes)
        sizes.append(num["new"])
        for name, part in parts.items():
            got = torch.cat([targets for source in own for _, targets in source.parts(settings, chunk=chunk)[name]])
            assert torch.equal(got, torch.cat([targets for _, targets in part]))
    assert sum(sizes) == sum(len(targets) for _, targets in whole.validation(settings))


def test_an_epoch_has_the_classes_of_its_chunk_and_some_of_those_before(tmp_path: Path) -> None:
    settings = GROWING["images"].data_settings(epochs_per_chunk=1)
    for mode, replay, expected in (("replace", 0.0, [2, 2, 2, 2, 2]), ("cumulative", None, [2, 4, 6, 8, 10])):
        source = opened(images(by="label", mode=mode, replay=replay), tmp_path)
        stream = source.training(settings, batch_size=16, seed=0)
        seen = [{int(label) for _, labels in stream for label in labels} for _ in range(5)]
        assert [len(labels) for labels in seen] == expected
        assert seen[0] == {0, 1}
    source = opened(images(by="label", mode="replace", replay=1.0), tmp_path)
    stream = source.training(settings, batch_size=16, seed=0)
    sizes = [len([*stream]) for _ in range(2)]
    assert sizes[1] > 1.8 * sizes[0]


def test_a_table_is_normalised_by_the_train_rows_of_its_first_chunk(tmp_path: Path) -> None:
    task = GROWING["numbers"]
    source, settings = opened(task, tmp_path), task.data_settings(train_ratio=0.5)
    inputs = torch.cat([inputs.clone() for inputs, _ in source.training(settings, batch_size=10, seed=0)])
    assert len(inputs) == 10
    torch.testing.assert_close(inputs.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(3), rtol=0, atol=1e-5)
    rows = Arrays(numbers).read(None).held_out(0.2)
    first = rows.targets[:20]  # by order, of 80
    assert task.locate(None).located["target_mean"] == pytest.approx([first.mean()])
    assert task.locate(None).located["target_std"] == pytest.approx([first.std()])
    assert NUMBERS.locate(None).located["target_mean"] == pytest.approx([rows.targets.mean()])
    assert len(split_of(np.zeros(80, np.int64), settings).train_indices) == 40


def test_what_to_replay_is_a_hyper_parameter_unless_chunks_add_up() -> None:
    images(mode="replace").check_config({"replay": 0.4, "lr": 1e-3})
    growing: list[Task] = [images(), Parity().in_chunks(2), Regression(model=Mlp, data=Arrays(numbers).in_chunks(2))]
    for task in growing:
        for name in ("replay", "data.replay"):
            with pytest.raises(
                ExperimentError, match=rf"{name}: 0\.4 is given, but cumulative chunks hold all earlier"
            ):
                task.check_config({name: 0.4})
        task.check_config({"replay": None})
    with pytest.raises(ExperimentError, match="replay"):
        Classification(model=Mlp, data=Digits()).check_config({"replay": 0.4})


def test_samples_that_do_not_grow_are_described_as_ever() -> None:
    assert "chunks" not in Parity().describe()
    assert Parity().in_chunks(2).describe()["chunks"]["num_chunks"] == 2


def test_what_cannot_be_divided_is_named_where_it_was_declared() -> None:
    with pytest.raises(ExperimentError, match=r"data\.mode: 'all' is not one of 'cumulative', 'replace'"):
        images(mode="all").check()
    with pytest.raises(ExperimentError, match=r"mode: 'all' is not one of"):
        Parity().in_chunks(2, mode="all").check()
    with pytest.raises(ExperimentError, match=r"data\.by: 'label' divides by classes, and the targets are none"):
        Regression(model=Mlp, data=Arrays(numbers).in_chunks(2, by="label")).locate(None)
    with pytest.raises(ExperimentError, match=r"data\.num_chunks: 3 chunks are more than the 2 classes"):
        Parity().in_chunks(3, by="label").locate(None)
    with pytest.raises(ExperimentError, match=r"data\.by: the sizes add up to 30, but the train part has 1,433"):
        images(by=(10, 5, 5, 5, 5)).locate(None)


def test_too_few_samples_for_the_chunks_are_named(tmp_path: Path) -> None:
    trainer = shards.begun(images(by="random"), tmp_path)
    with pytest.raises(
        DataError, match=r"data\.num_chunks: chunk \d of 5 has no sample that is held out\n  .*val_samp"
    ):
        trainer.begin({**QUICK, "val_samples": 4}, seed=0)
