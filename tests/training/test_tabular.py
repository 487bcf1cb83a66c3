from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from hpo.errors import DataError, ExperimentError
from hpo.protocols import Dataset, Group, Setting
from hpo.training import Classification, Regression
from hpo.training.data import Arrays, Samples, SklearnTable
from hpo.training.data.rows import Rows
from hpo.training.data.split import split_of
from hpo.training.feed import FedTask
from hpo.training.models import Mlp
from hpo.training.tabular import Classes, Features, Labels, Quantities, TableSettings
from hpo.training.trainer import ModelTrainer
from tests.training.recorders import called_again, cuda_graph_or_skip
from tests.training.tables import CLASSES, LABELS, NUMBERS, numbers
from tests.training.test_device_only import CUDA, pretending  # noqa: F401

CPU = torch.device("cpu")
QUICK = {"hidden": (8,), "lr": 1e-2, "batch_size": 16}


TASKS: dict[str, FedTask] = {"classes": CLASSES, "numbers": NUMBERS, "labels": LABELS}


def setting(dataset: Dataset, *, group: Group | None = None, device: str = "cpu") -> Setting:
    return Setting(device, 1, dataset, Path("no cache"), "val_loss", sign=-1, group=group)


def begun(task: FedTask, **how: Any) -> ModelTrainer:
    trainer = task.begin(setting(task.locate(None), **how))
    assert isinstance(trainer, ModelTrainer)
    return trainer


# --- the three tasks on tables ---


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_table_is_learnt_and_tested(task: FedTask, tmp_path: Path) -> None:
    task.check()
    task.check_config({**QUICK, "min_std": 1e-6})
    trainer = begun(task)
    trainer.begin(QUICK, seed=0)
    steps = [trainer.step() for _ in range(25)]
    assert set(steps[0].metrics) == set(task.metrics)
    assert steps[-1].metrics["val_loss"] < 0.5 * steps[0].metrics["val_loss"]
    assert steps[0].num_samples == 64
    assert steps[0].notes["data"] == "in the memory of each process"
    trainer.save(tmp_path / "a.pt")
    tested = trainer.test(tmp_path / "a.pt")
    assert {f"test_{name}" for name in task.measures} == set(tested)
    assert tested["test_loss"] < 0.7 * steps[0].metrics["val_loss"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_is_located_is_json_and_enough_to_build_the_model(task: FedTask) -> None:
    dataset = task.locate(None)
    assert dataset == task.locate(None)
    assert json.loads(json.dumps(dict(dataset.located))) == dict(dataset.located)
    given = task.given_by(dataset)
    assert given["in_features"] == 3
    outputs = {"classes": 3, "numbers": 1, "labels": 2}[next(name for name, other in TASKS.items() if other is task)]
    assert given["num_outputs"] == given["out_features"] == given["num_classes"] == outputs
    assert task.recipe({}, given).model()(torch.zeros(5, 3)).shape == (5, outputs)
    assert task.checkpoint_mb({}, dataset) > 0


def test_other_data_than_the_run_was_started_with_are_refused() -> None:
    task = TASKS["numbers"]
    dataset = task.locate(None)
    other = Dataset(dataset.name, "0123456789abcdef", located=dataset.located)
    with pytest.raises(DataError, match=rf"arrays: its fingerprint is {dataset.fingerprint} here, but 0123456789abc"):
        task.begin(setting(other))


def test_scikit_learns_classes_are_learnt() -> None:
    trainer = begun(Classification(model=Mlp, data=SklearnTable("iris")))
    trainer.begin({**QUICK, "train_ratio": 0.7}, seed=0)
    assert max(trainer.step().metrics["val_accuracy"] for _ in range(15)) > 0.85


def test_data_of_another_kind_are_an_error() -> None:
    with pytest.raises(ExperimentError, match=r"data: 'x' is no table\n  give one, e\.g\. data=TableFile"):
        Regression(model=Mlp, data="x").check()  # type: ignore[arg-type]
    with pytest.raises(ExperimentError, match=r"data\.title: 'x' is not one of 'diabetes'"):
        Regression(model=Mlp, data=SklearnTable("x")).check()


def test_a_table_without_a_test_part_cannot_be_tested(tmp_path: Path) -> None:
    trainer = begun(Regression(model=Mlp, data=Arrays(numbers, test_ratio=0)))
    trainer.begin(QUICK, seed=0)
    assert trainer.step().num_samples == 80
    trainer.save(tmp_path / "a.pt")
    with pytest.raises(DataError, match="test: the data have no test part\n  give them one, or a test_ratio above 0"):
        trainer.test(tmp_path / "a.pt")


def test_a_min_std_that_is_none_is_an_error() -> None:
    with pytest.raises(ExperimentError, match="min_std: 0 is not a number above 0"):
        TASKS["numbers"].check_config({"min_std": 0})


# --- normalisation ---


def test_features_are_normalised_by_the_rows_that_are_trained_on() -> None:
    task = TASKS["numbers"]
    source = task.open(setting(task.locate(None)))
    settings = TableSettings(train_ratio=0.5, split_seed=3)
    stream = source.training(settings, batch_size=40, seed=0)
    ((inputs, _),) = [(inputs.clone(), targets) for inputs, targets in stream]
    torch.testing.assert_close(inputs.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(3), rtol=0, atol=1e-5)
    held = torch.cat([inputs for inputs, _ in source.validation(settings)])
    assert len(held) == 40
    assert held.mean(0).abs().max() > 1e-3
    same = torch.cat([inputs for inputs, _ in source.validation(TableSettings(train_ratio=0.5, split_seed=3))])
    assert torch.equal(held, same)


def test_the_test_part_is_normalised_as_the_trial_was() -> None:
    task = TASKS["numbers"]
    source = task.open(setting(task.locate(None)))
    samples = Arrays(numbers).read(None).held_out(0.2)
    assert samples.test is not None
    for settings in (TableSettings(), TableSettings(train_samples=10)):
        rows = samples.inputs[split_of(np.zeros(80, np.int64), settings).train_indices]
        expected = (samples.test.inputs - rows.mean(0)) / rows.std(0)
        tested = torch.cat([inputs for inputs, _ in source.testing(settings)])
        np.testing.assert_allclose(tested, expected, rtol=1e-4, atol=1e-5)


@given(
    st_numpy.arrays(np.float64, (12, 3), elements=st.floats(-1e6, 1e6, width=32)),
    st.sets(st.integers(0, 11), min_size=1),
    st.sampled_from([1e-3, 0.5, 10.0]),
)
def test_normalised_is_less_the_mean_by_the_deviation(table: Any, chosen: set[int], min_std: float) -> None:
    indices = np.array(sorted(chosen))
    features = Features(table, device=CPU)
    scaling = features.scaling(indices, TableSettings(min_std=min_std))
    data = Rows(Samples(features.stored(table), np.zeros(12)), device=CPU, is_scaled=True)
    got, _ = data.take(torch.arange(12), scaling)
    rows = table[indices]
    expected = (table - rows.mean(0)) / np.maximum(rows.std(0), min_std)
    # float32 of numbers near 1, then a factor: what is squashed into 1e-7 of the whole is lost, and no more
    factor = scaling.factor_F.numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(factor).max()))


