"""A trial's best weights as a file for anyone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from hpo.cli import main
from hpo.results import RunStore
from tests.results.entries import RUN_STARTED, train
from tests.training.fresh import trainer_of

CONFIG = {"lr": 0.1, "batch_size": 8, "dropout": 0.25, "ema": 0.5}


class Net(nn.Module):
    """Laid out as `tests.training.line.Line` is; the README's."""

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.Linear(2, num_classes // 10)
        self.dropout = nn.Dropout(dropout)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    trainer = trainer_of("tests.training.line:LineFit", metric="val_loss", cache_dir=str(folder))
    trainer.begin(CONFIG, seed=0)
    trainer.step()
    trainer.save(folder / "a.pt")
    return folder / "a.pt"


def best_of(checkpoint: Path) -> dict[str, Tensor]:
    """The averages: the step that was measured is the last one."""
    averages: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["average"]
    return {name: value for name, value in averages.items() if name.startswith("layer.")}


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> str:
    monkeypatch.chdir(tmp_path)
    with RunStore.create(Path("results"), experiment="line") as store:
        store.append("run_started", detail=RUN_STARTED)
        for trial, score in enumerate((0.1, 0.9, 0.5)):
            train(store, trial, [score], config={**CONFIG, "trial": trial})
        for trial in (1, 2):
            path = store.paths.checkpoint(trial, 1, 1)
            path.parent.mkdir(parents=True)
            path.write_bytes(checkpoint.read_bytes() if trial == 1 else b"not a file of PyTorch")
            detail = {"path": store.paths.recorded(str(path.resolve())), "bytes": 7}
            store.append("checkpoint", trial=trial, attempt=1, step=1, detail=detail)
        return store.paths.run_id


def export(*words: str) -> Result:
    return CliRunner().invoke(main, ["export", *words])


def test_the_best_trial_is_written_with_its_configuration_beside_it(run_id: str, checkpoint: Path) -> None:
    shown = export("line", "model.pt")
    assert shown.exit_code == 0, shown.output
    assert shown.output == f"wrote model.pt and model.json: trial 1 of {run_id}, best at step 1\n"
    state = torch.load("model.pt", weights_only=True)
    assert state.keys() == best_of(checkpoint).keys()
    assert all(torch.equal(value, state[name]) for name, value in best_of(checkpoint).items())
    assert json.loads(Path("model.json").read_text()) == {"config": {**CONFIG, "trial": 1}}


def test_safetensors_are_written_for_those_who_want_them(run_id: str, checkpoint: Path) -> None:
    from safetensors.torch import load_file

    assert export(run_id[:-2], "1", "model.safetensors").exit_code == 0
    assert torch.equal(load_file("model.safetensors")["layer.weight"], best_of(checkpoint)["layer.weight"])


def test_the_lines_of_the_readme_load_it_without_hpo(run_id: str, checkpoint: Path, repository: Path) -> None:
    assert export("line", "model.pt").exit_code == 0
    readme = (repository / "README.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"```python\n(config = json.*?)```", readme, re.DOTALL)
    assert "hpo" not in lines
    names: dict[str, Any] = {"json": json, "Path": Path, "torch": torch, "Net": Net}
    exec(compile(lines, "README.md", "exec"), names)  # noqa: S102
    assert torch.equal(names["model"].layer.weight, best_of(checkpoint)["layer.weight"])
    assert names["model"].dropout.p == CONFIG["dropout"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("line",), r"hpo export: 0 arguments follow the run, not \[TRIAL\] FILE\n  e\.g\. hpo export"),
        (("line", "1", "2", "a.pt"), r"hpo export: 3 arguments follow the run"),
        (("line", "best", "a.pt"), r"TRIAL: 'best' is not the number of a trial"),
        (("line", "7", "a.pt"), r"there is no trial 7\n  the run has 3 trials: 0 to 2"),
        (("line", "0", "a.pt"), r"trial 0 has no checkpoint: .*\n  trials that have one: 1, 2"),
        (("line", "2", "a.pt"), r"attempt-01-step-0001\.pt: the file holds no weights, or is damaged"),
        (("line", "a.onnx"), r"a\.onnx: '\.onnx' is no format of weights"),
        (("line", "nowhere/a.pt"), r"nowhere/a\.pt: cannot be written: No such file or directory\n"),
        (("other", "a.pt"), r"no run is called 'other'"),
    ],
)
def test_what_cannot_be_is_said(run_id: str, words: tuple[str, ...], message: str) -> None:
    shown = export(*words)
    assert shown.exit_code == 2
    assert re.search(message, shown.output), shown.output
    assert not list(Path().glob("a.*"))


def test_a_checkpoint_that_is_gone_is_said(run_id: str) -> None:
    for file in Path("results").rglob("attempt-*.pt"):
        file.unlink()
    shown = export("line", "a.pt")
    assert re.search(r"there is no such checkpoint\n  choose another trial with `hpo best`", shown.output)


def test_a_run_without_a_score_has_no_best_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunStore.create(Path("results"), experiment="empty") as store:
        store.append("run_started", detail=RUN_STARTED)
    assert re.search(r"no trial has a finite score\n  `hpo sql`", export("empty", "a.pt").output)
