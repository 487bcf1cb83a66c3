"""Trials on shards that lie in a folder."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hpo.errors import DataError, ExperimentError
from hpo.protocols import Dataset, Group, Setting, Step
from hpo.training import Classification, MultiLabel, Regression
from hpo.training.data import ChunkFolder
from hpo.training.feed import FedTask
from hpo.training.models import Mlp
from hpo.training.trainer import ModelTrainer
from tests.training import shards
from tests.training.data import tiny
from tests.training.fresh import exact
from tests.training.recorders import called_again

QUICK = {"hidden": (8,), "lr": 1e-2, "batch_size": 16}
CLASSES = ("cat", "dog", "owl")


def numbers(folder: Path, **changed: Any) -> Regression:
    return Regression(model=Mlp, data=ChunkFolder(**{"path": folder, "targets": "targets", **changed}))


def photos(folder: Path, *classes: tuple[str, ...]) -> Path:
    """Shards of three images of each class that they have."""
    for index, own in enumerate(classes):
        tiny.class_folders(folder / f"{index}", classes=own, parts=("",), side=8)
    return folder


def steps(trainer: ModelTrainer, num: int, config: Any = QUICK) -> list[Step]:
    trainer.begin(config, seed=0)
    return [trainer.step() for _ in range(num)]


# --- training ---


def test_shards_are_learnt_one_after_the_other_and_alike_in_either_form(tmp_path: Path) -> None:
    tasks = [
        numbers(shards.write_npz(tmp_path / "npz"), test_path=tmp_path / "npz" / "000.npz"),
        numbers(shards.write_parquet(tmp_path / "parquet"), targets="y"),
        numbers(tmp_path / "parquet", targets=("y",), features=("a", "b", "c")),
    ]
    config = {**QUICK, "epochs_per_chunk": 4}
    trained = []
    for task in tasks:
        task.check()
        task.check_config(config)
        trainer = shards.begun(task, tmp_path)
        trained.append(steps(trainer, 16, config))
    found = trained[0]
    assert [[exact(step) for step in own] for own in trained[1:]] == [[exact(step) for step in found]] * 2
    assert [step.chunk for step in found] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert [step.finished for step in found] == [False] * 15 + [True]
    assert [step.num_samples for step in found] == [48] * 4 + [64] * 12  # a fifth of 54 more, in batches of 16
    assert set(found[0].metrics) == set(tasks[0].metrics)
    assert {"val_old_loss", "val_new_loss", "val_loss"} < set(found[-1].metrics)
    assert found[-1].metrics["val_loss"] < 0.3 * found[0].metrics["val_loss"]
    assert found[0].notes["data"] == "one of 4 shards at a time, in the memory of each process"
    trainer = shards.begun(tasks[0], tmp_path)
    steps(trainer, 16, config)
    trainer.save(tmp_path / "a.pt")
    assert trainer.test(tmp_path / "a.pt")["test_loss"] < 0.3 * found[0].metrics["val_loss"]


def test_a_trial_goes_on_in_another_process_and_after_another_trial_as_if_nothing_had_happened(tmp_path: Path) -> None:
    task = Classification(model=Mlp, data=ChunkFolder(photos(tmp_path / "x", *[CLASSES] * 4)))
    config = {**QUICK, "batch_size": 2, "epochs_per_chunk": 2, "augment": ("flip", "noise"), "replay": 1.0}
    first = shards.begun(task, tmp_path / "cache")
    undisturbed = steps(first, 5, config)
    first.save(tmp_path / "a.pt")
    undisturbed += [first.step() for _ in range(3)]
    other = shards.begun(task, tmp_path / "cache")
    steps(other, 2, {**config, "split_seed": 1, "replay": 0.0})
    other.begin(config, seed=0)
    other.load(tmp_path / "a.pt")
    assert [exact(other.step()) for _ in range(3)] == [exact(step) for step in undisturbed[5:]]
    assert undisturbed[-1].finished


def test_a_shard_that_arrived_later_changes_nothing_before_it(tmp_path: Path) -> None:
    folder = shards.write_npz(tmp_path / "npz", num=3)
    task = numbers(folder)
    before = task.locate(None)
    trained = steps(shards.begun(task, tmp_path), 3)
    inputs, targets = shards.table(9)
    np.savez(folder / "003.npz", inputs=inputs, targets=targets)
    after = task.locate(None)
    assert after.pieces[:3] == before.pieces
    assert after.piece_names == ("000.npz", "001.npz", "002.npz", "003.npz")
    assert after.fingerprint != before.fingerprint
    assert task.as_of(after, 3) == before
    assert (task.num_chunks(before), task.num_chunks(after)) == (3, 4)
    again = steps(shards.begun(task, tmp_path), 4)
    assert [exact(replace(step, finished=False)) for step in again[:3]] == [
        exact(replace(step, finished=False)) for step in trained
    ]
    assert [trained[-1].finished, again[2].finished, again[3].finished] == [True, False, True]


def test_a_captured_step_serves_all_shards_and_the_next_trial(tmp_path: Path) -> None:
    task = numbers(shards.write_npz(tmp_path / "npz"))
    setting = Setting("cpu", 1, task.locate(None), tmp_path, "val_loss", sign=-1)
    used, plain = (ModelTrainer(task, setting, record=record) for record in (called_again, None))
    assert steps(used, 4)[0].notes["step"] == "captured"
    taken, expected = steps(used, 4, {**QUICK, "lr": 0.1}), steps(plain, 4, {**QUICK, "lr": 0.1})
    assert taken[0].notes["step"] == "captured before: it fits this trial, too"
    for one, two in zip(taken, expected, strict=True):
        assert one.metrics == pytest.approx(two.metrics, rel=1e-5)


def test_the_processes_of_a_group_share_the_batches_and_what_is_held_out(tmp_path: Path) -> None:
    task = numbers(shards.write_npz(tmp_path / "npz"))
    dataset = task.locate(None)

    def opened(group: Group | None) -> Any:
        return task.open(Setting("cpu", 1, dataset, tmp_path, "val_loss", group=group))

    whole, *own = [opened(None), *(opened(Group(rank, 2, "nowhere:1")) for rank in range(2))]
    settings = task.data_settings()
    for chunk in (1, 3):
        for name, part in whole.parts(settings, chunk=chunk).items():
            shared = [targets for source in own for _, targets in source.parts(settings, chunk=chunk)[name]]
            assert torch.equal(torch.cat(shared), torch.cat([targets for _, targets in part]))
    streams = [source.training(settings, batch_size=10, seed=0) for source in (whole, *own)]
    batches = [[targets.clone() for _, targets in stream] for stream in streams]
    for one, first, second in zip(*batches, strict=True):
        assert torch.equal(one, torch.cat([first, second]))
    assert len(torch.cat([targets for _, targets in whole.validation(settings)])) == 4 * 6


def test_features_are_normalised_by_the_train_samples_of_the_first_shard(tmp_path: Path) -> None:
    task = numbers(shards.write_npz(tmp_path / "npz"))
    source = task.open(Setting("cpu", 1, task.locate(None), tmp_path, "val_loss"))
    settings = task.data_settings(train_ratio=0.5)
    stream = source.training(settings, batch_size=30, seed=0)
    ((inputs, _),) = [(inputs.clone(), targets) for inputs, targets in stream]
    torch.testing.assert_close(inputs.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(3), rtol=0, atol=1e-5)
    ((later, _),) = [(inputs.clone(), targets) for inputs, targets in stream][:1]
    assert later.mean(0).abs().max() > 1e-3


def test_shards_may_lack_classes_that_were_named(tmp_path: Path) -> None:
    folder = photos(tmp_path / "x", ("cat",), ("dog", "owl"))
    task = Classification(model=Mlp, data=ChunkFolder(folder, classes=CLASSES, test_path=folder / "1"))
    trainer = shards.begun(task, tmp_path / "cache", metric="val_accuracy")
    assert steps(trainer, 2, {**QUICK, "batch_size": 2})[1].chunk == 2
    trainer.save(tmp_path / "a.pt")
    assert 0 <= trainer.test(tmp_path / "a.pt")["test_accuracy"] <= 1
    assert task.given_by(task.locate(None))["num_classes"] == 3
    labelled = shards.write_classes(tmp_path / "y", [["cat", "dog"], ["owl"] * 2])
    rows = Classification(model=Mlp, data=ChunkFolder(labelled, targets="targets", classes=CLASSES))
    assert rows.locate(None).located["told"] == {"num_outputs": 3, "classes": [*CLASSES]}


def test_images_in_npz_files_are_those_in_folders(tmp_path: Path) -> None:
    folder, arrays = photos(tmp_path / "folders", *[("cat", "dog")] * 2), tmp_path / "arrays"
    arrays.mkdir()
    for index in range(2):
        images = np.stack(
            [tiny.pixels(10 * label + number, height=8, width=8) for label in (0, 1) for number in range(3)]
        )
        np.savez(arrays / f"{index}.npz", images=images, labels=np.repeat(["cat", "dog"], 3))
    trained = [
        steps(shards.begun(Classification(model=Mlp, data=ChunkFolder(path)), tmp_path / "cache"), 2)
        for path in (folder, arrays)
    ]
    assert [exact(step) for step in trained[0]] == [exact(step) for step in trained[1]]
    grey = tmp_path / "grey"
    grey.mkdir()
    np.savez(grey / "0.npz", images=np.zeros((4, 6, 5), np.uint8), labels=np.array([0, 1, 10, 9]))
    dataset = Classification(model=Mlp, data=ChunkFolder(grey)).locate(None)
    assert (dataset.located["shape"], dataset.located["told"]["classes"]) == ([6, 5, 1], ["0", "1", "9", "10"])


def test_several_labels_a_row_are_learnt_from_shards(tmp_path: Path) -> None:
    labels = np.stack([np.arange(60) % 2, np.arange(60) % 3 == 0], axis=1)
    task = MultiLabel(model=Mlp, data=ChunkFolder(shards.write_npz(tmp_path / "x", targets=labels), targets="targets"))
    assert steps(shards.begun(task, tmp_path), 2)[1].metrics["val_old_loss"] > 0


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells the peak")
def test_eight_shards_need_no_more_memory_than_about_two(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(100_000, 100)).astype(np.float32)
    for name, rows, num in (("small", 1000, 2), ("large", 100_000, 8)):
        (tmp_path / name).mkdir()
        first = tmp_path / name / "0.npz"
        np.savez(first, inputs=inputs[:rows], targets=inputs[:rows, 0])
        for index in range(1, num):
            os.link(first, tmp_path / name / f"{index}.npz")
    shard_mb = inputs.nbytes / 2**20
    assert shards.peak_mb(tmp_path, replay=0.2) < 2.2 * shard_mb


# --- what is wrong with a shard ---


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _with_nan(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values[3] = np.nan
    return values


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": np.zeros((60, 2))}, r"001\.npz: its targets are \(2,\), but those of 000\.npz are \(1,\)"),
        ({"inputs": np.zeros((60, 4))}, r"001\.npz: its features are inputs \(4\), but .* 000\.npz are inputs \(3\)"),
        ({"inputs": np.zeros(60)}, r"001\.npz: the array 'inputs' has shape \(60,\), not \(rows, features\)"),
        ({"inputs": np.zeros((50, 3))}, r"001\.npz: 50 rows of 'inputs' and 60 of 'targets' are not as many"),
        ({"targets": _with_nan(np.zeros(60))}, r"001\.npz: 1 of 'targets' are missing or infinite"),
        (
            {"inputs": np.zeros((1, 3)), "targets": np.zeros(1)},
            r"001\.npz: the shard holds 1 samples, but one is to be",
        ),
        ({"targets": np.array(["a"] * 60)}, r"001\.npz: 'targets' holds 'a', which is no number"),
    ],
)
def test_a_shard_of_another_form_is_named(tmp_path: Path, changed: Any, message: str) -> None:
    folder = shards.write_npz(tmp_path / "x", num=2)
    inputs, targets = shards.table(1)
    np.savez(folder / "001.npz", **{"inputs": inputs, "targets": targets, **changed})
    with pytest.raises(DataError, match=message):
        numbers(folder).locate(None)


def test_a_shard_that_is_cut_off_is_named(tmp_path: Path) -> None:
    remedy = r"\n  look at the file; while it is being written, let its name end in \.tmp"
    for write, name, targets in ((shards.write_npz, "npz", "targets"), (shards.write_parquet, "parquet", "y")):
        folder = write(tmp_path / name, num=2)
        _cut(folder / f"001.{name}")
        with pytest.raises(DataError, match=rf"001\.{name}: the shard cannot be read \(.*\){remedy}"):
            numbers(folder, targets=targets).locate(None)


def test_a_shard_that_has_changed_since_is_named(tmp_path: Path) -> None:
    task = numbers(shards.write_npz(tmp_path / "x", num=2))
    trainer = shards.begun(task, tmp_path)
    trainer.begin(QUICK, seed=0)
    trainer.step()
    np.savez(tmp_path / "x" / "001.npz", inputs=np.zeros((60, 3)), targets=np.zeros(60))
    with pytest.raises(DataError, match=r"001\.npz: its fingerprint is \w+ here, but \w+ where the run was started"):
        trainer.step()
    (tmp_path / "x" / "001.npz").unlink()
    with pytest.raises(DataError, match=r"001\.npz: cannot be read: No such file"):
        trainer.step()


def test_a_value_that_is_missing_is_found_when_its_shard_comes(tmp_path: Path) -> None:
    inputs, _ = shards.table(0)
    task = numbers(shards.write_npz(tmp_path / "x", num=2, inputs=_with_nan(inputs)))
    with pytest.raises(DataError, match=r"000\.npz: 3 of 'inputs' are missing or infinite"):
        shards.begun(task, tmp_path)


@pytest.mark.parametrize("kind", ["images", "rows", "folders"])
def test_a_class_that_comes_later_is_named(tmp_path: Path, kind: str) -> None:
    data: ChunkFolder
    if kind == "folders":
        data, shard = ChunkFolder(photos(tmp_path / "x", ("cat", "dog"), ("cat", "dog", "owl"))), "1/owl"
    else:
        folder = shards.write_classes(tmp_path / "x", [["cat", "dog"], ["cat", "owl"]])
        data, shard = ChunkFolder(folder, targets="targets"), "1.npz"
        if kind == "images":
            data = ChunkFolder(folder)
            for path in folder.iterdir():
                labels = np.load(path)["targets"]
                np.savez(path, images=np.zeros((2, 4, 4, 3), np.uint8), labels=labels)
    with pytest.raises(
        DataError, match=rf"{shard}: .*'owl' is not one of the 2 classes that .*\n  name all classes from"
    ):
        Classification(model=Mlp, data=data).locate(None)


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    folder = photos(tmp_path / "x", ("cat", "dog"), ("cat", "dog"))
    (folder / "1" / "dog" / "0001.png").write_bytes(tiny.encoded(tiny.pixels(0, height=9, width=8)))
    task = Classification(model=Mlp, data=ChunkFolder(folder))
    trainer = shards.begun(task, tmp_path / "cache")
    trainer.begin({**QUICK, "batch_size": 2}, seed=0)
    trainer.step()
    with pytest.raises(
        DataError, match=r"1/dog/0001\.png: the image is 9 x 8 pixels, but those of the first shard are 8"
    ):
        trainer.step()
    scaled = Classification(model=Mlp, data=ChunkFolder(folder, size=6))
    found = steps(shards.begun(scaled, tmp_path / "cache"), 2, {**QUICK, "batch_size": 2})
    assert found[1].chunk == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 3), np.uint8)}, r"0\.npz: its images are uint8 of shape \(4, 3\), not uint8 \(images"),
        ({"images": np.zeros((4, 3, 3))}, r"0\.npz: its images are float64 of shape"),
        ({"inputs": np.zeros((4, 3))}, r"0\.npz: it holds no array 'images'\n  it holds labels, inputs"),
        ({"images": np.zeros((3, 4, 4), np.uint8)}, r"0\.npz: 3 images and 4 labels are not as many"),
        ({"images": np.zeros((4, 4, 4), np.uint8), "labels": np.zeros((4, 1))}, r"0\.npz: .* have shape \(4, 1\), not"),
    ],
)
def test_arrays_that_are_no_images_are_named(tmp_path: Path, arrays: Any, message: str) -> None:
    np.savez(tmp_path / "0.npz", **{"labels": np.array([0, 1, 0, 1]), **arrays})
    with pytest.raises(DataError, match=message):
        Classification(model=Mlp, data=ChunkFolder(tmp_path, num_classes=2)).locate(None)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (numbers(Path("x"), targets=()), "data.targets: nothing says what is to be predicted"),
        (numbers(Path("x"), num_classes=3), r"data\.num_classes: .* are given, but the task predicts no classes"),
        (numbers(Path("x"), path=""), r"data\.path: '' is not a path"),
    ],
)
def test_what_does_not_go_with_the_task_is_an_error(task: FedTask, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        task.check()


def test_files_without_columns_have_one_array_of_each(tmp_path: Path) -> None:
    folder = shards.write_npz(tmp_path / "x")
    for changed, where in (({"targets": ("a", "b")}, "targets"), ({"features": ("a", "b")}, "features")):
        with pytest.raises(ExperimentError, match=rf"data\.{where}: \('a', 'b'\) are not the name of one array"):
            numbers(folder, **changed).locate(None)


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = shards.write_parquet(tmp_path / "x")
    with pytest.raises(DataError, match=r"000\.parquet: it has no column 'z'\n  it has a, b, c, y"):
        numbers(folder, targets="z").locate(None)


def test_a_trial_without_a_test_part_cannot_be_tested(tmp_path: Path) -> None:
    trainer = shards.begun(numbers(shards.write_npz(tmp_path / "x")), tmp_path)
    steps(trainer, 1)
    trainer.save(tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"test: the data have no test part\n  name one more shard: .*test_path"):
        trainer.test(tmp_path / "a.pt")


def test_what_is_located_is_json(tmp_path: Path) -> None:
    dataset = numbers(shards.write_npz(tmp_path / "x"), test_path=tmp_path / "x" / "000.npz").locate(None)
    again = Dataset(**{**vars(dataset), "located": json.loads(json.dumps(dict(dataset.located)))})
    assert again == dataset
    assert dataset.located["num_train"] == 240
