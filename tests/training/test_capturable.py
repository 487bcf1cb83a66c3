from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hpo.training.capturable import CAPTURABLE, Capturable, Uncapturable
from hpo.training.optimizers import OPTIMIZERS

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("adam", {}),
    ("adam", {"weight_decay": 0.1}),
    ("adam", {"betas": (0.7, 0.9), "eps": 1e-3, "amsgrad": True}),
    ("adamw", {"weight_decay": 0.3}),
    ("adamw", {"weight_decay": 0.0}),
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("rmsprop", {}),
    ("rmsprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "alpha": 0.9}),
    ("adagrad", {}),
    ("adagrad", {"lr_decay": 0.3, "initial_accumulator_value": 0.5, "weight_decay": 0.1}),
    ("adadelta", {}),
    ("adadelta", {"rho": 0.5, "weight_decay": 0.1}),
    ("nadam", {}),
    ("nadam", {"momentum_decay": 0.3, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("radam", {}),
    ("radam", {"betas": (0.7, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": True}),
]
of_all = pytest.mark.parametrize(("name", "settings"), SETTINGS)


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 2, 2), (5,), (2, 3)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _train(optimizer: torch.optim.Optimizer, *, steps: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parameters = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if isinstance(optimizer, Capturable):
            optimizer.push()
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def _close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@of_all
def test_computes_what_pytorch_computes(name: str, settings: dict[str, Any]) -> None:
    ours = CAPTURABLE[name](_parameters(), lr=0.05, **settings)
    _close(_train(ours, steps=7), _train(OPTIMIZERS[name](_parameters(), lr=0.05, **settings), steps=7))


@given(st.floats(1e-5, 1.0), st.floats(1e-5, 0.5))
def test_numbers_reach_the_next_step(lr: float, weight_decay: float) -> None:
    ours = CAPTURABLE["adamw"](_parameters(), lr=0.01, weight_decay=0.2)
    theirs = OPTIMIZERS["adamw"](_parameters(), lr=0.01, weight_decay=0.2)
    for optimizer in (ours, theirs):
        optimizer.param_groups[0].update({"lr": lr, "weight_decay": weight_decay})
    _close(_train(ours, steps=3), _train(theirs, steps=3))


@of_all
def test_either_goes_on_from_a_state_of_the_other(name: str, settings: dict[str, Any]) -> None:
    ours, theirs = (kinds[name](_parameters(), lr=0.05, **settings) for kinds in (CAPTURABLE, OPTIMIZERS))
    _train(theirs, steps=3)
    kept = [tensor for state in ours.state.values() for tensor in state.values()]
    ours.load_state_dict(theirs.state_dict())
    assert all(tensor is old for tensor, old in zip(_states(ours), kept, strict=True))
    for mine, its in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        mine.data.copy_(its.data)
    _close(_train(ours, steps=2, seed=2), _train(theirs, steps=2, seed=2))
    again = OPTIMIZERS[name](theirs.param_groups[0]["params"], lr=0.05, **settings)
    saved = copy.deepcopy(ours.state_dict())  # it holds the very tensors
    again.load_state_dict({**saved, "param_groups": again.state_dict()["param_groups"]})
    _close(_train(ours, steps=2, seed=3), _train(again, steps=2, seed=3))


@of_all
def test_a_parameter_that_has_not_trained_begins_where_pytorch_has_it_begin(
    name: str, settings: dict[str, Any]
) -> None:
    ours, theirs = (kinds[name](_parameters(), lr=0.05, **settings) for kinds in (CAPTURABLE, OPTIMIZERS))
    _train(ours, steps=2)
    ours.load_state_dict(theirs.state_dict())
    for mine, its in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        mine.data.copy_(its.data)
    _close(_train(ours, steps=2), _train(theirs, steps=2))


def _states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for state in optimizer.state.values() for tensor in state.values()]


@of_all
def test_takes_the_place_of_another(name: str, settings: dict[str, Any]) -> None:
    used, fresh = (CAPTURABLE[name](_parameters(), lr=lr, **settings) for lr in (0.05, 0.01))
    _train(used, steps=4)
    assert used.form() == fresh.form()
    for mine, its in zip(used.param_groups[0]["params"], fresh.param_groups[0]["params"], strict=True):
        mine.data.copy_(its.data)
    used.take(fresh)
    assert used.param_groups[0]["lr"] == 0.01
    _close(_train(used, steps=3), _train(fresh, steps=3))


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("adam", {"weight_decay": 0.0}, {"weight_decay": 0.1}),
        ("adam", {}, {"betas": (0.8, 0.9)}),
        ("adam", {}, {"amsgrad": True}),
        ("sgd", {}, {"momentum": 0.5}),
        ("sgd", {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True}),
    ],
)
def test_what_makes_another_step_shows_in_the_form(name: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    forms = [CAPTURABLE[name](_parameters(), **settings).form() for settings in (one, other)]
    assert forms[0] != forms[1]


def test_numbers_do_not_show_in_the_form() -> None:
    one = CAPTURABLE["sgd"](_parameters(), lr=0.1, momentum=0.5, weight_decay=0.1)
    other = CAPTURABLE["sgd"](_parameters(), lr=0.2, momentum=0.9, weight_decay=0.2)
    assert one.form() == other.form()


def test_dampening_cannot_be_captured() -> None:
    with pytest.raises(Uncapturable, match="dampening makes the first step another one"):
        CAPTURABLE["sgd"](_parameters(), momentum=0.9, dampening=0.5)


def test_parameters_of_several_types_cannot_be_captured() -> None:
    mixed = [*_parameters(), nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    with pytest.raises(Uncapturable, match=r"of several types: .*float32.*float64"):
        CAPTURABLE["adam"](mixed)


def test_a_state_of_other_parameters_is_an_error() -> None:
    ours = CAPTURABLE["adam"](_parameters())
    with pytest.raises(ValueError, match="of other parameters"):
        ours.load_state_dict(OPTIMIZERS["adam"](_parameters()[:1]).state_dict())


def test_parameters_without_gradient_stay() -> None:
    parameters = _parameters()
    optimizer = CAPTURABLE["adam"](parameters, lr=1.0)
    before = parameters[1].detach().clone()
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    assert torch.equal(parameters[1], before)
