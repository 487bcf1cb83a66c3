from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hpo.errors import ExperimentError
from hpo.training.models import ConvNet
from hpo.training.models.layers import ACTIVATIONS


def _convolutions(model: ConvNet) -> list[nn.Conv2d]:
    return [layer for layer in model.features if isinstance(layer, nn.Conv2d)]


def _meta(**arguments: Any) -> ConvNet:
    with torch.device("meta"):
        return ConvNet(3, 10, **arguments)


def _as_it_was(images: Tensor) -> Tensor:
    """Logits of the network of the defaults, written down layer by layer."""
    layers: list[nn.Module] = []
    for before, after, ends in [(3, 64, 0), (64, 64, 1), (64, 128, 0), (128, 128, 1), (128, 256, 0)]:
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers += [nn.MaxPool2d(2, ceil_mode=True)] * ends + [nn.ReLU()]
    outputs: Tensor = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))(images)
    return outputs


def test_the_default_network_is_the_same_bit_for_bit_however_it_is_said() -> None:
    images = torch.randn(4, 3, 8, 8)
    torch.manual_seed(5)
    expected = _as_it_was(images)
    for said in ({}, {"filters": (64, 64, 128, 128, 256)}, {"filters": 64, "depth": 5, "filter_growth": 2.0}):
        torch.manual_seed(5)
        assert torch.equal(ConvNet(3, 10, **said)(images), expected)  # type: ignore[arg-type]


def test_the_names_of_its_state_stay_the_same() -> None:
    names = [name for name in _meta().state_dict() if name.endswith("weight")]
    indices = (0, 1, 3, 4, 7, 8, 10, 11, 14, 15)
    assert names == [*(f"features.{index}.weight" for index in indices), "head.3.weight"]


def test_it_has_the_size_that_it_promises() -> None:
    assert sum(p.numel() for p in _meta().parameters()) == pytest.approx(0.56e6, rel=0.01)


@pytest.mark.parametrize("size", [1, 2, 8, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_for_images_of_any_size(size: int, channels: int) -> None:
    model = ConvNet(channels, 5, filters=(4, 4, 8)).eval()
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 5)


def test_it_keeps_the_image_size_with_any_odd_kernel() -> None:
    model = ConvNet(1, 2, filters=(3,), kernel_size=5)
    assert model.features(torch.zeros(1, 1, 6, 6)).shape == (1, 3, 6, 6)


@pytest.mark.parametrize(
    ("said", "channels"),
    [
        ({"filters": 8}, [8, 8, 16, 16, 32]),
        ({"depth": 3}, [64, 64, 128]),
        ({"filters": 8, "depth": 4, "filter_growth": 1.5}, [8, 8, 12, 12]),
        ({"filters": 8, "depth": 3, "pool_every": 1}, [8, 16, 32]),
        ({"filters": 8, "depth": 3, "filter_growth": 1}, [8, 8, 8]),
        ({"filters": 2, "depth": 3, "filter_growth": 0.1}, [2, 2, 1]),
        ({"filters": (3, 5)}, [3, 5]),
    ],
)
def test_its_channels(said: dict[str, Any], channels: list[int]) -> None:
    assert [layer.out_channels for layer in _convolutions(_meta(**said))] == channels


@pytest.mark.parametrize(
    ("said", "side"),
    [({}, 8), ({"pool_size": 3}, 4), ({"pool_size": 1}, 32), ({"pool_every": 1}, 1), ({"pooling": "avg"}, 8)],
)
def test_its_maps_shrink_with_each_pooling(said: dict[str, Any], side: int) -> None:
    maps = ConvNet(3, 10, filters=2, **said).eval().features(torch.zeros(1, 3, 32, 32))
    assert maps.shape[2:] == (side, side)


@settings(max_examples=25, deadline=None)
@given(
    said=st.fixed_dictionaries(
        {
            "filters": st.integers(1, 6) | st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
            "kernel_size": st.sampled_from([1, 3, 5]),
            "pooling": st.sampled_from(["max", "avg"]),
            "pool_size": st.integers(1, 4),
            "pool_every": st.integers(1, 3),
            "activation": st.sampled_from(list(ACTIVATIONS)),
            "norm": st.sampled_from(["batch", "layer", "group", "none"]),
            "init": st.sampled_from(["default", "kaiming_normal", "orthogonal"]),
            "dropout": st.sampled_from([0.0, 0.5]),
        }
    ),
    size=st.integers(1, 9),
)
def test_whatever_its_rules_allow_trains(said: dict[str, Any], size: int) -> None:
    assert all(ConvNet.rules[name].holds(value) for name, value in said.items())
    model = ConvNet(2, 3, **said)
    model(torch.randn(4, 2, size, size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_without_a_norm_its_convolutions_have_biases() -> None:
    for norm in ("batch", "layer", "group", "none"):
        assert all((layer.bias is not None) == (norm == "none") for layer in _convolutions(_meta(norm=norm)))


def test_convolutions_get_the_gain_and_the_head_none() -> None:
    torch.manual_seed(0)
    model = ConvNet(3, 200, filters=(200, 300), activation="silu", init="xavier_normal")
    assert float(_convolutions(model)[1].weight.detach().std()) == pytest.approx(1.6765 * (2 / 4500) ** 0.5, rel=0.02)
    assert float(model.head[-1].weight.detach().std()) == pytest.approx((2 / 500) ** 0.5, rel=0.02)  # type: ignore[union-attr, operator]


def test_dropout_is_on_in_training_alone() -> None:
    model, images = ConvNet(1, 2, filters=(8,), dropout=0.9), torch.ones(4, 1, 4, 4)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_its_blocks_are_its_convolutions_and_the_head() -> None:
    blocks = _meta(filters=(4, 4)).blocks()
    assert blocks == [
        ["features.0", "features.1", "features.2"],
        ["features.3", "features.4", "features.5", "features.6"],
        ["head"],
    ]


def test_every_rule_has_an_example_that_keeps_it() -> None:
    assert all(rule.holds(rule.example) for rule in ConvNet.rules.values())


@pytest.mark.parametrize("filters", [0, (), (0,), True, 1.5, "64"])
def test_what_filters_cannot_be(filters: object) -> None:
    with pytest.raises(ExperimentError, match=r"filters: .* is not a tuple of at least 1 parts, .*, or an integer of"):
        ConvNet.rules["filters"].check(filters, where="filters")


def test_a_depth_beside_a_tuple_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"depth: 3 is given, but filters=\(4, 8\) says the channels of each"):
        ConvNet(1, 2, filters=(4, 8), depth=3)
    with pytest.raises(ExperimentError, match=r"filter_growth: 1.5 is given, but .*(\n.*)filters=4$"):
        ConvNet(1, 2, filters=(4, 8), filter_growth=1.5)
