"""What policies are told, and how a declaration describes itself."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpo.declared import Declared, described
from hpo.scheduling import Asha
from hpo.trial import Report, TrialState


@dataclass(frozen=True)
class Part:
    width: int = 3


@dataclass(frozen=True)
class Outer(Declared):
    part: Any


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, None),
        (0.5, 0.5),
        (("crop", ("flip", 2)), ["crop", ["flip", 2]]),
        ({"a": (1,), 2: True}, {"a": [1], "2": True}),
        (Part(4), {"class": "part", "width": 4}),
        (Part, "tests.test_protocols.Part"),
        (math.log, "math.log"),
        (Path("a/b"), "a/b"),
        (Asha(9), {"class": "asha", "max_epochs": 9, "grace": 1, "reduction_factor": 3}),
    ],
)
def test_setting_is_described_as_json(value: Any, said: Any) -> None:
    assert described(value) == said
    assert Outer(value).describe() == {"class": "outer", "part": said}
    assert json.loads(json.dumps(said)) == said


@pytest.mark.parametrize(("score", "finite"), [(0.0, True), (-1e308, True), (math.nan, False), (-math.inf, False)])
def test_report_knows_whether_its_score_can_be_compared(score: float, *, finite: bool) -> None:
    assert Report(0, 1, score).finite is finite


def test_states_in_which_a_trial_never_trains_again() -> None:
    assert {state.value for state in TrialState if state.ended} == {"stopped", "completed", "failed"}
