"""What data say of their preprocessing is what a model trained on them gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hpo.protocols import Setting
from hpo.training import Classification, MultiLabel, Regression
from hpo.training.data import Arrays, ChunkFolder, Digits, Located
from hpo.training.feed import FedTask
from hpo.training.models import Mlp
from tests.training import shards, tables
from tests.training.data import tiny


def raw_of(task: FedTask, folder: Path) -> NDArray[Any]:
    """The test part as it lies there, images as (N, C, H, W)."""
    data: Any = task.data  # type: ignore[attr-defined]
    if isinstance(data, ChunkFolder) and data.is_table:
        return shards.table(0)[0]
    if isinstance(data, ChunkFolder):
        files = sorted((folder / "a").rglob("*.png"))
        return np.stack([np.asarray(Image.open(path)) for path in files]).transpose(0, 3, 1, 2)
    if isinstance(data, Digits):
        located = Located.from_json(task.locate(None).located)
        return data.load(located, cache_dir=folder / "cache").test_images.transpose(0, 3, 1, 2)
    whole = getattr(data, "table", data)
    return whole.read(None).held_out(data.test_ratio, strata=None).test.inputs


def photos(folder: Path) -> ChunkFolder:
    for name in ("a", "b"):
        tiny.class_folders(folder / name, classes=("cat", "dog"), parts=("",), num=6, side=6)
    return ChunkFolder(folder, test_path=folder / "a")


def npz(folder: Path) -> ChunkFolder:
    return ChunkFolder(shards.write_npz(folder), targets="targets", test_path=folder / "000.npz")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("numbers", {"inputs", "targets"}),
        ("growing numbers", {"inputs", "targets"}),
        ("labels", {"inputs"}),
        ("digits", {"inputs", "classes"}),
        ("shards of numbers", {"inputs", "targets"}),
        ("shards of images", {"inputs", "classes"}),
    ],
)
def test_inputs_are_those_that_a_model_gets(kind: str, says: set[str], tmp_path: Path) -> None:
    tasks: dict[str, Any] = {
        "numbers": lambda: Regression(model=Mlp, data=Arrays(tables.numbers)),
        "growing numbers": lambda: Regression(model=Mlp, data=Arrays(tables.numbers).in_chunks(4)),
        "labels": lambda: MultiLabel(model=Mlp, data=Arrays(tables.labels)),
        "digits": lambda: Classification(model=Mlp, data=Digits()),
        "shards of numbers": lambda: Regression(model=Mlp, data=npz(tmp_path / "shards")),
        "shards of images": lambda: Classification(model=Mlp, data=photos(tmp_path / "shards")),
    }
    task = tasks[kind]()
    setting = Setting("cpu", 1, task.locate(None), tmp_path / "cache", "val_loss", sign=-1)
    source = task.open(setting)
    settings = task.data_settings(**({"min_std": 0.02} if hasattr(task.data_settings, "min_std") else {}))
    told = source.preprocessing(settings)
    assert told.keys() == says
    mean, std = (np.array(told["inputs"][name]) for name in ("mean", "std"))
    raw = raw_of(task, tmp_path / "shards" if "shards" in kind else tmp_path).astype(np.float64)
    if raw.ndim == 4:
        mean, std = mean[:, None, None], std[:, None, None]
    got = torch.cat([inputs for inputs, _ in source.testing(settings)]).double().numpy()
    np.testing.assert_allclose(got, (raw - mean) / std, rtol=1e-4, atol=2e-5)
