"""Every experiment that is shipped runs: found, trained, stored, and asked for its best."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.engine import driver
from hpo.engine.driver import Options
from hpo.experiment_file import load
from hpo.results import Store
from tests.engine.test_driver import Quiet

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.stem for path in EXPERIMENTS])
def test_it_says_its_question_what_is_expected_and_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    question, *rest = text.removeprefix('"""').partition('"""')[0].splitlines()
    assert question.endswith("?")
    said = "\n".join(rest)
    assert "Expected: " in said
    assert f"python -m hpo.run experiments/{path.name}" in said


@pytest.mark.integration
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.stem for path in EXPERIMENTS])
def test_it_runs(path: Path, tmp_path: Path) -> None:
    file = load(path, smoke=True)
    options = Options(results=tmp_path / "results", cache_dir=tmp_path / "cache", data_dir=tmp_path)
    opened = driver.run(file, options, Quiet())
    assert opened.study.finished
    assert opened.study.best is not None
    rows = Store(tmp_path / "results").sql("SELECT trial, state FROM trials").to_pylist()
    assert len(rows) == 2
    assert "failed" not in {row["state"] for row in rows}
