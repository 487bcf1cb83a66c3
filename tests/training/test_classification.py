from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics
from torch import Tensor, nn

from hpo.errors import DataError, ExperimentError
from hpo.protocols import Setting, Trainer
from hpo.training import Classification
from hpo.training.classification import ConfusionTally
from hpo.training.data import Digits, ImageFolder
from hpo.training.models import ConvNet, Mlp
from tests.training.contract import TrainerContract
from tests.training.fresh import trainer_of

SMALL = {"filters": (8, 16), "batch_size": 64, "train_samples": 300}


def small_net() -> Classification:
    return Classification(model=ConvNet, data=Digits())


class TestClassification(TrainerContract):
    task = "tests.training.test_classification:small_net"
    config: ClassVar = {**SMALL, "lr": 3e-3, "dropout": 0.2, "augment": ("crop", "flip"), "label_smoothing": 0.1}
    other_config: ClassVar = {**SMALL, "batch_size": 32, "optimizer": "sgd", "momentum": 0.9, "train_ratio": 0.5}
    metric = "val_accuracy"


@pytest.fixture
def digits(tmp_path: Path) -> Trainer:
    return trainer_of("tests.training.test_classification:small_net", metric="val_accuracy", cache_dir=str(tmp_path))


def test_digits_are_learnt(digits: Trainer, tmp_path: Path) -> None:
    digits.begin({"filters": (16, 32), "lr": 1e-2, "batch_size": 64}, seed=0)
    steps = [digits.step() for _ in range(5)]
    assert max(step.metrics["val_accuracy"] for step in steps) > 0.9
    assert steps[-1].metrics["train_loss"] < steps[0].metrics["train_loss"]
    digits.save(tmp_path / "a.pt")
    assert digits.test(tmp_path / "a.pt")["test_accuracy"] > 0.9


def test_fewer_samples_are_trained_on_but_as_many_validated(digits: Trainer) -> None:
    digits.begin({**SMALL, "train_samples": None, "lr": 1e-3}, seed=0)
    whole = digits.step().num_samples
    digits.begin(SMALL, seed=0)
    assert digits.step().num_samples < 320 < whole


def test_all_trials_of_a_study_validate_on_the_same_samples(digits: Trainer) -> None:
    def validated(seed: int, **config: Any) -> list[Tensor]:
        digits.begin({**SMALL, **config}, seed=seed)
        return [labels for _, labels in digits._running.held_out.parts(None)[""]]  # type: ignore[attr-defined]

    assert all(map(torch.equal, validated(1), validated(2)))
    assert not all(map(torch.equal, validated(1), validated(1, split_seed=5)))


@given(
    num_classes=st.integers(2, 6),
    batches=st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1), min_size=1, max_size=4),
)
def test_measures_are_those_of_scikit_learn(num_classes: int, batches: list[list[tuple[int, int]]]) -> None:
    tally = ConfusionTally(num_classes, device=torch.device("cpu"))
    pairs = [(true % num_classes, said % num_classes) for batch in batches for true, said in batch]
    for batch in batches:
        targets = torch.tensor([true % num_classes for true, _ in batch])
        outputs = nn.functional.one_hot(torch.tensor([said % num_classes for _, said in batch]), num_classes).float()
        tally.add(outputs, targets, torch.tensor(float(len(batch))))
    measured = tally.result()
    true, said = np.array(pairs).T
    rest = {"labels": range(num_classes), "average": "macro", "zero_division": 0}
    assert measured["accuracy"] == pytest.approx(metrics.accuracy_score(true, said))
    assert measured["precision"] == pytest.approx(metrics.precision_score(true, said, **rest))
    assert measured["recall"] == pytest.approx(metrics.recall_score(true, said, **rest))
    assert measured["f1"] == pytest.approx(metrics.f1_score(true, said, **rest))
    assert measured["loss"] == pytest.approx(sum(len(b) ** 2 for b in batches) / len(pairs))


def test_label_smoothing_is_in_the_training_loss_alone(digits: Trainer) -> None:
    def losses(label_smoothing: float) -> dict[str, float]:
        digits.begin({**SMALL, "lr": 1e-30, "label_smoothing": label_smoothing}, seed=0)
        return dict(digits.step().metrics)

    plain, smooth = losses(0.0), losses(0.5)
    assert plain["val_loss"] == smooth["val_loss"]
    assert plain["train_loss"] != smooth["train_loss"]


