from __future__ import annotations

import pytest
import torch
from torch import nn

from hpo.training.models.dropout import DROPOUT, Dropout, DroppingLinear


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
def test_dropout_is_pytorchs(p: float) -> None:
    torch.manual_seed(0)
    ours, theirs = Dropout(p), nn.Dropout(p)
    ones = torch.ones(400, 500)
    for made in (ours(ones), theirs(ones)):
        kept = made[made != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))
        assert abs(float((made == 0).float().mean()) - p) < 0.005  # ten standard deviations and more
        assert abs(float(made.mean()) - 1) < 0.05
    assert ours.eval()(ones) is ones
    assert ours.state_dict() == {}


def test_dropout_keeps_the_type_and_passes_gradients_of_what_it_kept() -> None:
    inputs = torch.ones(64, dtype=torch.bfloat16, requires_grad=True)
    outputs = Dropout(0.5)(inputs)
    assert outputs.dtype == torch.bfloat16
    outputs.sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, outputs.detach())


@pytest.mark.parametrize("bias", [True, False])
def test_a_dropping_linear_layer_is_dropout_and_the_layer(*, bias: bool) -> None:
    linear = nn.Linear(6, 3, bias=bias)
    expected, drawn = linear.state_dict(), torch.random.get_rng_state()
    ours = DroppingLinear(linear, p=0.5)
    assert torch.equal(torch.random.get_rng_state(), drawn)  # the weights are not drawn again
    assert list(ours.state_dict()) == list(expected)
    inputs = torch.randn(5, 6)
    torch.manual_seed(1)
    dropped = Dropout(0.5)(inputs)
    torch.manual_seed(1)
    torch.testing.assert_close(ours(inputs), linear(dropped))
    torch.testing.assert_close(ours.eval()(inputs), linear(inputs))


def test_the_rule_leaves_something_to_learn_from() -> None:
    assert DROPOUT.holds(0)
    assert not DROPOUT.holds(1)
