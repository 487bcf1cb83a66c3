import json
import math
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.results import Entry
from hpo.results.folds import RUNS, TRIALS, RunFold, TrialFold, hyper_parameter
from tests.results.entries import RUN_STARTED, entry


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


BEGIN = [
    entry(
        1, "proposed", trial=0, config={"lr": 0.1, "augment": ["flip"]}, seed=2**63 - 1, parent_run="p", parent_trial=4
    ),
    entry(2, "started", trial=0),
    entry(3, "report", trial=0, step=1, score=0.5, epoch=1),
]


def row_after(*entries) -> dict:
    fold = TrialFold("r")
    fold.apply([*BEGIN, *entries])
    return fold.table().to_pylist()[0]


def test_a_trial_that_trains():
    row = row_after(entry(4, "report", trial=0, step=2, score=math.nan, epoch=2))
    assert row.pop("last_score") != row["best_score"]
    assert json.loads(row.pop("config")) == {"lr": 0.1, "augment": ["flip"]}
    assert row == {
        **dict.fromkeys(["stop_reason", "cause", "checkpoint", "best_chunk"]),
        "run_id": "r",
        "trial": 0,
        "state": "running",
        "seed": 2**63 - 1,
        "epochs": 2,
        "num_attempts": 1,
        "parent_run": "p",
        "parent_trial": 4,
        "parent_digest": None,
        "best_score": 0.5,
        "best_step": 1,
        "hp_lr": 0.1,
        "hp_augment": '["flip"]',
    }


def test_the_best_score_is_that_of_the_newest_chunk_of_growing_data() -> None:
    fold = TrialFold("r")
    told = [(0.9, 1), (0.3, 2), (0.4, 2), (0.35, 2), (math.nan, 3)]
    fold.apply(
        entry(step, "report", trial=0, step=step, score=score, epoch=step, chunk=chunk)
        for step, (score, chunk) in enumerate(told, start=1)
    )
    row = fold.rows[0]
    assert (row.best_score, row.best_step, row.best_chunk) == (0.4, 3, 2)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([entry(4, "stopped", trial=0, step=1, reason="weak", state="stopped")], ("stopped", "weak", None)),
        ([entry(4, "stopped", trial=0, reason="done", state="completed", cause="")], ("completed", "done", None)),
        (
            [entry(4, "stopped", trial=0, reason="NaN", state="stopped", cause="diverged")],
            ("stopped", "NaN", "diverged"),
        ),
        ([entry(4, "paused", trial=0, reason="rung 1")], ("paused", "rung 1", None)),
        ([entry(4, "paused", trial=0, reason="rung 1"), entry(5, "started", trial=0)], ("running", None, None)),
        ([entry(4, "interrupted", trial=0, reason="Ctrl-C")], ("paused", "Ctrl-C", None)),
        ([entry(4, "failed", trial=0, cause="x", message="m", retry=True)], ("running", None, None)),
        ([entry(4, "failed", trial=0, cause="oom", message="m", retry=False)], ("failed", "m", "oom")),
        ([entry(4, "of the future", trial=0, reason="?")], ("running", None, None)),
    ],
)
def test_states(entries, expected):
    row = row_after(*entries)
    assert (row["state"], row["stop_reason"], row["cause"]) == expected


def test_a_checkpoint_is_the_newest_that_is_there():
    written = [entry(4, "checkpoint", trial=0, path="a", bytes=1), entry(5, "checkpoint", trial=0, path="b", bytes=1)]
    assert row_after(*written)["checkpoint"] == "b"
    assert row_after(*written, entry(6, "deleted", trial=0, path="a"))["checkpoint"] == "b"
    assert row_after(*written, entry(6, "deleted", trial=0, path="b"))["checkpoint"] is None
    assert row_after(*written, entry(6, "unusable", trial=0, path="b"))["checkpoint"] is None


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        ([True, None], pa.bool_(), [True, None]),
        ([1, 2**40, None], pa.int64(), [1, 2**40, None]),
        ([1, 0.5], pa.float64(), [1.0, 0.5]),
        ([1, 2**70], pa.float64(), [1.0, float(2**70)]),
        (["sgd", None], pa.string(), ["sgd", None]),
        (["auto", 1, True], pa.string(), ["auto", "1", "true"]),
        ([(1, 2), None], pa.string(), ["[1, 2]", None]),
        ([True, 1], pa.string(), ["true", "1"]),
    ],
)
def test_a_hyper_parameter_keeps_its_type_where_it_has_one(values, kind, stored):
    column = hyper_parameter(values)
    assert (column.type, column.to_pylist()) == (kind, stored)


