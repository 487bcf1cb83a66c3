"""The experiment: what is refused, by which words, and what its digest covers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hpo import (
    Asha,
    Experiment,
    GridSearch,
    Maximize,
    NoStopping,
    Patience,
    PerTrial,
    choice,
    grid,
    loguniform,
    uniform,
)
from hpo.errors import ExperimentError
from hpo.experiment import changes, digest_of
from tests.engine.toy import Promoting, Toy


def experiment(**settings: Any) -> Experiment:
    base = {"task": Toy(), "space": {"x": uniform(0, 1)}, "goal": Maximize("score"), "trials": 4, "policy": Asha(9)}
    return Experiment(**{**base, **settings})


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"task": "toy"}, r"task: 'toy' is a str.*Classification"),
            ({"space": [1]}, r"space: \[1\] is a list"),
            ({"goal": "score"}, r"goal: 'score' is a str.*Maximize"),
            ({"policy": [Asha(9), 3]}, r"policy\[1\]: 3 is a int"),
            ({"search": "random"}, r"search: 'random' is a str"),
            ({"per_trial": 1}, r"per_trial: 1 is a int"),
            ({"space": {"x": uniform(1, 0)}}, r"space\.x: low=1 is not below high=0.*swap"),
            ({"space": {"x": 0.5}}, r"space\.x: 0\.5 is not a domain.*fixed"),
        ],
    )
    def test_when_it_is_declared(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ExperimentError, match=f"(?s){message}"):
            experiment(**settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"trials": 0}, r"trials: 0 is not an integer of at least 1"),
            ({"trials": None}, r"trials: it says nowhere how many"),
            ({"seed": -1}, r"seed: -1 is not an integer of at least 0"),
            ({"checkpoint_every_s": float("nan")}, r"checkpoint_every_s: nan is not a number"),
            ({"goal": Maximize("scor")}, r"goal: Toy does not report 'scor'.*did you mean 'score'"),
            ({"policy": (Promoting(9), Promoting(3))}, r"policy: more than one policy pauses"),
            ({"policy": Patience(3)}, r"policy: nothing says when a trial has trained enough"),
            ({"policy": Asha(0)}, r"asha\.max_epochs: 0 is not an integer"),
            ({"policy": Asha(3, grace=4)}, r"asha\.grace: 4 is above max_epochs=3"),
            ({"fixed": {"x": 1.0}}, r"fixed\.x: it stands in space as well"),
            ({"fixed": {"say": {}}}, r"fixed\.say: \{\} is a dict"),
            ({"fixed": {"y": 1}}, r"fixed\.y: nobody takes it.*valid: x, epochs"),
            ({"space": {"y": uniform(0, 1)}}, r"space\.y: nobody takes it"),
            ({"space": {"x": uniform(0, 1e7)}}, r"space\.x: 10000000\.0 is too large"),
            ({"per_trial": PerTrial(gpus=1.5)}, r"per_trial\.gpus: 1\.5 is neither whole nor below 1"),
            ({"per_trial": PerTrial(cpus=0)}, r"per_trial\.cpus: 0 leaves the trial no CPU core"),
            ({"per_trial": PerTrial(workers=0)}, r"per_trial\.workers: 0 is not an integer of at least 1"),
            (
                {"per_trial": PerTrial(workers=2)},
                r"per_trial\.workers: 2 processes cannot train a trial of Toy together",
            ),
            ({"per_trial": PerTrial(strategy="far")}, r"per_trial\.strategy: 'far' is not one of pack, spread"),
            ({"per_trial": PerTrial(hang_s=0)}, r"per_trial\.hang_s: 0 is not a number of at least 1"),
            (
                {"per_trial": PerTrial(workers=2), "concurrent": "auto"},
                r'concurrent: "auto" finds .* has one use several',
            ),
            ({"per_trial": PerTrial(gpus=1e-5)}, r"per_trial\.gpus: 1e-05 is a share below 0\.0001"),
            ({"per_trial": PerTrial(cpus=1e-5)}, r"per_trial\.cpus: 1e-05 is a share below 0\.0001"),
            *(
                (
                    {"per_trial": PerTrial(data_memory_fraction=share)},
                    rf"data_memory_fraction: {share!r} is not a number",
                )
                for share in (0, 1.5, True, "all")
            ),
            *(
                ({"concurrent": value}, rf"concurrent: {value!r} is neither an integer of at least 1 nor \"auto\"")
                for value in (0, 1.5, True, "all")
            ),
            (
                {"concurrent": "auto", "per_trial": PerTrial(gpus=2)},
                r"concurrent: \"auto\" finds how many.*per_trial\.gpus=2 gives a trial several",
            ),
            ({"search": GridSearch()}, r"space\.x: uniform cannot be crossed by GridSearch"),
            ({"space": {"x": uniform(0, 1).when(say="a")}}, r"space\.x: its condition names 'say'"),
        ],
    )
    def test_when_it_is_checked(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ExperimentError, match=f"(?s){message}"):
            experiment(**settings).check()

    def test_a_value_at_the_far_end_of_a_conditional_range_is_shown_to_the_task(self) -> None:
        space = {"say": choice("a", "b"), "x": uniform(0, 1e7).when(say="b")}
        with pytest.raises(ExperimentError, match=r"space\.x: \d+\.\d+ is too large"):
            experiment(space=space).check()


class TestOverrides:
    def test_fields_parts_and_hyper_parameters_are_named_alike(self) -> None:
        changed = experiment(fixed={"say": "a"}).with_overrides(
            {"trials": 9, "asha.max_epochs": 3, "x": 0.5, "say": "b", "per_trial.gpus": 0, "sleep_s": 0.1},
            source="--set",
        )
        changed.check()
        assert changed.trials == 9
        assert changed.policies == (Asha(3),)
        assert changed.fixed == {"say": "b", "x": 0.5, "sleep_s": 0.1}
        assert not changed.space
        assert changed.per_trial.gpus == 0

    def test_concurrent_is_a_field(self) -> None:
        for value in (3, "auto", None):
            changed = experiment(concurrent=2).with_overrides({"concurrent": value}, source="--set")
            changed.check()
            assert changed.concurrent == value

    def test_fixing_a_parent_drops_what_can_no_longer_be(self) -> None:
        space = {
            "say": choice("a", "b"),
            "x": uniform(0, 1).when(say=["a"]),
            "sleep_s": uniform(0, 1).when(say="b"),
            "nan_at": choice(1, 2).when(sleep_s=[0.5]),
        }
        changed = experiment(space=space).with_overrides({"say": "a"}, source="--set")
        changed.check()
        assert list(changed.space) == ["x"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("y", r"--set: y: nobody takes it.*fields that can be set: trials, seed"),
            ("trails", r"--set: trails: nobody takes it.*did you mean 'trials'"),
            ("asha.max_epoch", r"--set: asha\.max_epoch: asha has no setting 'max_epoch'.*valid: max_epochs"),
        ],
    )
    def test_an_unknown_name_lists_the_valid_ones(self, name: str, message: str) -> None:
        with pytest.raises(ExperimentError, match=f"(?s){message}"):
            experiment().with_overrides({name: 1}, source="--set")


class TestDigest:
    def digest(self, **settings: Any) -> str:
        return digest_of(experiment(**settings).describe())

    @pytest.mark.parametrize(
        "settings",
        [
            {"space": {"x": uniform(0, 2)}},
            {"space": {"x": loguniform(0.1, 1)}},
            {"space": {"x": uniform(0, 1).when(say="a")}, "fixed": {"say": "a"}},
            {"fixed": {"say": "a"}},
            {"goal": Maximize("loss")},
            {"policy": Asha(27)},
            {"policy": (Asha(9), Patience(2))},
            {"search": GridSearch()},
            {"seed": 1},
            {"task": Toy(size=3)},
        ],
    )
    def test_covers_what_the_outcome_depends_on(self, settings: dict[str, Any]) -> None:
        assert self.digest(**settings) != self.digest()

    @pytest.mark.parametrize(
        "settings",
        [
            {"trials": 40},
            {"per_trial": PerTrial(gpus=0)},
            {"quick": {"trials": 1}},
            {"keep_checkpoints": 1},
            {"concurrent": 3},
        ],
    )
    def test_does_not_cover_how_much_and_where(self, settings: dict[str, Any]) -> None:
        assert self.digest(**settings) == self.digest()

    def test_the_description_is_json(self) -> None:
        described = experiment(space={"x": grid(1, 2)}, policy=(NoStopping(3),)).describe()
        assert json.loads(json.dumps(described)) == described

    def test_changes_are_named_one_by_one(self) -> None:
        old, new = experiment().describe(), experiment(space={"x": uniform(0, 3)}, seed=2).describe()
        assert changes(old, new) == ["seed: 0 is now 2", "space.x.high: 1 is now 3"]


def test_lists_become_tuples_and_a_single_policy_becomes_one() -> None:
    made = experiment(fixed={"say": ["a", ["b"]]})
    assert made.fixed["say"] == ("a", ("b",))
    assert made.policies == (Asha(9),)
    assert made.max_steps == 9
