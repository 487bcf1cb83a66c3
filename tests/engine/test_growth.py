"""A study that is run again after new shards of its data arrived: which run is opened, and what its trials are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo import Experiment, Maximize, NoStopping, choice
from hpo.engine.assigning import Assigning
from hpo.engine.checkpoint_files import files_of
from hpo.engine.checkpoints import CheckpointKeeper
from hpo.engine.final_test import score_best
from hpo.engine.growth import CONTINUES, Continued, growth_since, trials_of
from hpo.engine.opening import OpenRun, choose, open_run
from hpo.engine.origins import Origin
from hpo.engine.outlook import outlook
from hpo.engine.plan import expected
from hpo.engine.study import Study
from hpo.engine.trials import Checkpoint, Lease, Parent
from hpo.engine.worker import Assignment, _go_on_from
from hpo.errors import DataError, HpoError
from hpo.experiment_file import ExperimentFile
from hpo.protocols import Dataset, Step
from hpo.results import RunPaths, Store
from hpo.trial import Exploit, TrialState
from tests.engine.crew import Scripted
from tests.engine.shards import Sharded, dataset_of
from tests.engine.test_final_test import SETTING
from tests.engine.test_study import Notes, replayed, same
from tests.engine.toy import Toy

TWO = dataset_of({"1.txt": "a", "2.txt": "b"})
THREE = dataset_of({"1.txt": "a", "2.txt": "b", "3.txt": "c"})
FOUR = dataset_of({"1.txt": "a", "2.txt": "b", "3.txt": "c", "4.txt": "d"})


def declared(**changes: Any) -> Experiment:
    settings = {
        "task": Sharded(),
        "space": {"x": choice(0.1, 0.2, 0.3, 0.4), "layers": choice((1, 2), (3, 4))},
        "goal": Maximize("score"),
        "trials": 4,
        "keep_checkpoints": 3,
        "policy": NoStopping(99),
    }
    return Experiment(**{**settings, **changes})


class Place:
    """A store in a folder, and an experiment that is opened there."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.store = Store(self.results)
        (folder / "grown.py").write_text("")
        self._path = folder / "grown.py"

    def file(self, **changes: Any) -> ExperimentFile:
        return ExperimentFile(self._path, "grown.py", declared(**changes))

    def open(self, dataset: Dataset, *, fresh: bool = False, **changes: Any) -> OpenRun:
        return open_run(self.file(**changes), dataset, results=self.results, fresh=fresh)

    def finished(self, dataset: Dataset, *scores: float, **changes: Any) -> OpenRun:
        """A run whose trials got these scores, each with a checkpoint, but those that are below zero."""
        opened = self.open(dataset, **changes)
        for score in scores:
            lease = opened.study.lease()
            assert lease is not None
            opened.study.report(lease.trial, 1, Step({"score": score}, 2, finished=True))
            if score >= 0:
                keep(opened, lease, step=1)
        end(opened, finished=opened.study.finished)
        return opened


def keep(opened: OpenRun, lease: Lease, *, step: int) -> Path:
    path = opened.paths.checkpoint(lease.trial, lease.attempt, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"had": ["a", "b"], "best": 9.0}))
    name = opened.paths.recorded(str(path))
    opened.study.checkpointed(lease.trial, Checkpoint(name, lease.attempt, step, 7))
    return path


def end(opened: OpenRun, *, finished: bool = True) -> None:
    opened.store.append("run_ended", detail={"state": "finished" if finished else "interrupted", "reason": ""})
    opened.store.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def of_whom(opened: OpenRun) -> list[int]:
    return [trial.parent.trial for trial in opened.study.continued]


