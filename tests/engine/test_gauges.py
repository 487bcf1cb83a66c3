"""What a run shows of itself, without Ray: `test_dashboard` has what Ray makes of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo import Minimize, NoStopping
from hpo.engine.gauges import EVERY_S, FORGOTTEN_AFTER_S, LABELS, METRICS, Gauges, RayGauges
from hpo.engine.trials import Lease
from hpo.engine.worker import Trained
from hpo.protocols import Step
from tests.engine.test_checkpoints import Clock
from tests.engine.test_study import begin

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"


class Shown:
    """Keeps what was set, and holds it against the declared names and labels."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def __call__(self, name: str, value: float, **labels: str) -> None:
        (metric,) = [metric for metric in METRICS if metric.name == name]
        assert set(labels) == set(metric.labels)
        self.values[name, frozenset(labels.items())] = value

    def of(self, name: str, **labels: str) -> float | None:
        return self.values.get((name, frozenset(labels.items())))


class Place:
    """A run, its gauges, and its trials' processes."""

    def __init__(self, **settings: Any) -> None:
        self.study, _ = begin(**{"policy": NoStopping(9), **settings})
        self.clock, self.shown = Clock(), Shown()
        self.gauges = Gauges(self.study, self.shown, clock=self.clock)
        self.training: set[tuple[int, int]] = set()

    def lease(self) -> Lease:
        lease = self.study.lease()
        assert lease is not None
        self.training.add((lease.trial, lease.attempt))
        return lease

    def leave(self, lease: Lease) -> None:
        self.training.remove((lease.trial, lease.attempt))

    def step(
        self,
        lease: Lease,
        number: int = 1,
        *,
        after_s: float = 1.0,
        step_s: float = 0.5,
        pid: int = 1,
        gpus: tuple[tuple[str, str], ...] = (),
        score: float = 0.5,
    ) -> None:
        self.clock.now += after_s
        measured = Step({"score": score, "loss": 2.0}, number, 100, device_memory_mb=300.0 if gpus else None)
        self.study.report(lease.trial, number, measured)
        self.gauges.reported(lease, Trained(number, measured, step_s, "node", pid, (), gpus))

    def look(self, *, num_gpus: float = 0.0) -> Shown:
        """What is set now, and nothing of what was set before."""
        self.clock.now += EVERY_S
        self.shown.values.clear()
        self.gauges.round(self.training, num_gpus=num_gpus)
        return self.shown


def test_a_trial() -> None:
    place = Place()
    place.lease()
    place.step(place.lease(), 1, step_s=0.5, score=0.25)
    shown = place.look()
    assert shown.of("hpo_trial_score", trial="1") == 0.25
    assert shown.of("hpo_trial_metric", trial="1", metric="loss") == 2.0
    assert shown.of("hpo_trial_epoch", trial="1") == 1
    assert shown.of("hpo_trial_step_s", trial="1") == 0.5
    assert shown.of("hpo_trial_samples_per_s", trial="1") == shown.of("hpo_samples_per_s") == 200.0
    assert shown.of("hpo_trial_busy_share", trial="1") == 1.0
    assert shown.of("hpo_trial_device_memory_mb", trial="1") is None
    assert shown.of("hpo_trial_score", trial="0") is None  # it has reported nothing


def test_the_run() -> None:
    place = Place(trials=5)
    first, second = place.lease(), place.lease()
    place.step(first, 1, step_s=0.5, score=0.25)
    place.step(second, 1, step_s=0.25, score=0.75, pid=2)
    place.study.lease()  # which has no place yet
    shown = place.look()
    assert (shown.of("hpo_best_value", metric="score"), shown.of("hpo_best_trial")) == (0.75, 1)
    assert (shown.of("hpo_steps_done"), shown.of("hpo_steps_busy_s")) == (2, 0.75)
    assert shown.of("hpo_queue") == 1
    states = {state: shown.of("hpo_trials", state=state) for state in ("running", "waiting", "paused", "failed")}
    assert states == {"running": 3, "waiting": 2, "paused": 0, "failed": 0}


def test_a_loss_is_shown_as_it_was_measured_and_its_score_turned() -> None:
    place = Place(goal=Minimize("score"))
    place.step(place.lease(), score=0.25)
    shown = place.look()
    assert shown.of("hpo_best_value", metric="score") == shown.of("hpo_trial_metric", trial="0", metric="score") == 0.25
    assert shown.of("hpo_trial_score", trial="0") == -0.25


def test_nothing_is_set_of_a_trial_that_gave_its_place_back() -> None:
    place = Place()
    lease, next_one = place.lease(), place.lease()
    place.step(lease)
    assert place.look().of("hpo_trial_score", trial="0") == 0.5
    place.leave(lease)
    shown = place.look()
    assert not [name for name, _ in shown.values if name.startswith("hpo_trial_")]
    assert shown.of("hpo_samples_per_s") == 0
    place.step(next_one)
    assert place.look().of("hpo_trial_score", trial="1") == 0.5


