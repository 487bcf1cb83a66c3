from __future__ import annotations

import functools
import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hpo.training.blueprint import blueprint, describe, difference
from hpo.training.models import ConvNet, Dropout, Mlp


class Holding(nn.Module):
    """A module with something of a user's own."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.held = held

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


@dataclass
class Options:
    width: int
    names: tuple[str, ...] = ("a",)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


def _scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda inputs: inputs * factor


def _differ(one: nn.Module, other: nn.Module) -> str:
    return difference(blueprint(one), blueprint(other))


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConvNet(3, 10, filters=(4, 8), dropout=0.3),
        lambda: Mlp(4, 2, hidden=(3,), dropout=0.1),
        lambda: nn.TransformerEncoderLayer(8, 2, dim_feedforward=16),
        lambda: nn.Sequential(nn.GRU(4, 4), nn.LayerNorm(4)),
        lambda: Holding({"a": [1, 2.0, None], "b": {3, 4}}),
        lambda: Holding(Options(3)),
        lambda: Holding(Slotted(3)),
        lambda: Holding(functional.relu),
        lambda: Holding(functools.partial(functional.leaky_relu, negative_slope=0.1)),
        lambda: Holding(_scaled(2.0)),
        lambda: Holding(torch.arange(3)),
        lambda: Holding(np.arange(3)),
        lambda: Holding(OrderedDict(a=torch.float32, b=torch.device("cpu"))),
        lambda: Holding(random.Random(1)),
        lambda: Holding(torch.Generator().manual_seed(1)),
        lambda: Holding(nn.Parameter(torch.ones(2))),
    ],
)
def test_two_of_a_kind_are_alike_whatever_their_weights(build: Callable[[], nn.Module]) -> None:
    assert _differ(build(), build()) == ""


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        (nn.Linear(2, 3), nn.Linear(3, 2), "weight"),
        (nn.Linear(2, 3), nn.Linear(2, 3, bias=False), "bias"),
        (nn.Linear(2, 3), nn.Bilinear(2, 2, 3), "class"),
        (nn.Dropout(0.1), nn.Dropout(0.2), "p"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)), nn.Sequential(nn.Conv2d(1, 1, 3, padding=0)), "0.padding"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(inplace=True)), "0.inplace"),
        (nn.Linear(2, 3), nn.Linear(2, 3, dtype=torch.float64), "weight"),
        (Holding(1), Holding(True), "held"),
        (Holding(1), Holding(1.0), "held"),
        (Holding((1, 2)), Holding([1, 2]), "held"),
        (Holding({"a": 1}), Holding({"a": 2}), "held"),
        (Holding({1, 2}), Holding({1, 3}), "held"),
        (Holding(Options(3)), Holding(Options(4)), "held"),
        (Holding(Slotted(3)), Holding(Slotted(4)), "held"),
        (Holding(functional.relu), Holding(functional.gelu), "held"),
        (Holding(_scaled(2.0)), Holding(_scaled(3.0)), "held"),
        (Holding(torch.arange(3)), Holding(torch.arange(4)), "held"),
        (Holding(torch.arange(3)), Holding(torch.arange(3) + 1), "held"),
        (Holding(np.arange(3)), Holding(np.arange(3) + 1), "held"),
        (Holding(random.Random(1)), Holding(random.Random(2)), "held"),
        (Holding(torch.Generator().manual_seed(1)), Holding(torch.Generator().manual_seed(2)), "held"),
    ],
)
def test_what_differs_is_named(one: nn.Module, other: nn.Module, where: str) -> None:
    assert _differ(one, other) == f"the models differ in {where}"
    assert _differ(one, one) == ""


@pytest.mark.parametrize("held", [threading.Lock(), (n for n in "ab"), np.array([object()])])
def test_what_cannot_be_compared_is_like_nothing(held: object) -> None:
    holding = Holding(held)
    assert _differ(holding, holding) == "the models differ in held"


def test_a_module_more() -> None:
    assert (
        _differ(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(), nn.ReLU())) == "only one of the models has 1.class"
    )


def test_weights_that_are_shared_are_not_like_weights_that_are_not() -> None:
    def model(*, tied: bool) -> nn.Module:
        made = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        if tied:
            made[1].weight = made[0].weight
        return made

    assert _differ(model(tied=True), model(tied=True)) == ""
    assert _differ(model(tied=True), model(tied=False)) == "the models differ in 1.weight"


def test_frozen_weights_show() -> None:
    frozen = nn.Linear(2, 2)
    frozen.bias.requires_grad_(False)
    assert _differ(nn.Linear(2, 2), frozen) == "the models differ in bias"


def test_memory_formats_show() -> None:
    channels_last = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert _differ(nn.Conv2d(3, 4, 3), channels_last) == "the models differ in weight"


def test_a_hook_shows() -> None:
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    assert _differ(nn.Linear(2, 2), hooked) == "the models differ in _forward_hooks"


def test_a_list_of_layers_is_the_same_layers() -> None:
    class Listing(nn.Module):
        def __init__(self, *, reverse: bool = False) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
            self.order = [self.two, self.one] if reverse else [self.one, self.two]

    assert _differ(Listing(), Listing()) == ""
    assert _differ(Listing(), Listing(reverse=True)) == "the models differ in order"


def test_a_parent_in_its_child_ends() -> None:
    def family() -> nn.Module:
        parent, child = nn.Sequential(nn.ReLU()), Holding(None)
        child.held = [parent]
        parent.append(child)
        return parent

    assert _differ(family(), family()) == ""


def test_dropout_of_our_own_is_a_number_and_no_constant() -> None:
    assert _differ(Dropout(0.1), Dropout(0.5)) == ""
    assert _differ(ConvNet(1, 2, dropout=0.1), ConvNet(1, 2, dropout=0.4)) == ""


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(_values, _values)
def test_descriptions_are_equal_exactly_where_values_are(one: object, other: object) -> None:
    assert describe(one) == describe(one)
    assert (describe(one) == describe(other)) == (repr(one) == repr(other))
