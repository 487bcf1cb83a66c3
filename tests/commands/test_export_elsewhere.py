"""Exported weights predict raw data where there is no hpo, as docs/export.md says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from hpo.cli import main
from hpo.protocols import Task
from hpo.results import RunStore
from hpo.training import Classification, Regression
from hpo.training.data import Arrays, Digits, Located
from tests.commands import plain_net
from tests.results.entries import RUN_STARTED, train
from tests.training import tables
from tests.training.fresh import trainer_of

TASKS: dict[str, Task] = {
    "regression": Regression(model=plain_net.Net, data=Arrays(tables.numbers)),
    "classes": Classification(model=plain_net.Net, data=Arrays(tables.classes)),
    "images": Classification(model=plain_net.Net, data=Digits()),
}
CALLS = {
    "regression": "predicted(raw).tolist()",
    "classes": "classified(raw, raw.shape[1]).tolist()",
    "images": "classified(raw, raw[0].size).tolist()",
}
CONFIG = {"lr": 0.01, "batch_size": 32, "hidden": 12, "min_std": 0.02}


def held_out(task: Any, cache_dir: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """The raw test part, and what is to be predicted of it, by name."""
    if isinstance(task.data, Digits):
        images = task.data.load(Located.from_json(task.locate(None).located), cache_dir=cache_dir)
        return images.test_images, np.array(images.classes)[images.test_labels]
    test = task.feed._read(None).test
    return test.inputs, test.targets


@pytest.mark.parametrize("name", TASKS)
def test_raw_data_are_predicted_without_hpo(name: str, tmp_path: Path, repository: Path) -> None:
    is_table, metric = name != "images", "val_loss"
    config = CONFIG if is_table else {key: value for key, value in CONFIG.items() if key != "min_std"}
    trainer = trainer_of(f"{__name__}:task_{name}", metric=metric, cache_dir=str(tmp_path / "cache"))
    trainer.begin(config, seed=0)
    for _ in range(8):
        trainer.step()
    with RunStore.create(tmp_path / "results", experiment="net") as store:
        store.append("run_started", detail=RUN_STARTED)
        train(store, 0, [0.5], config=config)
        path = store.paths.checkpoint(0, 1, 1)
        path.parent.mkdir(parents=True)
        trainer.save(path)
        measured = trainer.test(path)
        detail = {"path": store.paths.recorded(str(path.resolve())), "bytes": 7}
        store.append("checkpoint", trial=0, attempt=1, step=1, detail=detail)
    there = tmp_path / "elsewhere"
    there.mkdir()
    shown = CliRunner().invoke(main, ["export", "net", str(there / "model.pt"), "--results", str(tmp_path / "results")])
    assert shown.exit_code == 0, shown.output
    shutil.copy(plain_net.__file__, there / "net.py")
    raw, true = held_out(TASKS[name], tmp_path / "cache")
    np.save(there / "raw.npy", raw)

    blocks = re.findall(r"```python\n(.*?)```", (repository / "docs" / "export.md").read_text(), re.DOTALL)
    forbidden = "import sys\nsys.modules['hpo'] = None  # whoever imports it gets an ImportError\n"
    call = f"raw = np.load('raw.npy')\nprint(json.dumps({CALLS[name]}))\n"
    done = subprocess.run(
        [sys.executable, "-c", forbidden + "\n".join(blocks) + call],
        cwd=there,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = np.array(json.loads(done.stdout))
    if name == "regression":
        assert np.abs(told[:, 0] - true).mean() == pytest.approx(measured["test_mae"], rel=1e-5)
    else:
        assert np.mean(told == true) == pytest.approx(measured["test_accuracy"])
        assert measured["test_accuracy"] > 0.5


task_regression, task_classes, task_images = (TASKS[name] for name in ("regression", "classes", "images"))
