"""The page lists every hyper-parameter that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpo.training import optimizers, schedules
from hpo.training.fine_tuning import FineTuningSettings
from hpo.training.images import ImageSettings
from hpo.training.models import ConvNet, Mlp, TorchvisionModel
from hpo.training.multi_label import MultiLabel
from hpo.training.regression import Regression
from hpo.training.settings import ChunkSettings, LoopSettings
from hpo.training.tabular import TableSettings

PAGE = (Path(__file__).parents[2] / "docs" / "hyperparameters.md").read_text()
NAMED = set(re.findall(r"`(\w+)`", PAGE))
OWNERS = {
    "optimizer": {*optimizers.RULES, "optimizer", *optimizers.OPTIMIZERS},
    "schedule": {*schedules.RULES, "lr_schedule", *schedules.schedules({})},
    "loop": set(LoopSettings.rules),
    "growing data": set(ChunkSettings.rules),
    "images": set(ImageSettings.rules),
    "tables": set(TableSettings.rules),
    "fine-tuning": set(FineTuningSettings.rules),
    "ConvNet": set(ConvNet.rules),
    "Mlp": set(Mlp.rules),
    "torchvision": set(TorchvisionModel("resnet18").rules),
    "losses": {"label_smoothing", "pos_weight", "loss", "huber_delta"},
}


@pytest.mark.parametrize("owner", OWNERS)
def test_it_has_a_row(owner: str) -> None:
    assert OWNERS[owner] - NAMED == set()


def test_no_value_of_a_table_is_left_empty() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert cells[0], row
        assert cells[1], row


def test_the_rules_are_those_of_the_tasks() -> None:
    from hpo.training.data import SklearnTable

    for task in (
        Regression(model=Mlp, data=SklearnTable("diabetes")),
        MultiLabel(model=Mlp, data=SklearnTable("iris")),
    ):
        assert set(task.loss_rules) <= OWNERS["losses"]