def test_of_two_attempts_the_one_that_trains_is_shown() -> None:
    place = Place()
    lost = place.lease()
    place.step(lost, 1, score=0.5, pid=1)
    place.study.failed(0, cause="killed", message="")
    place.leave(lost)
    again = place.lease()
    assert (again.trial, again.attempt) == (0, 2)
    assert place.look().of("hpo_trial_epoch", trial="0") is None
    place.step(again, 2, pid=2)
    assert place.look().of("hpo_trial_epoch", trial="0") == 2


def test_they_are_set_every_so_often() -> None:
    place = Place()
    place.look()
    place.shown.values.clear()
    place.clock.now += EVERY_S * 0.9
    place.gauges.round(place.training, num_gpus=0)
    assert not place.shown.values
    place.clock.now += EVERY_S * 0.1
    place.gauges.round(place.training, num_gpus=0)
    assert place.shown.values


def test_a_run_that_has_no_score_yet_shows_no_best() -> None:
    place = Place()
    place.step(place.lease(), score=float("nan"))
    assert place.look().of("hpo_best_value", metric="score") is None


def test_trials_that_share_a_gpu_add_up() -> None:
    place = Place()
    for number in range(3):
        place.step(place.lease(), after_s=0, step_s=1.0, pid=number, gpus=(("node", str(number // 2)),))
    shown = place.look(num_gpus=0.5)
    assert [shown.of("hpo_gpu_busy_share", node="node", gpu=gpu) for gpu in "01"] == [1.0, 0.5]
    assert [shown.of("hpo_gpu_trials", node="node", gpu=gpu) for gpu in "01"] == [2, 1]
    assert [shown.of("hpo_gpu_device_memory_mb", node="node", gpu=gpu) for gpu in "01"] == [600.0, 300.0]


def test_a_trial_on_several_gpus_is_shown_on_each() -> None:
    place = Place()
    place.step(place.lease(), gpus=(("one", "0"), ("two", "3")))
    shown = place.look(num_gpus=2)  # of both of its workers
    assert shown.of("hpo_gpu_busy_share", node="one", gpu="0") == 1.0
    assert shown.of("hpo_gpu_busy_share", node="two", gpu="3") == 1.0


def test_workers_of_a_trial_that_share_a_gpu_are_one_trial() -> None:
    place = Place()
    place.step(place.lease(), gpus=(("one", "0"),) * 2)
    shown = place.look(num_gpus=0.5)
    assert shown.of("hpo_gpu_busy_share", node="one", gpu="0") == 0.5
    assert shown.of("hpo_gpu_trials", node="one", gpu="0") == 1


def test_waiting_between_trials_counts_as_idle() -> None:
    place = Place()
    first = place.lease()
    place.step(first, 1, step_s=1.0)
    assert place.look().of("hpo_trial_busy_share", trial="0") == 1.0
    place.leave(first)
    place.step(place.lease(), 1, after_s=10.0 - EVERY_S, step_s=2.5)
    assert place.look().of("hpo_trial_busy_share", trial="1") == pytest.approx(0.25)


def test_a_process_that_has_ended_is_forgotten() -> None:
    place = Place()
    first = place.lease()
    place.step(first, 1, step_s=1.0)
    place.leave(first)
    place.clock.now += FORGOTTEN_AFTER_S
    place.look()
    place.step(place.lease(), 1, step_s=1.0)  # another process, which by chance has its number
    assert place.look().of("hpo_trial_busy_share", trial="1") == 1.0


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 1), st.booleans()), min_size=1, max_size=20))
def test_the_busy_share_is_what_was_spent_in_steps_since_the_last_look_at_a_report(
    steps: list[tuple[float, float, bool]],
) -> None:
    place = Place(policy=NoStopping(99))
    lease = place.lease()
    place.step(lease, 1, after_s=1.0, step_s=1.0)
    expected = place.look().of("hpo_trial_busy_share", trial="0")
    assert expected == 1.0
    busy_s = took_s = 0.0
    paused_s = EVERY_S
    for number, (after_s, share, looks) in enumerate(steps, start=2):
        place.step(lease, number, after_s=after_s, step_s=after_s * share)
        busy_s, took_s, paused_s = busy_s + after_s * share, took_s + after_s + paused_s, 0.0
        if looks:
            shown = place.look().of("hpo_trial_busy_share", trial="0")
            assert shown == pytest.approx(busy_s / took_s)
            busy_s, took_s, paused_s = 0.0, 0.0, EVERY_S


@pytest.mark.parametrize("name", ["größe", "学習率", "plain"])
def test_ray_takes_labels_of_all_letters_and_values_that_are_no_numbers(name: str) -> None:
    write = RayGauges(experiment=name, run="r1")
    for value in (1.0, 2, float("nan"), float("-inf")):
        write("hpo_trial_metric", value, trial="0", metric=name)
    assert 0 < write.every_s <= EVERY_S


def test_the_page_has_each_name_with_its_labels() -> None:
    rows = re.findall(r"^\| `(ray_hpo_\w+)` \| ([^|]*) \| ([^|]*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    declared = [
        (metric.served_as, ", ".join(f"`{label}`" for label in metric.labels), metric.shows) for metric in METRICS
    ]
    assert [tuple(cell.strip() for cell in row) for row in rows] == declared
    assert all(f"`{label}`" in PAGE.read_text(encoding="utf-8") for label in LABELS)
