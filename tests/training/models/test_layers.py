from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hpo.errors import ExperimentError
from hpo.training.models.layers import ACTIVATIONS, activation_of, norm_of_features, norm_of_maps, num_groups, pooled


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_pytorchs_function_of_that_name(name: str) -> None:
    inputs = torch.linspace(-4, 4, 101)
    expected = getattr(functional, name)(inputs) if name != "tanh" else torch.tanh(inputs)
    torch.testing.assert_close(activation_of(name)(inputs.clone()), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("side", [6, 5])
def test_pooling_comes_after_the_activation_as_far_as_anybody_can_tell(name: str, kind: str, side: int) -> None:
    torch.manual_seed(0)
    maps = 3 * torch.randn(2, 3, side, side)
    expected = getattr(functional, f"{kind}_pool2d")(activation_of(name)(maps.clone()), 2, ceil_mode=True)
    torch.testing.assert_close(nn.Sequential(*pooled(kind, 2, after=name))(maps), expected)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_no_pooling_takes_the_last_place(kind: str, size: int) -> None:
    one = torch.full((1, 1, 1, 1), 0.7)
    assert torch.equal(nn.Sequential(*pooled(kind, size, after="relu"))(one.clone()), one)


@given(channels=st.integers(1, 4096))
def test_groups_divide_the_channels(channels: int) -> None:
    groups = num_groups(channels)
    assert channels % groups == 0
    assert 1 <= groups <= 32
    assert groups == 1 or channels // groups >= 2


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (7, 1), (16, 8), (32, 16), (48, 24), (64, 32), (100, 25)])
def test_groups_by_hand(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups


def test_norms_are_over_what_their_names_say() -> None:
    maps = torch.randn(4, 6, 3, 3) * 5 + 2
    for kind, dims in (("batch", (0, 2, 3)), ("layer", (1, 2, 3))):
        normal = nn.Sequential(*norm_of_maps(kind, 6))(maps)
        assert torch.allclose(normal.mean(dims), torch.zeros(()), atol=1e-5)
        assert torch.allclose(normal.var(dims, unbiased=False), torch.ones(()), atol=1e-3)
    [group] = norm_of_maps("group", 6)
    torch.testing.assert_close(group(maps), functional.group_norm(maps, 3))
    features = torch.randn(4, 6) * 5 + 2
    for kind, axis in (("batch", 0), ("layer", 1)):
        normal = nn.Sequential(*norm_of_features(kind, 6))(features)
        assert torch.allclose(normal.mean(axis), torch.zeros(()), atol=1e-5)
    [group] = norm_of_features("group", 6)
    torch.testing.assert_close(group(features), functional.group_norm(features, 3))
    assert norm_of_maps("none", 6) == norm_of_features("none", 6) == []


def test_unknown_names() -> None:
    with pytest.raises(ExperimentError, match=r"activation: 'relo' is not one of 'relu', 'leaky_relu'"):
        activation_of("relo")
    with pytest.raises(ExperimentError, match=r"norm: 'instance' is not one of 'batch', 'layer', 'group', 'none'"):
        norm_of_maps("instance", 4)
    with pytest.raises(ExperimentError, match=r"norm: 'instance' is not one of"):
        norm_of_features("instance", 4)
    with pytest.raises(ExperimentError, match=r"pooling: 'mean' is not one of 'max', 'avg'"):
        pooled("mean", 2, after="relu")
