from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from hpo.training.models.torchvision_stems import Stem, check_forward, stem_of, suit_small_images, take_channels
from hpo.training.models.torchvision_weights import model_names, of_channels


def test_there_is_a_stem_for_every_network() -> None:
    assert all(isinstance(stem_of(name), Stem) for name in model_names())
    assert stem_of("mobilenet_v3_small") != stem_of("mobilenet_v3_large")
    assert stem_of("vit_b_16").in_patches


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "vgg11", "squeezenet1_0"])
def test_for_other_channels_only_the_first_weight_has_another_shape(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = (models.get_model(name) for _ in range(2))
        take_channels(ours, stem_of(name), in_channels=5)
    state = theirs.state_dict()
    first = f"{stem_of(name).first}.weight"
    assert [n for n, value in ours.state_dict().items() if value.shape != state[n].shape] == [first]
    assert ours.state_dict()[first].shape[1] == 5
    old, new = theirs.get_submodule(stem_of(name).first), ours.get_submodule(stem_of(name).first)
    for setting in ("kernel_size", "stride", "padding"):
        assert getattr(old, setting) == getattr(new, setting)


def test_three_channels_leave_the_network_as_it_is() -> None:
    model = models.squeezenet1_1()
    before = model.features[0]
    take_channels(model, stem_of("squeezenet1_1"), in_channels=3)
    assert model.features[0] is before


def test_a_new_stem_keeps_the_variance_of_what_passes() -> None:
    torch.manual_seed(0)
    model = models.resnet18()
    suit_small_images(model, stem_of("resnet18"), keep_kernels=False)
    assert float(model.conv1.weight.detach().var()) == pytest.approx(2 / 27, rel=0.1)


def test_a_kept_kernel_sees_every_place() -> None:
    model = models.resnet18()
    weight = model.conv1.weight
    suit_small_images(model, stem_of("resnet18"), keep_kernels=True)
    assert model.conv1.weight is weight
    assert model.conv1(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)


def test_a_block_that_halves_no_more_has_no_stride_in_its_shortcut_either() -> None:
    model = models.regnet_x_400mf()
    suit_small_images(model, stem_of("regnet_x_400mf"), keep_kernels=False)
    strides = {layer.stride for layer in model.trunk_output.block1.modules() if isinstance(layer, nn.Conv2d)}
    assert strides == {(1, 1)}


def test_checking_draws_nothing_and_changes_nothing() -> None:
    model = models.squeezenet1_1().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    check_forward(model, in_channels=3, sides=(32, 32))
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        check_forward(model, in_channels=3, sides=(2, 2))
    assert model.training


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_weights_for_other_channels_have_the_scale_of_before(channels: int) -> None:
    weight = torch.rand(2, 3, 1, 1)
    new = of_channels(weight, channels)
    assert new.shape == (2, channels, 1, 1)
    if channels % 3 == 0 or channels == 1:
        torch.testing.assert_close(new.sum(1), weight.sum(1))
    if channels > 1:
        torch.testing.assert_close(new[:, -1], weight[:, (channels - 1) % 3] * 3 / channels)