class TestANewShard:
    def test_is_what_the_best_trials_are_fine_tuned_on(self, place: Place) -> None:
        first = place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        second = place.open(FOUR)
        run = first.paths.run_id
        assert not second.resumed
        assert second.notes == [
            f"2 new shards (3.txt, 4.txt): trials 1, 3 and 0 of run {run} are fine-tuned on them",
        ]
        assert of_whom(second) == [1, 3, 0]
        leases = [second.study.lease() for _ in range(4)]
        assert leases[3] is None  # the search is off
        for lease, parent in zip(leases[:3], of_whom(second), strict=True):
            assert lease is not None
            assert (lease.config, lease.seed) == (first.study.trials[parent].config, first.study.trials[parent].seed)
            assert lease.continues == Parent(run, parent)
            assert lease.checkpoint is not None
            wrote = first.study.trials[parent].checkpoint
            assert wrote is not None
            assert second.paths.located(lease.checkpoint.path) == first.paths.located(wrote.path)
        end(second, finished=False)
        [row] = [row for row in place.store.runs().to_pylist() if row["run_id"] == second.paths.run_id]
        assert (row["parent_run"], row["num_trials"]) == (run, 3)
        assert [piece["name"] for piece in json.loads(row["dataset_pieces"])] == ["1.txt", "2.txt", "3.txt", "4.txt"]
        assert json.loads(second.paths.experiment_json.read_text())["parent_run"] == run
        trials = place.store.trials(second.paths.run_id).to_pylist()
        assert [(one["parent_run"], one["parent_trial"]) for one in trials] == [(run, 1), (run, 3), (run, 0)]
        events = place.store.sql("SELECT detail FROM events WHERE kind = 'continues'").to_pylist()
        assert [json.loads(event["detail"])["run"] for event in events] == [run]

    def test_is_seen_by_a_driver_that_goes_on_with_the_run(self, place: Place) -> None:
        place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        second = place.open(THREE)
        lease = second.study.lease()
        assert lease is not None
        second.study.report(lease.trial, 1, Step({"score": 0.8}, 3))
        second.store.close()  # as a killed driver leaves it
        again = place.open(THREE, trials=9)
        assert again.resumed
        assert again.study.continued == second.study.continued
        assert again.study.num_trials == 3
        on = again.study.lease()
        assert on is not None
        assert (on.trial, on.attempt, on.why, on.continues) == (0, 2, "resumed", lease.continues)
        assert on.config["layers"] in ((1, 2), (3, 4))
        again.store.close()

    def test_is_had_once_and_the_next_one_by_the_trials_of_that_run(self, place: Place) -> None:
        place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        second = place.finished(THREE, 0.3, 0.4, 0.2)
        again = place.open(THREE)
        assert again.paths == second.paths
        assert again.nothing_to_do
        again.store.close()
        third = place.open(FOUR)
        assert third.study.continued[0].parent == Parent(second.paths.run_id, 1)
        assert third.notes == [
            f"1 new shard (4.txt): trials 1, 0 and 2 of run {second.paths.run_id} are fine-tuned on it"
        ]
        third.store.close()

    def test_begins_a_run_anew_if_asked(self, place: Place) -> None:
        place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        fresh = place.open(THREE, fresh=True)
        assert not fresh.study.continued
        assert fresh.study.num_trials == 4
        fresh.store.close()

    def test_waits_until_the_run_has_finished(self, place: Place) -> None:
        first = place.finished(TWO, 0.5, 0.9)
        second = place.open(THREE)
        assert second.resumed
        assert second.paths == first.paths
        assert second.dataset == TWO
        assert second.notes == [
            f"1 new shard (3.txt) since run {first.paths.run_id} began, which goes on with the 2 that it began with: "
            "give the same command again when it has finished"
        ]
        for score in (0.1, 0.7):
            lease = second.study.lease()
            assert lease is not None
            second.study.report(lease.trial, 1, Step({"score": score}, 2, finished=True))
        end(second)
        third = place.open(THREE)
        assert of_whom(third) == [1, 0]
        assert third.dataset == THREE
        third.store.close()

    def test_without_a_trial_to_go_on_from_is_a_new_study(self, place: Place) -> None:
        first = place.finished(TWO, -0.5, -0.9, -0.1, -0.7)
        second = place.open(THREE)
        assert not second.study.continued
        assert second.notes == [
            f"1 new shard (3.txt), but no trial of run {first.paths.run_id} has a checkpoint: a new run begins"
        ]
        second.store.close()

    def test_is_not_had_by_a_task_that_cannot_leave_it_out(self, place: Place) -> None:
        place.finished(TWO, 0.5, 0.9, task=Toy(), space={"x": choice(0.1)})
        with pytest.raises(DataError, match=r"data set shards: Toy cannot leave out the shards that arrived"):
            place.open(THREE, task=Toy(), space={"x": choice(0.1)})

    def test_in_a_dry_run_is_told_and_nothing_is_done(self, place: Place) -> None:
        first = place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        file = place.file()
        for dataset, fresh, line in (
            (
                THREE,
                False,
                f"1 new shard (3.txt): trials 1, 3 and 0 of run {first.paths.run_id} are fine-tuned on it",
            ),
            (TWO, False, f"run {first.paths.run_id} has finished: nothing would be done"),
            (THREE, True, "a new run would begin"),
        ):
            chosen = choose(file, dataset, place.store, fresh=fresh)
            assert outlook(file, chosen, place.store)[-1] == line
        assert len(place.store.runs()) == 1
        chosen = choose(file, FOUR, place.store)
        plan = expected(file.experiment, FOUR, continued=chosen.trials)
        assert (plan.trials, plan.epochs) == (3, 6)
        assert trials_of(place.store, chosen.run_id) == ()