def test_a_model_that_views_images_trains_without_channels_last(tmp_path: Path) -> None:
    trainer = trainer_of(f"{__name__}:viewing", metric="val_accuracy", cache_dir=str(tmp_path))
    trainer.begin({"train_samples": 200, "channels_last": False}, seed=0)
    assert trainer.step().epoch == 1
    trainer.begin({"train_samples": 200}, seed=0)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        trainer.step()


class Viewing(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.linear = nn.Linear(4 * 64, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.linear(self.conv(images_BCHW).view(len(images_BCHW), -1))


def viewing() -> Classification:
    return Classification(model=Viewing, data=Digits())


def test_data_without_a_test_part_cannot_be_tested(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    task = Classification(model=functools.partial(ConvNet, filters=(4,)), data=ImageFolder(tmp_path / "data"))
    trainer = task.begin(Setting("cpu", 1, task.locate(None), tmp_path / "cache", "val_loss", -1))
    trainer.begin({"train_ratio": 0.6, "precision": "float32"}, seed=0)
    assert trainer.step().num_samples == 6
    trainer.save(tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"test: the data set has no test part\n  add test/<class>/"):
        trainer.test(tmp_path / "a.pt")


# --- configurations ---


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batch_size": 0}, r"batch_size: 0 is not an integer of at least 1"),
        ({"batch_size": 12.5}, r"batch_size: 12\.5 is not an integer"),
        ({"epochs": 0}, r"epochs: 0 is not an integer of at least 1, or None"),
        ({"precision": "half"}, r"precision: 'half' is not one of 'auto', 'float32', 'bfloat16'"),
        ({"label_smoothing": 1}, r"label_smoothing: 1 is not a number of at least 0 and below 1"),
        ({"train_ratio": 1.0}, r"train_ratio: 1\.0 is not a number above 0 and below 1"),
        ({"train_samples": 0}, r"train_samples: 0 is not an integer of at least 1, or None"),
        ({"split_seed": -1}, r"split_seed: -1 is not an integer of at least 0"),
        ({"augment": ("blur",)}, r"augment: \('blur',\) is not a tuple, each one of 'crop', 'flip', 'rotate', "),
        ({"crop": 0.6}, r"crop: 0\.6 is not a number of at least 0 and of at most 0\.5, or None\n  e\.g\. crop=0\.125"),
        ({"rotate": 200}, r"rotate: 200 is not a number of at least 0 and of at most 180, or None"),
        ({"mixup": -1}, r"mixup: -1 is not a number of at least 0 and of at most 100, or None"),
        ({"augment": "crop"}, r"augment: 'crop' is not a tuple"),
        ({"filters": ()}, r"filters: \(\) is not a tuple of at least 1 parts, each an integer of at least 1"),
        ({"kernel_size": 4}, r"kernel_size: 4 is not an odd integer"),
        ({"dropout": 1.0}, r"dropout: 1\.0 is not a number of at least 0 and below 1"),
        ({"num_classes": 5}, r"num_classes: ConvNet gets it from the task"),
        ({"momentum": 0.9}, r"momentum: optimizer='adam' does not take it; .*\n.*\.when\(optimizer=\['sgd', "),
        ({"droput": 0.1}, r"droput: no part takes it\n  did you mean 'dropout'\?"),
        (
            {"optimizer": "sgd", "nesterov": True},
            r"optimizer: sgd refuses its settings: Nesterov momentum requires .*\n  given were \{'nesterov': True\}",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        small_net().check_config(config)


def test_every_hyper_parameter_has_its_taker() -> None:
    small_net().check_config(
        {"lr": 1, "batch_size": 1, "epochs": None, "train_samples": None, "dropout": 0, "augment": (), "amsgrad": True}
    )


def test_a_model_that_is_a_module_is_an_error() -> None:
    with pytest.raises(
        ExperimentError, match=r"model: Flatten\(.*\) is not something that builds a model\n  give the class"
    ):
        Classification(model=nn.Flatten(), data=Digits()).check()


def test_a_model_without_a_signature_is_an_error() -> None:
    with pytest.raises(
        ExperimentError, match=r"model: <class 'dict'> does not say which arguments it takes\n  wrap it"
    ):
        Classification(model=dict, data=Digits()).check()  # type: ignore[arg-type]


def test_a_wrong_setting_of_the_data_is_an_error() -> None:
    with pytest.raises(ExperimentError, match=r"data\.size: 0 is not an integer"):
        Classification(model=ConvNet, data=ImageFolder("photos", size=0)).check()


def test_data_of_no_kind_it_knows_are_an_error() -> None:
    with pytest.raises(ExperimentError, match=r"data: 'digits' is neither images nor a table\n  give one, e\.g\."):
        Classification(model=ConvNet, data="digits").check()  # type: ignore[arg-type]


def test_outputs_of_another_shape_are_an_error(tmp_path: Path) -> None:
    trainer = trainer_of(f"{__name__}:seven_outputs", metric="val_loss", cache_dir=str(tmp_path))
    trainer.begin({}, seed=0)
    with pytest.raises(
        ExperimentError, match=r"model: its outputs have shape \(128, 7\), not .* = \(128, 10\)\n  let its"
    ):
        trainer.step()


def seven_outputs() -> Classification:
    return Classification(model=functools.partial(Mlp, num_classes=7), data=Digits())


def test_a_partial_keeps_the_rules_and_the_name_of_its_model() -> None:
    task = Classification(model=functools.partial(ConvNet, filters=(8,)), data=Digits())
    with pytest.raises(ExperimentError, match=r"dropout: 1\.5 is not"):
        task.check_config({"dropout": 1.5})
    with pytest.raises(ExperimentError, match=r"in_channels: ConvNet gets it"):
        task.check_config({"in_channels": 3})


# --- models ---


def factory(in_channels: int, image_size: int, num_classes: int, *, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, width), nn.Linear(width, num_classes))


@pytest.mark.parametrize("model", [ConvNet, Mlp, factory, functools.partial(factory, width=3)])
def test_models_get_what_they_ask_for(model: Any, tmp_path: Path) -> None:
    given = {"in_channels": 1, "image_size": 8, "in_features": 64, "num_classes": 10}
    task = Classification(model=model, data=Digits())
    task.check()
    assert task.recipe({}, given).model()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert dict(task.given_by(task.locate(None))) == given
    assert task.checkpoint_mb({}, task.locate(None)) > 0


def test_a_model_that_needs_real_tensors_is_measured_all_the_same() -> None:
    def stubborn(in_features: int, num_classes: int) -> nn.Module:
        layer = nn.Linear(in_features, num_classes)
        assert layer.weight.sum().item() < 1e9
        return nn.Sequential(nn.Flatten(), layer)

    task = Classification(model=stubborn, data=Digits())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    size = task.checkpoint_mb({}, task.locate(None))
    assert size == pytest.approx(4 * 650 * 4 / 2**20, abs=0.03)
    assert torch.equal(torch.rand(1), expected)


# --- identity ---


def test_descriptions_are_json_and_differ_where_behaviour_does() -> None:
    tasks = [
        small_net(),
        Classification(model=Mlp, data=Digits()),
        Classification(model=functools.partial(ConvNet, filters=(8,)), data=Digits()),
        Classification(model=functools.partial(ConvNet, filters=(9,)), data=Digits()),
    ]
    described = [json.dumps(task.describe(), sort_keys=True) for task in tasks]
    assert len(set(described)) == len(tasks)
    assert described[0] == json.dumps(small_net().describe(), sort_keys=True)


def test_the_data_are_named(tmp_path: Path) -> None:
    dataset = small_net().locate(None)
    assert dataset.name == "digits"
    assert dataset.fell_back is None
    assert json.loads(json.dumps(dict(dataset.located))) == dict(dataset.located)


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
class TestOnGpu:
    @pytest.fixture
    def trainer(self, tmp_path: Path) -> Trainer:
        return trainer_of(f"{__name__}:small_net", metric="val_accuracy", cache_dir=str(tmp_path), device="cuda")

    def test_digits_are_learnt_and_the_trial_goes_on_from_its_checkpoint(
        self, trainer: Trainer, tmp_path: Path
    ) -> None:
        config = {"filters": (16, 32), "lr": 1e-2, "batch_size": 64, "dropout": 0.1}
        trainer.begin(config, seed=0)
        steps = [trainer.step() for _ in range(5)]
        assert max(step.metrics["val_accuracy"] for step in steps) > 0.9
        assert steps[-1].device_memory_mb is not None
        assert steps[-1].device_memory_mb > 0
        trainer.save(tmp_path / "a.pt")
        trainer.begin(config, seed=0)
        trainer.load(tmp_path / "a.pt")
        assert trainer.step().epoch == 6
        assert trainer.test(tmp_path / "a.pt")["test_accuracy"] > 0.9
