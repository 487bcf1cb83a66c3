from __future__ import annotations

import pytest
import torch
from torch import nn

from hpo.training.models import Dropout, Mlp


@pytest.mark.parametrize("hidden", [(), (3,), (4, 5)])
def test_it_has_the_layers_that_it_is_given(hidden: tuple[int, ...]) -> None:
    model = Mlp(12, 4, hidden=hidden)
    assert model(torch.zeros(2, 3, 2, 2)).shape == (2, 4)
    assert [layer.out_features for layer in model.layers if isinstance(layer, nn.Linear)] == [*hidden, 4]


def test_by_default_it_is_linear_layers_and_relu() -> None:
    torch.manual_seed(3)
    model = Mlp(6, 2, hidden=(5, 4))
    torch.manual_seed(3)
    first, second, head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)
    inputs = torch.randn(7, 6)
    torch.testing.assert_close(model(inputs), head(second(first(inputs).relu()).relu()), atol=0, rtol=0)
    assert list(model.state_dict()) == [f"layers.{i}.{own}" for i in (1, 4, 7) for own in ("weight", "bias")]


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_a_norm_stands_before_the_activation_and_replaces_the_bias(norm: str) -> None:
    layers = Mlp(6, 2, hidden=(8,), norm=norm, activation="gelu", dropout=0.2).layers
    linear, normal, active, dropout = layers[1:5]
    assert isinstance(linear, nn.Linear)
    assert linear.bias is None
    assert isinstance(normal, (nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm))
    assert isinstance(active, nn.GELU)
    assert isinstance(dropout, Dropout)
    assert float(dropout.p) == pytest.approx(0.2)


def test_hidden_layers_get_the_gain_and_the_head_none() -> None:
    torch.manual_seed(0)
    layers = Mlp(500, 400, hidden=(300,), activation="tanh", init="kaiming_normal").layers
    assert float(layers[1].weight.detach().std()) == pytest.approx(5 / 3 / 500**0.5, rel=0.02)  # type: ignore[union-attr, operator]
    assert float(layers[-1].weight.detach().std()) == pytest.approx(1 / 300**0.5, rel=0.02)  # type: ignore[union-attr, operator]


def test_its_blocks_are_its_linear_layers_with_their_norms() -> None:
    assert Mlp(6, 2, hidden=(4,), norm="batch").blocks() == [
        ["layers.1", "layers.2", "layers.3", "layers.4"],
        ["layers.5"],
    ]


def test_dropout_is_on_in_training_alone() -> None:
    model, images = Mlp(16, 2, dropout=0.9), torch.ones(4, 1, 4, 4)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_every_rule_has_an_example_that_keeps_it() -> None:
    assert all(rule.holds(rule.example) for rule in Mlp.rules.values())