class TestChangedShards:
    @pytest.mark.parametrize(
        ("now", "message"),
        [
            (
                {"1.txt": "a", "2.txt": "other", "3.txt": "c"},
                r"data set shards: shard 2 \(2.txt\) has the fingerprint \w+, but run .* began with shard 2 \(2.txt\)",
            ),
            ({"1.txt": "a"}, r"shard 2 \(2.txt\), which run .* began with, is gone\n.*bring it back"),
            ({"0.txt": "c", "1.txt": "a", "2.txt": "b"}, r"shard 1 \(0.txt\) .* began with shard 1 \(1.txt\), \w+\n"),
        ],
    )
    def test_are_an_error_that_names_them(self, place: Place, now: Mapping[str, str], message: str) -> None:
        place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        with pytest.raises(DataError, match=message):
            place.open(dataset_of(now))
        assert len(place.store.runs()) == 1

    @given(st.lists(st.text("ab", min_size=1, max_size=2), max_size=4), st.lists(st.text("ab", max_size=2), max_size=4))
    def test_are_told_from_new_ones(self, before: list[str], now: list[str]) -> None:
        dataset = Dataset("d", "f", pieces=tuple(now))
        row = {"run_id": "r", "dataset_pieces": json.dumps([{"fingerprint": piece} for piece in before])}
        is_beginning = now[: len(before)] == before
        if before and now and not is_beginning:
            with pytest.raises(DataError):
                growth_since(row, dataset)
            return
        grown = growth_since(row, dataset)
        new = now[len(before) :] if before else []
        assert (grown.num_new if grown else 0) == len(new)
        assert growth_since({"run_id": "r", "dataset_pieces": None}, dataset) is None

    def test_a_run_of_before_goes_by_the_fingerprint(self, place: Place) -> None:
        first = place.finished(Dataset("shards", TWO.fingerprint), 0.5, 0.9, 0.1, 0.7)
        row = pq.read_table(first.paths.run_file)
        older = row.drop_columns(["dataset_pieces", "parent_run"])
        pq.write_table(older.replace_schema_metadata(row.schema.metadata), first.paths.run_file)
        [now] = place.store.runs().to_pylist()
        assert (now["dataset_pieces"], now["parent_run"], now["digest"]) == (None, None, first.file.digest)
        again = place.open(TWO)
        assert again.nothing_to_do
        again.store.close()
        with pytest.raises(DataError, match=r"its fingerprint is .*, but the run began with"):
            place.open(THREE)


# --- the parent's files ---