def test_years_keep_their_differences() -> None:
    years = 1_700_000_000 + np.arange(10.0).reshape(10, 1)
    features = Features(years, device=CPU)
    scaling = features.scaling(np.arange(10), TableSettings())
    normalised = scaling.of(torch.from_numpy(features.stored(years)))
    expected = (np.arange(10) - 4.5) / np.arange(10).std()
    assert normalised.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_feature_that_is_constant_where_it_trains_is_not_blown_up() -> None:
    inputs = np.array([[1.0], [1.0], [1.0], [1.5]])
    features = Features(inputs, device=CPU)
    stored = torch.from_numpy(features.stored(inputs))
    for min_std, last in ((1e-3, 500.0), (1.0, 0.5)):
        scaling = features.scaling(np.array([0, 1, 2]), TableSettings(min_std=min_std))
        assert scaling.of(stored).flatten().tolist() == pytest.approx([0, 0, 0, last], abs=1e-3)


# --- what targets mean ---


def test_classes_are_sorted_and_kept_in_proportion() -> None:
    targets = np.array([3, 1, 1, 7, 1])
    told = Classes().told(targets, where="x")
    assert told == {"num_outputs": 3, "classes": ["1", "3", "7"]}
    assert Classes().coded(targets, told, where="x").tolist() == [1, 0, 0, 2, 0]
    assert Classes().strata(targets).tolist() == [1, 0, 0, 2, 0]
    assert Classes().told(np.array([10.0, 9.0]), where="x")["classes"] == ["9", "10"]
    dataset = TASKS["classes"].locate(None)
    assert dataset.located["classes"] == ["high", "low", "middle"]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20))
def test_quantities_are_standardised_and_can_be_told_back(values: list[float]) -> None:
    targets = np.array(values)
    told = Quantities().told(targets, where="x")
    coded = Quantities().coded(targets, told, where="x")
    assert coded.shape == (len(values), 1)
    back = coded[:, 0].astype(np.float64) * told["target_std"] + told["target_mean"]
    np.testing.assert_allclose(back, targets, rtol=1e-5, atol=1e-5 * told["target_std"][0])


