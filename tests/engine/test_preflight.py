"""Nodes that differ are named, each with what is wrong there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hpo
from hpo.engine.findings import Finding, State
from hpo.engine.preflight import MOST_APART_S, Check, Report, RoundTrip, judged_clock

EXPERIMENT = """
import os
from dataclasses import dataclass
from hpo import Asha, Experiment, Maximize, uniform
from hpo.protocols import Dataset
from tests.engine.toy import Toy

@dataclass(frozen=True)
class ToyOfTheNode(Toy):
    def locate(self, data_dir):
        return Dataset("toy", os.environ.get("TOY_FINGERPRINT", "same"))

experiment = Experiment(
    task=ToyOfTheNode(), space={"x": uniform(0, 1)}, goal=Maximize("score"), trials=2, policy=Asha(9)
)
"""


class TestClocks:
    @given(st.floats(-0.9, 0.9), st.lists(st.floats(0, 5), min_size=1), st.floats(0, 1))
    def test_one_that_is_right_is_never_blamed(self, ahead_s: float, took_s: list[float], way: float) -> None:
        trips = [RoundTrip(0.0, way * took + ahead_s, took) for took in took_s]
        assert not judged_clock(trips).problem

    @given(st.floats(1.5, 1e6), st.booleans(), st.floats(0, 0.5), st.floats(0, 1))
    def test_one_that_is_wrong_is_blamed(self, off_s: float, behind: bool, took_s: float, way: float) -> None:  # noqa: FBT001
        told = way * took_s + (-off_s if behind else off_s)
        seen = judged_clock([RoundTrip(0.0, told, took_s), RoundTrip(0.0, 1e3, 1e4)])
        assert f"s {'behind' if behind else 'ahead of'} the driver's, more than {MOST_APART_S:g} s" in seen.problem

    def test_what_is_shown(self) -> None:
        assert judged_clock([RoundTrip(10.0, 10.012, 10.004)]).shown == "+10 ms"
        assert judged_clock([RoundTrip(10.0, 7.0, 10.0)]).short == "-3.0 s"


def test_a_warning_is_not_a_failure() -> None:
    warned, failed = Finding(State.WARNED, "", "little room"), Finding(State.FAILED, "", "no")
    assert Report(("driver", "x"), (Check("limits", {"x": warned}),)).passed
    assert not Report(("driver", "x"), (Check("limits", {"x": warned, "y": failed}),)).passed


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is found on three nodes; see `preflight_cluster`."""
    folder = tmp_path_factory.mktemp("preflight")
    for name in ("here", "elsewhere", "other", "results"):
        (folder / name).mkdir()
    (folder / "here" / "toy_study.py").write_text(EXPERIMENT)
    repository = Path(__file__).parents[2]
    other = folder / "other"
    shutil.copytree(Path(hpo.__file__).parent, other / "hpo", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "hpo" / "seeds.py").open("a") as source:
        source.write("# a line more\n")
    older = other / "torchvision-0.1.dist-info"
    older.mkdir()
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    environment = {"PYTHONPATH": f"{other}:{repository}", "TOY_FINGERPRINT": "another"}
    (folder / "differs.json").write_text(json.dumps(environment))
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.preflight_cluster", str(folder)],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "folder": folder}


@pytest.mark.integration
class TestACluster:
    def failed(self, found: dict[str, Any], check: str) -> dict[str, str]:
        return {node: words for node, (state, words) in found["checks"][check].items() if state == "FAILED"}

    def test_a_node_that_does_not_answer_is_named_and_not_waited_for(self, found: dict[str, Any]) -> None:
        assert self.failed(found, "answers") == {"stopped": "no answer within 20 s"}
        assert not any("stopped" in seen for check, seen in found["checks"].items() if check != "answers")

    def test_differing_packages_code_and_data_are_named(self, found: dict[str, Any]) -> None:
        assert self.failed(found, "packages")["differs"].startswith("torchvision is 0.1, but")
        assert self.failed(found, "code")["differs"].startswith("hpo's code is")
        assert self.failed(found, "data") == {"differs": "fingerprint is another, but same on 2 of 3"}
        for check in ("packages", "code"):
            assert self.failed(found, check).keys() == {"differs"}

    @pytest.mark.parametrize("check", ["python", "experiment", "storage", "clock", "gpus", "all-reduce"])
    def test_what_is_alike_passes(self, found: dict[str, Any], check: str) -> None:
        seen = found["checks"][check]
        assert {"head", "differs"} <= seen.keys()
        expected = "NOTHING" if check == "gpus" else "PASSED"
        assert {state for state, _ in seen.values()} <= {expected, "WARNED" if check == "storage" else expected}

    def test_results_that_are_local_to_a_node_are_an_error(self, found: dict[str, Any]) -> None:
        [differs] = [name for name, kind in found["called"].items() if kind == "differs"]
        assert found["local"].startswith("StoreError: /proc/self/cwd/results: ")
        assert f"{differs}: there is no folder /proc/self/cwd/results" in found["local"]
        assert "--results s3://bucket/folder" in found["local"]

    def test_results_that_all_see_are_fine_and_left_as_they_were(self, found: dict[str, Any]) -> None:
        assert found["shared"] == ""
        assert list((found["folder"] / "results").iterdir()) == []

    def test_a_run_does_not_begin(self, found: dict[str, Any]) -> None:
        [stopped] = [name for name, kind in found["called"].items() if kind == "stopped"]
        assert found["run"].startswith(f"StoreError: {found['folder']}/never: 1 of 3 nodes do not see the results")
        assert f"{stopped}: no answer within 10 s" in found["run"]
        assert not (found["folder"] / "never").exists()