class TestCheckpointsOfTheRunBefore:
    def test_are_neither_deleted_nor_written(self, place: Place) -> None:
        first = place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        there = {path: path.read_bytes() for path in first.paths.checkpoints.rglob("*.pt")}
        second = place.open(THREE, keep_checkpoints=2)
        files = files_of(second.paths, holds=second.store.holds)
        keeper = CheckpointKeeper(second.study, files, appended=lambda: 0, kept=lambda: 9**9, last_states=True)
        leases = [second.study.lease(), second.study.lease()]
        for lease in leases:
            assert lease is not None
            keeper.begin(lease.trial)
        keeper.sweep()
        one, other = (lease for lease in leases if lease is not None)
        second.study.report(one.trial, 1, Step({"score": 0.9}, 3))
        own = second.paths.checkpoint(one.trial, 1, 1)
        keeper.begun(one.trial, Checkpoint(str(own), 1, 1, 0), blocked_s=0.0, process="p")
        own.parent.mkdir(parents=True)
        own.write_text("own")
        keeper.look()
        assert second.study.trials[one.trial].checkpoint == Checkpoint(second.paths.recorded(str(own)), 1, 1, 3)
        second.study.failed(other.trial, cause="error", message="told to", retry=False)
        keeper.sweep()
        keeper.delete_doomed()
        keeper.delete_strays()
        assert {path: path.read_bytes() for path in first.paths.checkpoints.rglob("*.pt")} == there
        assert own.read_text() == "own"
        second.store.close()

    @pytest.mark.parametrize(("last_states", "written"), [(False, False), (True, True)])
    def test_hold_the_last_state_where_data_come_in_shards(
        self, place: Place, *, last_states: bool, written: bool
    ) -> None:
        opened = place.open(TWO)
        files = files_of(opened.paths, holds=opened.store.holds)
        keeper = CheckpointKeeper(opened.study, files, lambda: 0, lambda: 0, last_states=last_states)
        lease = opened.study.lease()
        assert lease is not None
        keeper.begin(0)
        opened.study.report(0, 1, Step({"score": 0.9}, 1))
        keep(opened, lease, step=1)
        decision = opened.study.report(0, 2, Step({"score": 0.5}, 2, finished=True))  # it was better before
        assert keeper.due(0, decision) is written
        opened.store.close()

    def test_are_begun_from_wherever_the_store_was_moved(self, place: Place, tmp_path: Path) -> None:
        place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        second = place.open(THREE)
        second.store.close()
        place.results.rename(tmp_path / "elsewhere")
        moved = open_run(place.file(), THREE, results=tmp_path / "elsewhere")
        lease = moved.study.lease()
        assert lease is not None
        seen = tmp_path / "grown.py"
        assignment: Assignment = Assigning(moved, seen, SETTING)(lease)["assignment"]
        assert assignment.checkpoint is not None
        assert assignment.checkpoint.startswith(str(tmp_path / "elsewhere"))
        assert Path(assignment.checkpoint).is_file()
        assert assignment.start == Origin(assignment.checkpoint, lease.continues.run, 1)  # type: ignore[union-attr]
        assert (assignment.from_step, assignment.takes_over) == (0, False)
        moved.store.close()

    def test_are_found_in_a_bucket(self) -> None:
        paths = RunPaths(Path("/work"), "e", "two", url="s3://bucket/store?region=x")
        name = paths.of_run("one", "checkpoints/trial-00001/a.pt")
        assert name == "../one/checkpoints/trial-00001/a.pt"
        assert paths.located(name) == "s3://bucket/store/work/e/one/checkpoints/trial-00001/a.pt?region=x"
        assert paths.of_run("one", "../zero/checkpoints/a.pt") == "../zero/checkpoints/a.pt"
        assert paths.of_run("one", "s3://other/a.pt") == "s3://other/a.pt"

    @pytest.mark.parametrize("content", [None, "damaged"])
    def test_that_cannot_be_read_fail_the_trial_by_name(self, tmp_path: Path, content: str | None) -> None:
        path = tmp_path / "a.pt"
        if content is not None:
            path.write_text(content)
        trainer = Sharded().begin(SETTING)
        trainer.begin({"x": 0.1}, seed=0)
        start = Origin(str(path), "r", 7)
        assignment = Assignment(0, 1, {}, 0, str(path), 0, RunPaths(tmp_path, "e", "s"), start=start)
        with pytest.raises(DataError, match=r"a\.pt: trial 7 of run r cannot be continued: .*\n.*--fresh"):
            _go_on_from(str(path), trainer, assignment)

    def test_are_not_scored_for_the_weights_of_before(self, place: Place) -> None:
        place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        second = place.open(THREE)
        lease = second.study.lease()
        assert lease is not None
        second.study.report(0, 1, Step({"score": 0.4}, 3, finished=True))
        setting = SETTING.__class__(**{**vars(SETTING), "dataset": THREE})
        assert score_best(second.study, second.store, setting) == {"test_score": lease.config["x"] + 0.3}
        second.store.close()

    def test_that_are_gone_leave_nothing_to_score(self, place: Place) -> None:
        first = place.finished(TWO, 0.5, 0.9, 0.1, 0.7)
        second = place.open(THREE)
        second.study.lease()
        second.study.report(0, 1, Step({"score": 0.4}, 3, finished=True))
        for path in first.paths.checkpoints.rglob("*.pt"):
            path.unlink()
        with pytest.raises(HpoError, match=r"were not kept, and it began with others \(trial 1 of run"):
            score_best(second.study, second.store, SETTING)
        second.store.close()


