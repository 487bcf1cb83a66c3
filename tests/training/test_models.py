from __future__ import annotations

import pytest
import torch
from torch import nn

from hpo.training.models import ConvNet, Dropout, Mlp


@pytest.mark.parametrize("size", [1, 2, 8, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_conv_net_gives_logits_for_images_of_any_size(size: int, channels: int) -> None:
    model = ConvNet(channels, 5, filters=(4, 4, 8)).eval()
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 5)


def test_conv_net_has_the_size_that_it_promises() -> None:
    with torch.device("meta"):
        model = ConvNet(3, 10)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.56e6, rel=0.01)


def test_conv_net_keeps_the_image_size_with_any_odd_kernel() -> None:
    model = ConvNet(1, 2, filters=(3,), kernel_size=5)
    assert model.features(torch.zeros(1, 1, 6, 6)).shape == (1, 3, 6, 6)


def test_dropout_is_on_in_training_alone() -> None:
    for model in (ConvNet(1, 2, filters=(8,), dropout=0.9), Mlp(16, 2, dropout=0.9)):
        images = torch.ones(4, 1, 4, 4)
        model.eval()
        assert torch.equal(model(images), model(images))
        model.train()
        assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("hidden", [(), (3,), (4, 5)])
def test_mlp_has_the_layers_that_it_is_given(hidden: tuple[int, ...]) -> None:
    model = Mlp(12, 4, hidden=hidden)
    assert model(torch.zeros(2, 3, 2, 2)).shape == (2, 4)
    assert [layer.out_features for layer in model.layers if isinstance(layer, torch.nn.Linear)] == [*hidden, 4]


@pytest.mark.parametrize("model", [ConvNet, Mlp])
def test_every_rule_has_an_example_that_keeps_it(model: type[ConvNet] | type[Mlp]) -> None:
    assert all(rule.holds(rule.example) for rule in model.rules.values())


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
