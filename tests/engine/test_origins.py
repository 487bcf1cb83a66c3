"""Whose weights a trial begins with: found in the store, waited for within a run, kept in the journal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo import Best, Experiment, NoStopping, choice, grid, uniform
from hpo.engine.final_test import score_best
from hpo.engine.opening import OpenRun, open_run
from hpo.engine.origins import FOUND, Origin, detail_of, find, find_all, of_trial, parents
from hpo.engine.study import Study
from hpo.engine.worker import Trained
from hpo.errors import ExperimentError, HpoError
from hpo.experiment_file import ExperimentFile
from hpo.protocols import Dataset, Trainer
from hpo.results import Place, RunStore, Store
from hpo.start_from import BestOf, Offered, TrialOf, WeightsFile, asked, parse
from hpo.trial import Config
from tests.buckets import Buckets
from tests.engine.test_desk import Place as DeskPlace
from tests.engine.test_final_test import SETTING
from tests.engine.test_study import Notes, begin, experiment, replayed, same, step
from tests.engine.toy import Toy
from tests.results.entries import RUN_STARTED, train


@dataclass(frozen=True)
class Starting(Toy):
    can_start_from = True

    def check_config(self, config: Config) -> None:
        super().check_config({name: value for name, value in config.items() if name != "start_from"})


def starting(*values: str | None, **more: Any) -> Experiment:
    space = {"x": uniform(0.0, 1.0), **({"start_from": choice(*values)} if values else {})}
    return experiment(task=Starting(), space=space, **more)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Best("cifar"), BestOf("cifar", None)),
        (Best("cifar", "20261121-105503-ab12"), BestOf("cifar", "20261121-105503-ab12")),
        ("trial:12", TrialOf(12)),
        ("torchvision:DEFAULT", Offered("DEFAULT")),
        ("weights/resnet.pt", WeightsFile("weights/resnet.pt")),
        ("s3://bucket/a.pt", WeightsFile("s3://bucket/a.pt")),
        ("./best:cifar", WeightsFile("./best:cifar")),
        *(
            (nothing, None)
            for nothing in ("", "best:", "best:a/b/c", "trial:", "trial:-1", "trial:x", "torchvision:", 3)
        ),
    ],
)
def test_a_value_names_what_it_says(value: object, named: object) -> None:
    assert parse(value) == named


@given(st.text(max_size=20))
def test_any_text_names_one_thing_or_nothing(value: str) -> None:
    named = parse(value)
    if isinstance(named, BestOf):
        assert Best(named.experiment, named.run) == value


def test_a_value_may_be_given_to_its_part_by_name() -> None:
    assert asked({"start.start_from": "a.pt"}) == asked({"start_from": "a.pt"}) == "a.pt"
    assert asked({"x": 1}) is None


# --- another experiment ---


def keep(store: RunStore, trial: int, step: int, *, written: bool = True) -> str:
    path = store.paths.checkpoint(trial, 1, step)
    if written:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
    name = store.paths.recorded(store.paths.target(path))
    store.append("checkpoint", trial=trial, attempt=1, step=step, detail={"path": name, "bytes": 7})
    return str(path.resolve())


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """A run of an experiment with one trial a score, each with a checkpoint; its id."""

    def make(name: str, *scores: float, kept: bool = True, written: bool = True, end: str = "completed") -> str:
        with RunStore.create(tmp_path / "results", experiment=name) as store:
            store.append("run_started", detail=RUN_STARTED)
            for trial, score in enumerate(scores):
                train(store, trial, [score], config={}, end=end)
                if kept:
                    keep(store, trial, 1, written=written)
            return store.paths.run_id

    return make


def store_of(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


class TestBest:
    def test_is_the_best_finished_trial_that_has_a_checkpoint(self, run: Callable[..., str], tmp_path: Path) -> None:
        made = run("a", 0.1, 0.9, 0.5)
        found = find(Best("a"), store_of(tmp_path))
        assert (found.run, found.trial) == (made, 1)
        assert Path(found.weights).read_bytes() == b"weights"
        assert Path(found.weights).is_absolute()
        assert find(found.weights, store_of(tmp_path)) == found  # the file alone tells whose it is

    def test_is_of_the_newest_run_that_has_one_or_of_the_one_named(
        self, run: Callable[..., str], tmp_path: Path
    ) -> None:
        first, second = run("a", 0.9), run("a", 0.5)
        run("a", 0.7, kept=False), run("a", 0.8, end=""), run("a", 0.8, written=False)
        assert find(Best("a"), store_of(tmp_path)).run == second
        for one in (first, second):
            assert find(Best("a", one), store_of(tmp_path)).run == one

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                Best("other"),
                r"there is no run of an experiment 'other' in .*results\n  there are: bare, going; `hpo runs`",
            ),
            (Best("bare", "x"), r"there is no run x of bare in .*results\n  there are: bare"),
            (Best("bare"), r"no trial of bare that has finished has a checkpoint in .*results\n .*`hpo best bare`"),
            (Best("going"), r"no trial of going that has finished has a checkpoint"),
            ("nowhere.pt", r"there is no file /.*nowhere\.pt\n .*Best\(\"name\"\)"),
        ],
    )
    def test_what_is_not_there_is_an_error(
        self, run: Callable[..., str], tmp_path: Path, value: str, message: str
    ) -> None:
        run("bare", 0.5, kept=False), run("going", 0.5, end="")
        with pytest.raises(ExperimentError, match=rf"space.start_from: {message}"):
            find_all(starting(None, value), store_of(tmp_path))
        with pytest.raises(ExperimentError, match=r"fixed.start_from: "):
            find_all(starting(fixed={"start_from": value}), store_of(tmp_path))

    def test_an_empty_store_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(ExperimentError, match=r"the store is empty"):
            find(Best("a"), store_of(tmp_path))

    def test_of_a_task_that_has_no_use_for_it_nothing_is_looked_up(self, tmp_path: Path) -> None:
        made = experiment(fixed={"start_from": Best("a")})
        assert find_all(made, store_of(tmp_path)) == {}
        assert parents(experiment(fixed={"start_from": "trial:0"})) == set()

    def test_weights_in_a_bucket_are_found_there(self, buckets: Buckets) -> None:
        url = buckets.new()
        with RunStore.create(url, experiment="a") as store:
            store.append("run_started", detail=RUN_STARTED)
            train(store, 0, [0.5], config={})
            path = store.paths.checkpoint(0, 1, 1)
            target = store.paths.target(path)
            buckets_write(target)
            store.append(
                "checkpoint",
                trial=0,
                attempt=1,
                step=1,
                detail={"path": store.paths.recorded(target), "bytes": 7},
            )
        found = find(Best("a"), Store(Place.of(url)))
        assert (found.weights, found.trial) == (target, 0)


def buckets_write(target: str) -> None:
    from hpo.storage import parted

    storage, name = parted(target)
    storage.write(name, b"weights")


# --- the same ones ever after ---


def opened(tmp_path: Path, made: Experiment, **how: Any) -> OpenRun:
    path = tmp_path / "child.py"
    path.write_text("")
    return open_run(ExperimentFile(path, "child.py", made), Dataset("toy", "toy"), results=tmp_path / "results", **how)


class TestARun:
    def test_goes_on_with_what_it_began_with(self, run: Callable[..., str], tmp_path: Path) -> None:
        first = run("a", 0.5)
        made = starting(fixed={"start_from": Best("a")})
        begun = opened(tmp_path, made)
        assert begun.origins[Best("a")].run == first
        begun.store.close()
        run("a", 0.9)
        again = opened(tmp_path, made)
        again.store.close()
        assert again.resumed
        assert again.origins == begun.origins
        assert [entry.kind for entry in again.store.entries].count(FOUND) == 1
        fresh = opened(tmp_path, made, fresh=True)
        fresh.store.close()
        assert fresh.origins != begun.origins

    def test_goes_on_when_the_store_was_moved(self, run: Callable[..., str], tmp_path: Path) -> None:
        first = run("a", 0.5)
        made = starting(fixed={"start_from": Best("a")})
        opened(tmp_path, made).store.close()
        (tmp_path / "results").rename(tmp_path / "elsewhere")
        entries = [Entry(detail_of(Best("a"), Origin(str(tmp_path / "results" / "gone.pt"), first, 0)))]
        [origin] = find_all(made, Store(tmp_path / "elsewhere"), entries).values()
        assert (origin.run, origin.trial) == (first, 0)
        assert str(tmp_path / "elsewhere") in origin.weights

    @pytest.mark.parametrize("run_id", ["gone", None])
    def test_says_that_its_weights_are_gone(self, tmp_path: Path, run_id: str | None) -> None:
        entries = [Entry(detail_of("a.pt", Origin("/nowhere/a.pt", run_id, None if run_id is None else 3)))]
        more = r" \(trial 3 of run gone\)" if run_id else ""
        with pytest.raises(ExperimentError, match=rf"that the run began with are gone: /nowhere/a.pt{more}\n.*--fresh"):
            find_all(starting(fixed={"start_from": "a.pt"}), store_of(tmp_path), entries)

    def test_that_cannot_begin_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with pytest.raises(ExperimentError, match=r"child\.py: fixed\.start_from: there is no run of an experiment"):
            opened(tmp_path, starting(fixed={"start_from": Best("a")}))
        assert not (tmp_path / "results").exists()


@dataclass(frozen=True)
class Entry:
    detail: dict[str, Any]
    kind: str = FOUND


# --- a trial of the same run ---


class TestWaiting:
    def study(self, **more: Any) -> tuple[Study, Notes]:
        space = {"start_from": grid(None, "trial:0", "trial:1")}
        return begin(task=Starting(), space=space, fixed={"x": 0.5}, trials=None, policy=NoStopping(1), **more)

    def test_a_trial_waits_until_the_one_that_it_begins_with_has_ended(self) -> None:
        study, notes = self.study()
        first = study.lease()
        assert first is not None
        assert study.lease() is None  # the second waits for it, the third for the second
        assert [trial.state for trial in study.trials] == ["running", "paused", "paused"]
        assert not study.finished
        study.report(0, 1, step(0.5))
        second = study.lease()
        assert second is not None
        assert (second.trial, second.why) == (1, "new")
        assert study.lease() is None
        study.failed(1, cause="error", message="told to", retry=False)
        third = study.lease()
        assert third is not None
        assert same(study, replayed(study, notes))
        study.report(2, 1, step(0.5))
        assert study.finished
        assert same(study, replayed(study, notes))

    def test_where_nothing_else_trains_a_trial_waits_no_more(self) -> None:
        study, _ = self.study()
        assert study.lease() is not None
        assert study.lease() is None
        study._leased.clear()  # paused by a policy that will never promote it
        waited = study.lease()
        assert waited is not None
        assert waited.trial == 1

    def test_others_are_begun_in_the_meantime(self) -> None:
        space = {"start_from": grid(None, "trial:0", "none.pt")}
        study, notes = begin(task=Starting(), space=space, fixed={"x": 0.5}, trials=None, policy=NoStopping(1))
        leases = [study.lease(), study.lease()]
        assert [lease.trial for lease in leases if lease] == [0, 2]
        assert same(study, replayed(study, notes))

    @given(
        st.lists(
            st.sampled_from([None, "a.pt", *(f"trial:{n}" for n in range(6))]), min_size=1, max_size=6, unique=True
        ),
        st.randoms(use_true_random=False),
        st.integers(1, 3),
    )
    def test_every_trial_ends_after_the_one_that_it_begins_with_and_a_replay_agrees(
        self, values: list[str | None], random: Any, places: int
    ) -> None:
        space = {"start_from": grid(values)}
        study, notes = begin(task=Starting(), space=space, fixed={"x": 0.5}, trials=None, policy=NoStopping(1))
        training: list[int] = []
        ended: list[int] = []
        while True:
            while len(training) < places and (lease := study.lease()) is not None:
                parent = parse(lease.config["start_from"])
                assert not isinstance(parent, TrialOf) or parent.trial in ended or parent.trial >= lease.trial
                training.append(lease.trial)
            if not training:
                break
            done = training.pop(random.randrange(len(training)))
            if random.random() < 0.2:
                study.failed(done, cause="error", message="told to", retry=False)
            else:
                study.report(done, 1, step(random.random()))
            ended.append(done)
            assert same(study, replayed(study, notes))
        assert study.finished
        assert sorted(ended) == list(range(len(values)))

    def test_the_weights_that_are_waited_for_are_kept_and_waited_for(self, tmp_path: Path) -> None:
        place = DeskPlace(
            tmp_path,
            task=Starting(),
            space={"start_from": grid("none.pt", None, "trial:0", "other.pt")},
            fixed={"x": 0.5},
            trials=None,
            policy=NoStopping(1),
            keep_checkpoints=1,
        )
        first, second, _ = place.lease(), place.lease(), place.lease()  # the last one trains on
        place.report(second, 1, 0.9)
        place.desk.wants_checkpoint(second)
        place.report(first, 1, 0.1)  # far from the best
        assert place.desk.wants_checkpoint(first)
        assert place.desk.lease() is None  # its weights are not on disk yet
        written = place.save(first, 1)
        assert place.desk.lease() is None
        place.keeper.told(written)
        third = place.lease()
        assert third.trial == 2
        parent = place.study.trials[0].checkpoint
        assert parent is not None
        place.keeper.sweep()
        assert not place.keeper._doomed

    @pytest.mark.parametrize(
        ("trial", "parent", "checkpoint", "message"),
        [
            (2, 1, None, r"trial 2 cannot begin with trial 1 of its run, which has no checkpoint\n.*hpo logs"),
            (2, 2, "a.pt", r"trial 2 cannot begin with trial 2 of its run, which is not an earlier one"),
        ],
    )
    def test_weights_that_are_not_there_fail_the_trial(
        self, trial: int, parent: int, checkpoint: str | None, message: str
    ) -> None:
        found = of_trial(trial, parent, run="r", checkpoint=checkpoint)
        with pytest.raises(HpoError, match=message):
            raise found if isinstance(found, HpoError) else AssertionError

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (starting(fixed={"start_from": "trial:0"}), r"fixed.start_from: all trials would begin with trial 0"),
            (starting(None, "trial:6"), r"space.start_from: there is no trial 6: the run has trials 0 to 5"),
        ],
    )
    def test_what_cannot_be_is_an_error_before_the_run(self, tmp_path: Path, made: Experiment, message: str) -> None:
        with pytest.raises(ExperimentError, match=message):
            find_all(made, store_of(tmp_path))


def test_lineage_is_in_the_trials_row(tmp_path: Path) -> None:
    place = DeskPlace(tmp_path, policy=NoStopping(2))
    lease = place.lease()
    began_with = {"weights": "/a.pt", "run": "parent", "trial": 4, "digest": "0123456789abcdef"}
    place.desk.report(lease, Trained(1, step(0.5), 0.1, "node", 1, began_with=began_with))
    [told] = [entry for entry in place.notes.entries if entry.kind == "started_from"]
    assert (told.trial, told.detail) == (0, json.loads(json.dumps(began_with)))
    assert same(place.study, replayed(place.study, place.notes))
    with RunStore.create(tmp_path / "results", experiment="child") as store:
        store.append("proposed", trial=0, detail={"config": {}, "seed": 0})
        store.append("started_from", trial=0, attempt=1, detail=told.detail)
    query = "SELECT parent_run, parent_trial, parent_digest FROM trials"
    assert store_of(tmp_path).sql(query).to_pylist() == [
        {"parent_run": "parent", "parent_trial": 4, "parent_digest": "0123456789abcdef"}
    ]


def test_weights_that_nobody_kept_are_not_trained_again_from_others(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "results", experiment="e") as store:
        study = Study(starting(fixed={"start_from": "a.pt"}), store.append)
        study.lease()
        study.report(0, 1, step(0.5))
        with pytest.raises(HpoError, match=r"trial 0 \(step 1\) were not kept, and it began with others \(a\.pt\)"):
            score_best(study, store, SETTING)


def test_a_trainer_that_cannot_says_so(tmp_path: Path) -> None:
    trainer: Trainer = Toy().begin(SETTING)
    with pytest.raises(ExperimentError, match=r"start_from: ToyTrainer cannot begin with weights that are there"):
        trainer.start_from(tmp_path / "a.pt")