# --- the study ---

AGAIN = tuple(
    Continued({"x": x, "layers": (1, 2)}, seed, Parent("before", parent), f"../before/{parent}.pt", epochs=2)
    for x, seed, parent in ((0.4, 5, 7), (0.3, 6, 3), (0.2, 7, 12))
)


def begun(**changes: Any) -> tuple[Study, Notes]:
    notes = Notes()
    detail = {
        "run": "before",
        "trials": [
            {
                "trial": one.parent.trial,
                "config": one.config,
                "seed": one.seed,
                "checkpoint": one.path,
                "epochs": one.epochs,
            }
            for one in AGAIN
        ],
    }
    notes(CONTINUES, detail=detail)
    notes("run_started", detail={"trials": 3})
    study = Study(declared(**changes), notes)
    study.go_on_with(AGAIN)
    return study, notes


class TestAStudy:
    @given(st.lists(st.tuples(st.sampled_from(["lease", "report", "fail", "damaged"]), st.integers(0, 2)), max_size=30))
    def test_is_the_same_after_a_replay_and_has_no_other_trials(self, acts: list[tuple[str, int]]) -> None:
        study, notes = begun(max_failures=2)
        for act, number in acts:
            if act == "lease":
                study.lease()
            elif not study.is_leased(number):
                continue
            elif act == "report":
                trial = study.trials[number]
                study.report(number, trial.step + 1, Step({"score": 0.5}, 2, finished=trial.step == 2))
                study.checkpointed(number, Checkpoint(f"{number}.pt", trial.attempt, trial.step, 1))
            elif act == "fail":
                study.failed(number, cause="error", message="told to")
            else:
                study.forget_checkpoint(number)
                study.failed(number, cause="checkpoint", message="told to")
                assert study.trials[number].checkpoint == study.trials[number].inherited
        assert same(study, replayed(study, notes))
        assert len(study.trials) <= len(AGAIN)
        for trial, again in zip(study.trials, AGAIN, strict=False):
            assert (trial.config, trial.seed) == (again.config, again.seed)

    def test_of_trials_that_began_with_others_waits_for_nobody(self) -> None:
        study, _ = begun(space={"x": choice(0.1), "start_from": choice(None, "trial:1")})
        study.go_on_with(
            Continued({"x": 0.1, "start_from": "trial:1"}, 0, Parent("before", n), f"../before/{n}.pt", epochs=2)
            for n in range(3)
        )
        assert [lease.trial for lease in (study.lease(), study.lease()) if lease] == [0, 1]
        assert not study.parents

    def test_hands_a_state_of_before_to_another_trial(self) -> None:
        study, notes = begun(policy=Scripted(((0, 1, ("exploit", 1, 0.1)),)))
        study.lease(), study.lease()
        decision = study.report(0, 1, Step({"score": 0.1}, 3))
        assert isinstance(decision, Exploit)
        taken = study.trials[0].checkpoint
        assert taken is not None
        assert (taken.path, taken.source, taken.parent) == ("../before/3.pt", 1, Parent("before", 3))
        on = study.lease()
        assert on is not None
        assert on.continues is None  # another one's state, as ever
        assert same(study, replayed(study, notes))
        assert study.trials[0].state is TrialState.RUNNING