def test_labels_are_zeros_and_ones() -> None:
    targets = np.array([[True, False], [True, True]])
    assert Labels().told(targets, where="x") == {"num_outputs": 2}
    assert Labels().coded(targets, {}, where="x").tolist() == [[1, 0], [1, 1]]
    assert Labels().strata(targets) is None


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        (Classes(), [[1], [2]], r"x: targets have shape \(2, 1\), not \(rows,\)\n  .*MultiLabel"),
        (Classes(), [1, 1], r"x: 1 are not two or more classes\n  .*Regression"),
        (Classes(), [0.5, 1, 2, 3, 4, 5, 6], r"x: 0\.5, 1\.0, 2\.0, 3\.0, 4\.0, … are not two or more classes"),
        (Quantities(), ["a", "b"], "x: 'targets' holds 'a', which is no number"),
        (Labels(), [0, 1], r"x: targets are not rows of 0 and 1, but of shape \(2,\) with 0, 1\n  .*Classification"),
        (Labels(), [[0, 2]], r"x: targets are not rows of 0 and 1, but of shape \(1, 2\) with 0, 2"),
    ],
)
def test_targets_of_another_kind_are_an_error(kind: Any, targets: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kind.told(np.array(targets), where="x")


def test_a_class_of_the_test_part_alone_is_an_error() -> None:
    with pytest.raises(DataError, match="x: class '9' is not in the train part\n  give both parts the same classes"):
        Classes().coded(np.array([9]), {"classes": ["1", "2"]}, where="x")


# --- several processes, captured steps, the device ---


@pytest.mark.parametrize("size", [2, 3])
def test_the_processes_of_a_group_share_the_rows(size: int) -> None:
    task = TASKS["numbers"]
    dataset = task.locate(None)
    whole = task.open(setting(dataset))
    shares = [task.open(setting(dataset, group=Group(rank, size, "nowhere:1"))) for rank in range(size)]
    assert all(source.is_shared for source in shares)
    expected = torch.cat([targets for _, targets in whole.validation(TableSettings())])
    got = torch.cat([targets for source in shares for _, targets in source.validation(TableSettings())])
    assert torch.equal(got, expected)


OTHERS = [
    ("numbers", {"loss": "huber", "huber_delta": 0.5}, {"huber_delta": 2.0, "lr": 0.1}),
    ("numbers", {}, {"split_seed": 3, "min_std": 2.0}),
    ("labels", {"pos_weight": 2.0}, {"pos_weight": 5.0, "train_samples": 40}),
    ("classes", {"label_smoothing": 0.1}, {"label_smoothing": 0.2, "split_seed": 1}),
]


@pytest.mark.parametrize(("name", "first", "other"), OTHERS)
def test_a_captured_step_serves_trials_that_differ_in_numbers(
    name: str, first: dict[str, Any], other: dict[str, Any]
) -> None:
    _serves(name, {**QUICK, **first}, {**QUICK, **first, **other}, record=called_again, device="cpu", tolerance=0)


def _serves(
    name: str, first: dict[str, Any], other: dict[str, Any], *, record: Any, device: str, tolerance: float
) -> None:
    task = TASKS[name]
    where = setting(task.locate(None), device=device)
    used, fresh = (ModelTrainer(task, where, record=record) for _ in range(2))
    used.begin(first, seed=1)
    assert used.step().notes["step"] == "captured"
    used.begin(other, seed=2)
    fresh.begin(other, seed=2)
    taken, new = [used.step(), used.step()], [fresh.step(), fresh.step()]
    assert taken[0].notes["step"] == "captured before: it fits this trial, too"
    for one, two in zip(taken, new, strict=True):
        assert one.metrics == pytest.approx(two.metrics, rel=tolerance, abs=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize(("name", "first", "other"), OTHERS)
def test_a_cuda_graph_serves_trials_that_differ_in_numbers(
    name: str, first: dict[str, Any], other: dict[str, Any]
) -> None:
    config = {**QUICK, **first, "precision": "float32"}
    _serves(name, config, {**config, **other}, record=cuda_graph_or_skip, device="cuda", tolerance=1e-3)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("numbers", {"loss": "mae"}),
        ("numbers", {"loss": "huber", "huber_delta": 0.5}),
        ("labels", {"pos_weight": 2.0}),
        ("labels", {}),
        ("classes", {}),
    ],
)
def test_a_step_stays_on_the_device(request: pytest.FixtureRequest, name: str, config: dict[str, Any]) -> None:
    task = TASKS[name]
    given = task.given_by(task.locate(None))
    request.getfixturevalue("pretending")
    recipe = task.recipe(config, given)
    targets = {"numbers": np.zeros((64, 1)), "labels": np.zeros((64, 2)), "classes": np.arange(64) % 3}[name]
    data = Rows(Samples(np.zeros((64, 3)), targets), device=CUDA, is_scaled=True)
    buffers = data.buffers(16)
    inputs, aims = data.take(buffers.rows_B, buffers.scaling)
    with torch.device(CUDA):
        outputs = recipe.model()(inputs)
    on_device = {name: torch.full((), value, device=CUDA) for name, value in recipe.loss_numbers.items()}
    loss = recipe.loss(outputs, aims, **on_device)
    tally = task.tally(given, device=CUDA)
    tally.add(outputs.detach(), aims, loss.detach())
    for value in [loss, *tally.result().values()]:
        assert value.device == CUDA
