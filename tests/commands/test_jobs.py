"""What `hpo submit`, `attach` and `jobs` refuse before they ask any cluster; jobs themselves: `engine/test_jobs.py`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hpo.cli import main
from hpo.commands.jobs import _Target
from hpo.errors import HpoError


@pytest.fixture
def study(tmp_path: Path) -> str:
    tests = Path(__file__).parents[1]
    shutil.copy(tests / "engine" / "toy.py", tmp_path)
    shutil.copy(tests / "cluster" / "study.py", tmp_path / "few.py")
    return str(tmp_path / "few.py")


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))


def _hpo(*words: str) -> Result:
    return CliRunner().invoke(main, words, env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cpus", "2"], "--cpus: it is for a run on this machine"),
        (["--gpus", "0"], "--gpus: it is for a run on this machine"),
        (["--dry-run"], "--dry-run: it is for a run on this machine"),
        (["--results", "results"], "--results: 'results' is not a full path, and the job has a folder of its own"),
        ([], "--results: 'results' is not a full path"),
        (["--results", "/r", "--data-dir", "d"], "--data-dir: 'd' is not a full path"),
        (["--results", "/r", "--set", "nothing=1"], "nothing"),
        (["--results", "/r", "--set", "nothing"], "--set: 'nothing' is not NAME=VALUE"),
        (["--results", "/r", "--trials", "0"], "0 is not in the range"),
        (["--results", "/r", "--trails", "3"], "No such option"),
        (["--results", "/r"], "--cluster: no cluster is named, and none was used before"),
        (["--results", "s3://bucket/r"], "--cluster: no cluster is named, and none was used before"),
        (["--results", "/r", "--cluster", "missing.yaml"], "--cluster missing.yaml: there is no such file"),
        (["--results", "/r", "--address", "10.0.0.1"], "--address 10.0.0.1: it is not the URL of a dashboard"),
        (["--results", "/r", "--address", "http://x", "--cluster", "y"], "both --cluster and --address name a cluster"),
        (["--results", "/r", "--address", "http://127.0.0.1:1"], "http://127.0.0.1:1: its dashboard does not answer"),
        (["--results", "/r", "--cluster", __file__], "test_jobs.py: line 1: it is not YAML"),
    ],
)
def test_refused_before_anything_is_sent(
    words: list[str], said: str, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    result = _hpo("submit", study, *words)
    assert result.exit_code
    assert said in result.output, result.output


def test_a_file_is_needed() -> None:
    assert "Missing argument 'FILE'" in _hpo("submit", "--results", "/r").output


@pytest.mark.parametrize("command", ["attach", "jobs"])
def test_no_cluster_was_used_before(command: str) -> None:
    assert "none was used before" in _hpo(command).output


def test_the_cluster_is_remembered(tmp_path: Path) -> None:
    yaml = tmp_path / "x.yaml"
    yaml.touch()
    _Target.of(str(yaml), None).remember("few-1")
    os.utime(tmp_path / "cache" / "jobs" / "few-1.json", (1, 1))
    _Target.of(None, "http://127.0.0.1:8265").remember("many-1")
    assert _Target.of(None, None).cluster == "http://127.0.0.1:8265"  # the one used last
    assert _Target.of(None, None, job="few").cluster == str(yaml)  # the one where it runs
    assert _Target.of(None, None, job="unheard-of").cluster == "http://127.0.0.1:8265"
    (tmp_path / "cache" / "jobs" / "many-1.json").write_text("{")
    assert _Target.of(None, None).cluster == str(yaml)


def test_a_job_is_looked_for_where_it_runs() -> None:
    _Target("http://small").remember("digits-20261121-105503-ab12")
    _Target("http://large").remember("digits_large-20261121-105504-ab12")
    assert _Target.of(None, None, job="digits").cluster == "http://small"
    assert _Target.of(None, None, job="digits_large-20261121-105504-ab12").cluster == "http://large"
    assert _Target.of(None, None, job="digits-2026").cluster == "http://small"


def test_old_jobs_are_forgotten(tmp_path: Path) -> None:
    notes = tmp_path / "cache" / "jobs"
    notes.mkdir(parents=True)
    for number in range(120):
        (notes / f"old-{number}.json").write_text("{}")
        os.utime(notes / f"old-{number}.json", (number, number))
    _Target("http://127.0.0.1:8265").remember("new-1")
    assert {path.stem for path in notes.iterdir()} == {"new-1", *(f"old-{number}" for number in range(21, 120))}


def test_both_name_a_cluster() -> None:
    with pytest.raises(HpoError, match=r"(?s)--cluster: both --cluster and --address name a cluster.*leave one"):
        _Target.of("x.yaml", "http://x")


def test_without_what_jobs_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hpo.engine.jobs", None)  # as an import of it fails without aiohttp
    result = _hpo("jobs", "--address", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "hpo submit: jobs need packages that are not installed" in result.output
    assert "pip install 'hpo[cluster]'" in result.output
