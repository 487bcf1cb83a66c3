"""Schedules against PyTorch's classes, and against values computed by hand."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.optim import SGD, lr_scheduler

from hpo.errors import ExperimentError
from hpo.training.schedules import FORMULAS, RULES, Formula, Moment, Plateau, begin, schedules

LR = 0.3


def ours(name: str, *, steps: int, per_epoch: int = 1, epochs: float | None = None, **settings: Any) -> list[float]:
    schedule = Formula(FORMULAS[name], **settings)
    return [schedule.rate(LR, Moment(step, per_epoch, epochs)) for step in range(steps)]


def torchs(make: Callable[[Any], Any], *, steps: int, lr: float = LR) -> list[float]:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def alike(rates: list[float]) -> Any:
    return pytest.approx(rates, rel=1e-9, abs=1e-12)


class TestPyTorchs:
    """Set once an epoch, or once a batch with lengths in epochs: the same rates."""

    @given(size=st.integers(1, 20), gamma=st.floats(0.05, 1), per_epoch=st.integers(1, 7))
    def test_step(self, size: int, gamma: float, per_epoch: int) -> None:
        theirs = torchs(lambda o: lr_scheduler.StepLR(o, size * per_epoch, gamma), steps=50)
        assert ours("step", steps=50, per_epoch=per_epoch, step_size=size, gamma=gamma) == alike(theirs)

    @given(milestones=st.lists(st.integers(1, 40), min_size=1, max_size=4), gamma=st.floats(0.05, 1))
    def test_multistep(self, milestones: list[int], gamma: float) -> None:
        theirs = torchs(lambda o: lr_scheduler.MultiStepLR(o, milestones, gamma), steps=50)
        assert ours("multistep", steps=50, milestones=tuple(milestones), gamma=gamma) == alike(theirs)

    @given(gamma=st.floats(0.5, 1))
    def test_exponential(self, gamma: float) -> None:
        theirs = torchs(lambda o: lr_scheduler.ExponentialLR(o, gamma), steps=40)
        assert ours("exponential", steps=40, gamma=gamma) == alike(theirs)

    @given(total=st.integers(1, 40), power=st.floats(0.3, 3), per_epoch=st.integers(1, 7))
    def test_polynomial(self, total: int, power: float, per_epoch: int) -> None:
        theirs = torchs(lambda o: lr_scheduler.PolynomialLR(o, total * per_epoch, power), steps=60)
        mine = ours("polynomial", steps=60, per_epoch=per_epoch, total_iters=total, power=power)
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-9)

    @given(length=st.integers(1, 40), eta_min=st.floats(0, 0.1), per_epoch=st.integers(1, 7))
    def test_cosine(self, length: int, eta_min: float, per_epoch: int) -> None:
        steps = length * per_epoch + 1
        theirs = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, length * per_epoch, eta_min), steps=steps)
        mine = ours("cosine", steps=steps, per_epoch=per_epoch, epochs=length, eta_min=eta_min)
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-9)

    @given(first=st.integers(1, 9), mult=st.integers(1, 3), per_epoch=st.integers(1, 5))
    def test_cosine_restarts(self, first: int, mult: int, per_epoch: int) -> None:
        theirs = torchs(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, first * per_epoch, mult, 0.01), steps=80)
        mine = ours("cosine_restarts", steps=80, per_epoch=per_epoch, T_0=first, T_mult=mult, eta_min=0.01)
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-6)

    @given(
        epochs=st.integers(1, 8),
        per_epoch=st.integers(4, 9),
        pct_start=st.floats(0.2, 0.45),
        three_phase=st.booleans(),
        anneal=st.sampled_from(["cos", "linear"]),
    )
    def test_onecycle(self, epochs: int, per_epoch: int, pct_start: float, three_phase: Any, anneal: str) -> None:
        options: dict[str, Any] = {
            "pct_start": pct_start,
            "three_phase": three_phase,
            "anneal_strategy": anneal,
            "div_factor": 10.0,
            "final_div_factor": 100.0,
        }
        total = epochs * per_epoch
        assume(pct_start * total > 1.1)  # PyTorch divides by the length of the first phase
        theirs = torchs(
            lambda o: lr_scheduler.OneCycleLR(o, LR, total, cycle_momentum=False, **options),
            steps=total,
        )
        assert ours("onecycle", steps=total, per_epoch=per_epoch, epochs=epochs, **options) == alike(theirs)

    @given(
        up=st.integers(1, 6),
        down=st.integers(1, 6),
        mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
        per_epoch=st.integers(1, 5),
    )
    def test_cyclical(self, up: int, down: int, mode: Any, per_epoch: int) -> None:
        theirs = torchs(
            lambda o: lr_scheduler.CyclicLR(
                o, LR, 0.9, up * per_epoch, down * per_epoch, mode=mode, gamma=0.97, cycle_momentum=False
            ),
            steps=60,
        )
        settings: dict[str, Any] = {"max_lr": 0.9, "step_size_up": up, "step_size_down": down, "mode": mode}
        mine = ours("cyclical", steps=60, per_epoch=per_epoch, gamma=0.97, **settings)
        assert mine == pytest.approx(theirs, abs=1e-8)

    @given(
        values=st.lists(st.floats(-2, 2), min_size=1, max_size=40),
        mode=st.sampled_from(["min", "max"]),
        patience=st.integers(0, 3),
        cooldown=st.integers(0, 3),
        cut=st.integers(0, 40),
    )
    def test_plateau(self, values: list[float], mode: Any, patience: int, cooldown: int, cut: int) -> None:
        """Also where it is made anew from its state in between."""
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=LR)
        theirs = lr_scheduler.ReduceLROnPlateau(optimizer, mode, 0.5, patience, cooldown=cooldown, eps=0.0)
        settings = {"scheduler_factor": 0.5, "scheduler_patience": patience, "scheduler_cooldown": cooldown}
        mine = begin(Plateau, settings, mode=mode)
        for number, value in enumerate(values):
            if number == cut:
                before, mine = mine, begin(Plateau, settings, mode=mode)
                mine.restore(before.state())
            theirs.step(value)
            mine.measured(value)
            assert mine.rate(LR, Moment(0, 1, None)) == pytest.approx(float(optimizer.param_groups[0]["lr"]))


class TestByHand:
    @pytest.mark.parametrize(
        ("name", "settings", "at", "share"),
        [
            ("constant", {}, 7.5, 1.0),
            ("piecewise", {"boundaries": (2, 4), "values": (1, 0.5, 0.1)}, 1.99, 1.0),
            ("piecewise", {"boundaries": (2, 4), "values": (1, 0.5, 0.1)}, 2.0, 0.5),
            ("piecewise", {"boundaries": (2, 4), "values": (1, 0.5, 0.1)}, 9.0, 0.1),
            ("natural_exponential", {"decay_rate": 0.5}, 2.0, math.exp(-1)),
            ("inverse_time", {"decay_rate": 0.5}, 2.0, 0.5),
            ("polynomial", {"cycle": True, "total_iters": 4}, 6.0, 1 - 6 / 8),
            ("polynomial", {"end_lr": 0.1 * LR, "power": 2.0}, 5.0, 0.1 + 0.9 * 0.25),
            ("linear_cosine", {}, 0.0, 1.001),
            ("linear_cosine", {"num_periods": 1.0, "alpha": 0.1, "beta": 0.2}, 5.0, 0.2),
            ("linear_cosine", {}, 10.0, 0.001),
            ("noisy_linear_cosine", {"initial_variance": 0.0}, 5.0, 0.5 * 0.5 + 0.001),
        ],
    )
    def test_closed_forms(self, name: str, settings: dict[str, Any], at: float, share: float) -> None:
        rate = Formula(FORMULAS[name], **settings).rate(LR, Moment(round(at * 100), 100, 10.0))
        assert rate == pytest.approx(LR * share)

    def test_noam(self) -> None:
        rates = ours("noam", steps=400, model_size=16, warmup_steps=100)
        assert rates[0] == pytest.approx(LR / 4 * 100**-1.5)
        assert max(rates) == rates[99] == pytest.approx(LR / 4 / 10)
        assert rates[399] == pytest.approx(LR / 4 / 20)

    def test_noise_is_that_of_the_seed(self) -> None:
        schedule = Formula(FORMULAS["noisy_linear_cosine"])
        rates = [schedule.rate(LR, Moment(step, 10, 20.0, seed)) for seed in (1, 1, 2) for step in range(200)]
        assert rates[:200] == rates[200:400] != rates[400:]
        assert min(rates) >= 0
        smooth = ours("linear_cosine", steps=200, per_epoch=10, epochs=20.0)
        mean = sum(a - b for a, b in zip(rates[:200], smooth, strict=True)) / 200
        assert abs(mean) < 0.05 * LR


class TestErrors:
    def test_a_length_that_nobody_knows(self) -> None:
        with pytest.raises(ExperimentError, match=r"(?s)lr_schedule: .* how many epochs a trial trains.*give `epochs`"):
            ours("cosine", steps=1)

    def test_phases_that_leave_nothing(self) -> None:
        with pytest.raises(ExperimentError, match="leave no epoch to it"):
            ours("cosine", steps=1, epochs=0.0)

    def test_values_for_other_boundaries(self) -> None:
        with pytest.raises(ExperimentError, match="values: 2 values for 2 boundaries"):
            ours("piecewise", steps=1, boundaries=(1, 2), values=(1, 2))

    def test_own_functions(self) -> None:
        def halved(lr: float, at: Moment, *, every: float = 1.0) -> float:
            return lr * 0.5 ** (at.epoch / every)

        made = schedules({"halved": halved})["halved"]
        assert begin(made, {"every": 2.0}, mode="min").rate(1.0, Moment(4, 1, None)) == 0.25
        with pytest.raises(ExperimentError, match="is the name of a schedule already"):
            schedules({"cosine": halved})
        with pytest.raises(ExperimentError, match="does not take a rate and a moment"):
            schedules({"mine": lambda lr: lr})


def test_every_setting_has_a_rule() -> None:
    for make in schedules({}).values():
        names = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert set(names) <= set(RULES)