def test_a_hyper_parameter_that_was_never_active_has_no_column():
    fold = TrialFold("r")
    assert fold.table().schema == TRIALS
    fold.apply([entry(1, "proposed", trial=0, config={"lr": 0.1, "momentum": None})])
    assert fold.table().schema.names == [*TRIALS.names, "hp_lr"]


CONFIG = st.dictionaries(st.sampled_from("abc"), st.none() | st.booleans() | st.integers(-9, 9) | st.text(), max_size=3)
DETAIL = st.fixed_dictionaries(
    {
        "config": CONFIG,
        "score": st.none() | st.floats(),
        "epoch": st.integers(0, 9),
        "state": st.sampled_from(["stopped", "completed"]),
        "reason": st.text(),
        "path": st.sampled_from("xy"),
        "retry": st.booleans(),
    }
)
KINDS = ["proposed", "started", "report", "stopped", "paused", "failed", "interrupted", "checkpoint", "deleted", "z"]
HISTORY = st.lists(
    st.builds(
        lambda kind, trial, detail: entry(1, kind, trial=trial, step=1, **detail),
        st.sampled_from(KINDS),
        st.integers(0, 2),
        DETAIL,
    ),
    max_size=12,
)


@given(HISTORY, st.data())
def test_folded_in_two_with_the_table_between_is_folded_at_once(history, data):
    cut = data.draw(st.integers(0, len(history)))
    whole, first = TrialFold("r"), TrialFold("r")
    whole.apply(history)
    first.apply(history[:cut])
    second = TrialFold("r", first.table())
    second.apply(history[cut:])
    assert str(second.table().to_pylist()) == str(whole.table().to_pylist())  # as text: NaN is not equal to itself
    assert second.table().schema == whole.table().schema


def test_a_run_from_its_beginning_to_its_end_and_on():
    fold = RunFold("r", "e")
    fold.begin(5.0)
    assert fold.table().schema == RUNS
    assert fold.table()["started_at"].to_pylist() == [_utc(5)]
    assert fold.apply([entry(1, "report", trial=0)]) is False
    assert fold.apply([entry(2, "run_started", **RUN_STARTED)]) is True
    row = fold.table().to_pylist()[0]
    assert (row["state"], row["num_trials"], row["finished_at"], row["pid"]) == ("running", 4, None, 17)
    assert json.loads(row["versions"]) == {"hpo": "0.1.0"}
    fold.apply([entry(3, "run_ended", state="interrupted", reason="Ctrl-C")])
    row = fold.table().to_pylist()[0]
    assert (row["state"], row["reason"]) == ("interrupted", "Ctrl-C")
    assert row["finished_at"] > row["started_at"] == _utc(1_000_002)
    again = RunFold("r", "e", fold.table())
    again.apply([entry(4, "run_started", **{**RUN_STARTED, "trials": 9, "resumed": True})])
    row = again.table().to_pylist()[0]
    assert (row["state"], row["reason"], row["finished_at"], row["num_trials"]) == ("running", None, None, 9)
    assert row["started_at"] == _utc(1_000_002)


def test_a_run_that_goes_on_from_another_names_it_and_its_shards():
    pieces = [{"fingerprint": "f1", "name": "1.npz"}, {"fingerprint": "f2"}]
    fold = RunFold("r", "e")
    fold.apply([entry(1, "run_started", **RUN_STARTED, parent_run="q", dataset_pieces=pieces)])
    [row] = fold.table().to_pylist()
    assert (row["parent_run"], json.loads(row["dataset_pieces"])) == ("q", pieces)
    older = fold.table().drop_columns(["parent_run", "dataset_pieces"])
    again = RunFold("r", "e", older)
    assert again.table().to_pylist() == [{**row, "parent_run": None, "dataset_pieces": None}]
    again.apply([entry(2, "run_ended", state="finished")])
    assert again.table().to_pylist()[0]["state"] == "finished"


def test_a_table_without_the_newest_columns_is_folded_on():
    fold = TrialFold("r")
    fold.apply(BEGIN)
    older = fold.table().drop_columns(["parent_digest"])
    on = TrialFold("r", older)
    detail = {"weights": "a.pt", "run": "q", "trial": 1, "digest": "d"}
    on.apply([Entry(4, 0.0, "started_from", 0, 1, None, detail)])
    assert on.rows[0].parent_digest == "d"
    assert (on.rows[0].parent_run, on.rows[0].parent_trial) == ("q", 1)
