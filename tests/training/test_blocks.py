from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hpo.errors import ExperimentError
from hpo.training.blocks import Block, blocks
from hpo.training.models import ConvNet, Mlp, TorchvisionModel

_STAGES = ("features.0", "features.1", "features.2", "features.4", "features.6")
_EXPECTED = {
    "alexnet": (*(f"features.{i}" for i in (0, 3, 6, 8, 10)), *(f"classifier.{i}" for i in (1, 4, 6))),
    "convnext_tiny": (*_STAGES, "classifier.2"),
    "densenet121": ("features.conv0", *(f"features.denseblock{i}" for i in (1, 2, 3, 4)), "classifier"),
    "efficientnet_b0": (*(f"features.{i}" for i in range(9)), "classifier.1"),
    "googlenet": (
        *(f"conv{i}" for i in (1, 2, 3)),
        *(f"inception{i}" for i in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")),
        "fc",
    ),
    "maxvit_t": ("stem", *(f"blocks.{i}" for i in range(4)), "classifier.3", "classifier.5"),
    "mnasnet0_5": ("layers.0", "layers.3", "layers.6", *(f"layers.{i}" for i in range(8, 15)), "classifier.1"),
    "mobilenet_v2": (*(f"features.{i}" for i in range(19)), "classifier.1"),
    "mobilenet_v3_small": (*(f"features.{i}" for i in range(13)), "classifier.0", "classifier.3"),
    "regnet_x_400mf": ("stem", *(f"trunk_output.block{i}" for i in (1, 2, 3, 4)), "fc"),
    "resnet18": ("conv1", "layer1", "layer2", "layer3", "layer4", "fc"),
    "shufflenet_v2_x0_5": ("conv1", "stage2", "stage3", "stage4", "conv5", "fc"),
    "squeezenet1_1": ("features.0", *(f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)), "classifier.1"),
    "swin_t": (*_STAGES, "head"),
    "vgg11_bn": (*(f"features.{i}" for i in (0, 4, 8, 15, 22)), *(f"classifier.{i}" for i in (0, 3, 6))),
    "vit_b_16": ("conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "heads"),
}


def _check_whole(model: nn.Module, found: tuple[Block, ...]) -> None:
    """Each parameter is in exactly one block, in the model's order within it, and so is each module without others."""
    listed = [name for block in found for name in block.parameters]
    names = [name for name, _ in model.named_parameters()]
    assert sorted(listed) == sorted(names)
    assert all(list(block.parameters) == [name for name in names if name in block.parameters] for block in found)
    modules = [name for block in found for name in block.modules]
    leaves = {name for name, part in model.named_modules() if not any(part.children())}
    assert len(modules) == len(set(modules))
    assert set(modules) <= leaves
    assert all(block.parameters for block in found)


@pytest.mark.parametrize("name", _EXPECTED)
def test_torchvisions_networks(name: str) -> None:
    device = "cpu" if name.startswith("regnet") else "meta"  # its constructor needs numbers
    with torch.device(device):
        model = TorchvisionModel(name)(10)
    found = blocks(model)
    assert tuple(block.name for block in found) == _EXPECTED[name]
    _check_whole(model, found)
    assert found[-1].parameters == tuple(n for n, _ in model.named_parameters())[-len(found[-1].parameters) :]


def test_a_norm_belongs_to_what_it_follows_and_a_token_to_what_it_goes_with() -> None:
    with torch.device("meta"):
        dense, vit, resnet = (TorchvisionModel(name)(10) for name in ("densenet121", "vit_b_16", "resnet18"))
    found = {block.name: block for block in (*blocks(dense), *blocks(vit), *blocks(resnet))}
    assert "features.norm5.weight" in found["features.denseblock4"].parameters
    assert "features.transition1.conv.weight" in found["features.denseblock1"].parameters
    assert {"class_token", "encoder.pos_embedding"} < set(found["conv_proj"].parameters)
    assert "encoder.ln.weight" in found["encoder.layers.encoder_layer_11"].parameters
    assert found["conv1"] == Block(
        "conv1", ("conv1.weight", "bn1.weight", "bn1.bias"), ("conv1", "bn1", "relu", "maxpool")
    )


def test_a_subclass_of_a_known_network_has_its_blocks() -> None:
    from torchvision.models.resnet import BasicBlock, ResNet

    class Mine(ResNet):  # type: ignore[misc]
        pass

    with torch.device("meta"):
        found = blocks(Mine(BasicBlock, [1, 1, 1, 1]))
    assert tuple(block.name for block in found) == _EXPECTED["resnet18"]


@settings(max_examples=20, deadline=None)
@given(
    filters=st.lists(st.integers(1, 3), min_size=1, max_size=5).map(tuple),
    norm=st.sampled_from(["batch", "layer", "group", "none"]),
)
def test_a_conv_net_has_a_block_for_each_convolution_and_one_for_the_head(filters: tuple[int, ...], norm: str) -> None:
    model = ConvNet(1, 2, filters=filters, norm=norm)
    found = blocks(model)
    assert len(found) == len(filters) + 1
    _check_whole(model, found)


@given(hidden=st.lists(st.integers(1, 3), max_size=4).map(tuple))
def test_an_mlp_has_a_block_for_each_layer(hidden: tuple[int, ...]) -> None:
    model = Mlp(2, 2, hidden=hidden, norm="layer")
    assert len(blocks(model)) == len(hidden) + 1
    _check_whole(model, blocks(model))


def _text_model() -> nn.Module:
    model = nn.Module()
    model.embed = nn.Embedding(5, 4)
    model.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model.norm = nn.LayerNorm(4)
    model.out = nn.Linear(4, 5, bias=False)
    return model


def _tied() -> nn.Module:
    model = _text_model()
    model.out.weight = model.embed.weight  # type: ignore[union-attr, assignment]
    return model


def _wrapped() -> nn.Module:
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model = nn.Module()
    model.net = inner
    return model


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (_text_model, ("embed", "layers.0", "layers.1", "out")),
        (_tied, ("embed", "layers.0", "layers.1")),
        (_wrapped, ("net.0", "net.2")),
        (lambda: nn.Sequential(nn.Linear(2, 2)), ("0",)),
        (lambda: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.LayerNorm(2)), ("1",)),
        (lambda: nn.Linear(2, 2), ("",)),
        (lambda: nn.LayerNorm(2), ("",)),
        (nn.ReLU, ()),
    ],
)
def test_any_other_model(build: Callable[[], nn.Module], names: tuple[str, ...]) -> None:
    model = build()
    assert tuple(block.name for block in blocks(model)) == names
    _check_whole(model, blocks(model))


class _Saying(nn.Module):
    def __init__(self, said: Any) -> None:
        super().__init__()
        self.head, self.body, self.scale = nn.Linear(2, 2), nn.Linear(2, 2), nn.Parameter(torch.ones(2))
        self._said = said

    def blocks(self) -> Any:
        return self._said


def test_a_model_may_say_its_blocks_in_whichever_order_it_was_written() -> None:
    model = _Saying([("scale", "body.weight"), "body.bias", "head"])
    found = blocks(model)
    _check_whole(model, found)
    assert [block.parameters for block in found] == [
        ("scale", "body.weight"),
        ("body.bias",),
        ("head.weight", "head.bias"),
    ]
    assert found[2].modules == ("head",)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["body", "head"], r"_Saying: its blocks\(\) names the parameter 'scale' not at all\n  let it name each"),
        (["scale", "body", "head", "body.bias"], r"names the parameter 'body.bias' twice"),
        (["scale", "bodi", "head"], r"names 'bodi', which the model does not have\n  did you mean 'body'\?"),
    ],
)
def test_what_a_model_cannot_say(said: Any, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        blocks(_Saying(said))
