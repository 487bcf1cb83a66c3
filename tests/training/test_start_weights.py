"""What torchvision offers for a network, as what a trial begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from hpo.errors import ExperimentError
from hpo.training import Classification
from hpo.training.data import Digits
from hpo.training.learning import Recipe
from hpo.training.models import Mlp, TorchvisionModel
from hpo.training.models.torchvision_weights import weights_of
from hpo.training.settings import StartSettings
from hpo.training.start_weights import check_offered, load_weights
from hpo.training.weights_file import digest

NETWORK = "squeezenet1_1"
DEFAULT = "torchvision:DEFAULT"


def recipe(num_classes: int, **config: Any) -> Recipe:
    task = Classification(model=TorchvisionModel(NETWORK), data=Digits())
    return task.recipe(config, {"num_classes": num_classes, "in_channels": 3, "image_size": 96})


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that torchvision would download."""
    monkeypatch.setenv("HPO_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights_of(NETWORK, "DEFAULT").value, "url", "http://127.0.0.1:9/plain.pth")
    path = tmp_path / "weights" / "plain.pth"
    path.parent.mkdir()
    torch.save(models.get_model(NETWORK).state_dict(), path)
    return path


def test_all_of_it_is_loaded_where_the_classes_are_as_many(offered: Path) -> None:
    made = recipe(1000)
    model = made.model()
    report, its_digest = load_weights(DEFAULT, model, recipe=made)
    assert set(report.counts) == {"loaded"}
    assert its_digest == digest(offered)
    expected = torch.load(offered, weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_another_head_has_to_be_allowed(offered: Path) -> None:
    strict, partial = recipe(10), recipe(10, partial=True)
    with pytest.raises(ExperimentError, match=r"start_from: .*classifier.1.weight .*\n.*partial=True"):
        load_weights(DEFAULT, strict.model(), recipe=strict)
    report, _ = load_weights(DEFAULT, partial.model(), recipe=partial)
    assert report.counts["shape differs"] == 2


@pytest.mark.parametrize(
    ("value", "model", "message"),
    [
        (DEFAULT, Mlp, r"start_from: torchvision has no weights for Mlp\n.*TorchvisionModel"),
        ("torchvision:IMAGENET2K", TorchvisionModel(NETWORK), r"start_from: 'IMAGENET2K' is none of the weights of"),
    ],
)
def test_what_is_not_offered_is_an_error(value: str, model: Any, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        check_offered(StartSettings(start_from=value), model)
    with pytest.raises(ExperimentError, match=message):
        Classification(model=model, data=Digits()).check_config({"start_from": value})


def test_what_is_offered_is_known_without_a_file() -> None:
    check_offered(StartSettings(start_from=DEFAULT), TorchvisionModel(NETWORK))
    check_offered(StartSettings(start_from="a.pt"), Mlp)
