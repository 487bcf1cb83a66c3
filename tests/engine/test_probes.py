"""What a node says of itself."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from pathlib import Path

import pytest

import hpo
from hpo.engine import probes
from hpo.engine.probes import Errand, described, judged_gpus, look
from hpo.errors import DataError
from hpo.protocols import Dataset
from tests.engine.toy import Toy

CARDS = """\
0, GPU-aa11, NVIDIA H200, 143771, 143300
1, GPU-bb22, NVIDIA H200, 143771, 143300
"""


class TestGpus:
    def test_all_there_and_free(self) -> None:
        seen = judged_gpus(2, CARDS, "")
        assert (seen.shown, seen.problem) == ("2", "")

    def test_fewer_than_ray_counts(self) -> None:
        assert judged_gpus(4, CARDS, "").problem == "Ray counts 4 GPUs, but 2 are visible"

    @pytest.mark.parametrize("visible", ["1", "GPU-bb22", "GPU-bb"])
    def test_only_those_that_ray_sees_count(self, visible: str) -> None:
        used = "GPU-aa11, 77, python, 20000\n"
        assert judged_gpus(1, CARDS, used, visible=visible).problem == ""
        assert judged_gpus(2, CARDS, used, visible=visible).problem == "Ray counts 2 GPUs, but 1 are visible"
        assert judged_gpus(1, CARDS, used, visible="").problem == "Ray counts 1 GPUs, but 0 are visible"

    def test_a_process_on_one(self) -> None:
        seen = judged_gpus(2, CARDS, "GPU-bb22, 77, /usr/bin/python3, 400\n")
        assert seen.short == "1 in use"
        assert seen.problem == "GPU 1 has 100% of its memory free, and /usr/bin/python3 (pid 77) on it"

    def test_a_process_with_commas_in_its_name_and_memory_that_is_not_told(self) -> None:
        cards = "0, GPU-aa11, NVIDIA GH200, [N/A], [N/A]\n"
        assert not judged_gpus(1, cards, "").problem
        seen = judged_gpus(1, cards, "GPU-aa11, 77, a, b, [N/A]\n")
        assert seen.problem == "GPU 0 has 100% of its memory free, and a, b (pid 77) on it"

    def test_parts_of_a_gpu(self) -> None:
        assert judged_gpus(2, CARDS, "", visible="MIG-1,MIG-2").shown == "2"
        assert judged_gpus(3, CARDS, "", visible="MIG-1,MIG-2").short == "2 of 3"

    def test_memory_taken_by_a_process_that_cannot_be_seen(self) -> None:
        cards = "0, GPU-aa11, NVIDIA H200, 143771, 14377\n"
        assert judged_gpus(1, cards, "").problem == "GPU 0 has 10% of its memory free"

    def test_none(self) -> None:
        assert look("gpus", Errand("x.py")).nothing

    def test_counted_where_there_is_no_driver(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "there is no nvidia-smi" in look("gpus", Errand("x.py", num_gpus=1)).problem


def test_versions() -> None:
    assert look("python", Errand("x.py")).facts == {"Python": platform.python_version()}
    facts = look("packages", Errand("x.py")).facts
    assert set(facts) == set(probes.PACKAGES)
    assert "missing" not in facts.values()


def test_a_changed_line_of_hpo_is_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "hpo"
    shutil.copytree(Path(hpo.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = look("code", Errand("x.py")).facts
    monkeypatch.setattr(hpo, "__file__", str(copy / "__init__.py"))
    assert look("code", Errand("x.py")).facts == before
    (copy / "seeds.py").write_text((copy / "seeds.py").read_text() + "\n")
    assert look("code", Errand("x.py")).facts != before


def test_data_that_is_not_what_was_asked_for() -> None:
    assert described(Dataset("toy", "f")).problem == ""
    assert (
        described(Dataset("digits", "f", fell_back="no toys here: using digits")).problem
        == "no toys here: using digits"
    )


def test_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "LEAST_OPEN_FILES", 2**62)
    monkeypatch.setattr(probes, "LEAST_FREE_GB", {"/": 10**9})
    seen = look("limits", Errand("x.py"))
    assert "GB are free in /, fewer than 1000000000" in seen.warning
    assert f"files, fewer than {2**62}" in seen.warning


def test_what_a_task_raises_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(errand: Errand) -> None:
        raise RuntimeError("two\nlines")

    def missing(errand: Errand) -> None:
        Toy().locate(Path("/nonexistent"))

    monkeypatch.setattr(probes, "LOOKS", {"broken": broken, "missing": missing})
    assert look("broken", Errand("x.py")).problem == "RuntimeError: two lines"
    assert look("missing", Errand("x.py")).problem == "/nonexistent: there is no toy.txt write one"


def test_nothing_of_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_DATA", "before")
    monkeypatch.delenv("http_proxy", raising=False)
    with contextlib.suppress(DataError), probes._environment({"HPO_DATA": "x", "http_proxy": "y"}):
        assert (os.environ["HPO_DATA"], os.environ["http_proxy"]) == ("x", "y")
        raise DataError("no")
    assert os.environ["HPO_DATA"] == "before"
    assert "http_proxy" not in os.environ
