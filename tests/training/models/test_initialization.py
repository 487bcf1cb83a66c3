from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hpo.errors import ExperimentError
from hpo.training.models.initialization import GAINS, INIT, initialize
from hpo.training.models.layers import ACTIVATIONS, activation_of


@pytest.mark.parametrize("init", [name for name in INIT.says.replace("'", "").split(", ") if "_" in name])
@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [(nn.Linear(300, 200), 300, 200), (nn.Conv2d(40, 60, 5), 1000, 1500)],
    ids=["linear", "convolution"],
)
def test_the_variance_is_the_papers(init: str, layer: nn.Linear | nn.Conv2d, fan_in: int, fan_out: int) -> None:
    torch.manual_seed(0)
    initialize(layer, init=init, gain=1.5)
    variance = 1.5**2 * (1 / fan_in if init.startswith("kaiming") else 2 / (fan_in + fan_out))
    weights = layer.weight.detach()
    num = weights.numel()
    assert weights.var() == pytest.approx(variance, rel=8 / math.sqrt(num))  # six standard deviations of it, or more
    assert abs(weights.mean()) < 6 * math.sqrt(variance / num)
    if init.endswith("uniform"):
        assert weights.abs().max() <= math.sqrt(3 * variance)
        assert weights.abs().max() > 0.99 * math.sqrt(3 * variance)
    else:
        assert weights.abs().max() > 3 * math.sqrt(variance)
    assert layer.bias is not None
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("init", "theirs"),
    [
        ("kaiming_uniform", lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu")),
        ("kaiming_normal", lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu")),
        ("xavier_uniform", lambda weight: nn.init.xavier_uniform_(weight, gain=math.sqrt(2))),
        ("xavier_normal", lambda weight: nn.init.xavier_normal_(weight, gain=math.sqrt(2))),
        ("orthogonal", lambda weight: nn.init.orthogonal_(weight, gain=math.sqrt(2))),
    ],
)
def test_the_weights_are_pytorchs(init: str, theirs: object) -> None:
    ours, reference = nn.Conv2d(3, 4, 3), torch.empty(4, 3, 3, 3)
    torch.manual_seed(0)
    initialize(ours, init=init, gain=GAINS["relu"])
    torch.manual_seed(0)
    theirs(reference)  # type: ignore[operator]
    torch.testing.assert_close(ours.weight.detach(), reference)


def test_orthogonal_rows_have_the_length_of_the_gain() -> None:
    layer = nn.Linear(20, 8)
    initialize(layer, init="orthogonal", gain=1.5)
    weight = layer.weight.detach()
    torch.testing.assert_close(weight @ weight.T, 2.25 * torch.eye(8), atol=1e-5, rtol=0)


def test_default_leaves_what_pytorch_drew_and_norms_stay() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    initialize(module, init="default", gain=5.0)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    initialize(module, init="xavier_normal")
    assert torch.equal(module.state_dict()["1.weight"], before["1.weight"])
    assert not torch.equal(module.state_dict()["0.weight"], before["0.weight"])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gain_keeps_the_second_moment(name: str) -> None:
    """By quadrature; of tanh PyTorch's gain is 5/3, a little more than the 1.59 that keeps it."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    moment = torch.trapezoid(activation_of(name)(z.clone()).square() * density, z)
    assert GAINS[name] == pytest.approx(float(moment) ** -0.5, rel=0.05 if name == "tanh" else 1e-4)


def test_there_is_a_gain_for_every_activation() -> None:
    assert GAINS.keys() == ACTIVATIONS.keys()


def test_unknown_name() -> None:
    with pytest.raises(ExperimentError, match=r"init: 'he' is not one of 'default', 'kaiming_uniform'"):
        initialize(nn.Linear(1, 1), init="he")
