from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer

from hpo.errors import DataError, ExperimentError
from hpo.training import Classification
from hpo.training.blueprint import blueprint, difference
from hpo.training.data import Digits
from hpo.training.models import Dropout, TorchvisionModel
from hpo.training.models.torchvision_weights import fitted, weights_of

_OTHERS = ("alexnet", "inception_v3", "squeezenet1_1", "vgg11_bn", "vit_b_16")
LAST_MAPS = {
    "convnext_tiny": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_large": "features",
    "mobilenet_v3_small": "features",
    "regnet_x_400mf": "trunk_output",
    "resnet18": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "swin_t": "features",
}


def build(name: str, *, small_images: str = "auto", **given: Any) -> nn.Module:
    """On the meta device, where that can be: no numbers are drawn."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return TorchvisionModel(name, small_images=small_images)(given.pop("num_classes", 7), **given)


def images(model: nn.Module, *shape: int) -> Tensor:
    return torch.zeros(shape, device=next(model.parameters()).device)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_for_images_of_the_usual_size_it_is_torchvisions_network(name: str) -> None:
    torch.manual_seed(0)
    ours = TorchvisionModel(name)(5).eval()
    torch.manual_seed(0)
    theirs = models.get_model(name, num_classes=5).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    inputs = torch.randn(1, 3, 96, 96)
    assert torch.equal(ours(inputs), theirs(inputs))


@pytest.mark.parametrize("name", [*LAST_MAPS, *_OTHERS])
def test_logits_for_very_small_images_of_one_channel(name: str) -> None:
    side = 28 if name == "inception_v3" else 8
    model = build(name, in_channels=1, image_size=side).train()
    assert model(images(model, 2, 1, side, side)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "swin_t", "vgg11_bn"])
def test_logits_for_images_that_are_not_square(name: str) -> None:
    model = build(name, image_size=(40, 32)).eval()
    assert model(images(model, 2, 3, 40, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", LAST_MAPS)
def test_small_images_are_halved_two_times_less(name: str) -> None:
    shapes = []
    for small, side in (("on", 32), ("off", 128)):
        model = build(name, small_images=small, image_size=side).eval()
        model.get_submodule(LAST_MAPS[name]).register_forward_hook(lambda *io: shapes.append(io[2].shape))
        model(images(model, 1, 3, side, side))
    assert shapes[0] == shapes[1]
    assert 4 in shapes[0]


def test_a_resnet_for_small_images_is_the_one_that_people_know() -> None:
    model = build("resnet18", num_classes=10, image_size=32)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962  # ResNet-18 for CIFAR-10 without bias in shortcuts
    assert isinstance(model.conv1, nn.Conv2d)
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(model.maxpool, nn.Identity)
    assert isinstance(build("resnet18", image_size=65).maxpool, nn.MaxPool2d)
    assert isinstance(build("resnet18", image_size=32, small_images="off").maxpool, nn.MaxPool2d)
    assert isinstance(build("resnet18", image_size=96, small_images="on").maxpool, nn.Identity)


@pytest.mark.parametrize(("side", "patch"), [(32, 4), (64, 8), (28, 2), (8, 1), (7, 1)])
def test_a_vision_transformer_sees_small_images_in_small_patches(side: int, patch: int) -> None:
    model = build("vit_b_16", image_size=side)
    assert isinstance(model.conv_proj, nn.Conv2d)
    assert model.conv_proj.kernel_size == model.conv_proj.stride == (patch, patch)
    assert model.get_parameter("encoder.pos_embedding").shape == (1, (side // patch) ** 2 + 1, 768)


# --- dropout ---


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("alexnet", {"classifier.0": 0.5, "classifier.3": 0.5}),
        ("vgg11_bn", {"classifier.2": 0.5, "classifier.5": 0.5}),
        ("efficientnet_b0", {"classifier.0": 0.2}),
        ("mobilenet_v3_small", {"classifier.2": 0.2}),
        ("squeezenet1_1", {"classifier.0": 0.5}),
        ("googlenet", {"dropout": 0.2}),
        ("resnet18", {"fc.dropout": 0.0}),
        ("densenet121", {"classifier.dropout": 0.0}),
        ("convnext_tiny", {"classifier.2.dropout": 0.0}),
        ("vit_b_16", {"heads.head.dropout": 0.0}),
    ],
)
def test_dropout_is_in_front_of_the_head(name: str, own: dict[str, float]) -> None:
    for p in (None, 0.25):
        model = TorchvisionModel(name)(3, image_size=16, dropout=p) if name == "squeezenet1_1" else None
        model = model or build(name, dropout=p)
        found = {where: part for where, part in model.named_modules() if isinstance(part, Dropout)}
        assert list(found) == list(own)
        if not found[next(iter(own))].p.is_meta:
            assert [float(part.p) for part in found.values()] == pytest.approx([p or 0.5])


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vgg11_bn"])
def test_a_captured_step_serves_all_values_of_dropout(name: str) -> None:
    with torch.device("meta"):
        one, other, own = (blueprint(TorchvisionModel(name)(3, dropout=p)) for p in (0.0, 0.3, None))
    assert difference(one, other) == difference(one, own) == ""


def test_dropout_is_on_in_training_alone() -> None:
    torch.manual_seed(0)
    model = TorchvisionModel("resnet18")(4, in_channels=1, image_size=8, dropout=0.9)
    inputs = torch.randn(2, 1, 8, 8)
    model.eval()
    assert torch.equal(model(inputs), model(inputs))
    model.fc.train()  # type: ignore[union-attr, operator]
    assert not torch.equal(model(inputs), model(inputs))


# --- as the model of a task ---

GIVEN = {"in_channels": 1, "in_features": 64, "image_size": 8, "num_classes": 10}


def test_a_task_takes_it_and_names_it() -> None:
    declared = TorchvisionModel("shufflenet_v2_x0_5")
    assert pickle.loads(pickle.dumps(declared)) == declared  # noqa: S301
    task = Classification(model=declared, data=Digits())
    task.check()
    task.check_config({"dropout": 0.2, "lr": 0.01})
    with pytest.raises(ExperimentError, match=r"dropout: 1.0 is not a number of at least 0 and below 1, or None"):
        task.check_config({"dropout": 1.0})
    with pytest.raises(ExperimentError, match=r"num_classes: shufflenet_v2_x0_5 gets it from the task"):
        task.check_config({"num_classes": 3})
    model = task.recipe({"dropout": 0.2}, GIVEN).model()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert task.describe()["model"] == {
        "class": "torchvisionmodel",
        "name": "shufflenet_v2_x0_5",
        "weights": None,
        "small_images": "auto",
    }


def test_every_rule_has_an_example_that_keeps_it() -> None:
    assert all(rule.holds(rule.example) for rule in TorchvisionModel.rules.values())


# --- what cannot be ---


def test_unknown_networks() -> None:
    with pytest.raises(ExperimentError, match=r"model: 'resnet19' is no .* torchvision\n  did you mean 'resnet1"):
        TorchvisionModel("resnet19")
    with pytest.raises(ExperimentError, match=r"model: 'zzz' is no .*\n  valid names: alexnet, convnext_base"):
        TorchvisionModel("zzz")
    with pytest.raises(ExperimentError, match=r"'fcn_resnet50' is no classification network"):
        TorchvisionModel("fcn_resnet50")
    with pytest.raises(ExperimentError, match=r"small_images: 'yes' is not one of 'auto', 'on', 'off'"):
        TorchvisionModel("resnet18", small_images="yes")


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        ("maxvit_t", 32, r"Input size \(8, 8\) of block 0 is not divisible by partition size 7.*…\)"),
        ("vit_b_16", 100, r"their side is no multiple of its patches, 16"),
        ("vit_b_16", (32, 64), r"it takes square ones alone"),
        ("inception_v3", 8, r".*Kernel size can't be greater than actual input…\)"),
    ],
)
def test_images_that_a_network_cannot_take(name: str, size: Any, why: str) -> None:
    shown = f"{size} x {size}" if isinstance(size, int) else f"{size[0]} x {size[1]}"
    with pytest.raises(ExperimentError, match=rf"model: {name} takes no images of {shown} \({why}"):
        TorchvisionModel(name)(2, image_size=size)


# --- weights ---


def offer(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, *, num_classes: int = 1000, old_names: bool = False
) -> nn.Module:
    """Puts a file of the DEFAULT weights of `name` into torch's hub cache, and gives the network that has them."""
    torch.manual_seed(1)
    extra = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    theirs = models.get_model(name, num_classes=num_classes, **extra).eval()
    monkeypatch.setenv("TORCH_HOME", str(folder))
    member = weights_of(name, "DEFAULT")
    monkeypatch.setattr(member.value, "url", f"https://127.0.0.1:9/{name}-test.pth")
    state = theirs.state_dict()
    if old_names:
        digits = {"norm1": "norm.1", "norm2": "norm.2", "conv1": "conv.1", "conv2": "conv.2"}
        for key in list(state):
            parts = key.split(".")
            if "denselayer" in key and parts[-2] in digits:
                state[".".join([*parts[:-2], digits[parts[-2]], parts[-1]])] = state.pop(key)
    (folder / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "hub" / "checkpoints" / f"{name}-test.pth")
    return theirs


def test_weights_are_loaded_with_their_head_where_the_classes_are_as_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = offer(monkeypatch, tmp_path, "mnasnet0_5")
    declared = TorchvisionModel("mnasnet0_5", weights="DEFAULT")
    assert declared.weights == "IMAGENET1K_V1"
    inputs = torch.randn(1, 3, 96, 96)
    assert torch.equal(declared(1000).eval()(inputs), theirs(inputs))
    ours = declared(5)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert [n for n in state if not torch.equal(state[n], expected[n])] == ["classifier.1.weight", "classifier.1.bias"]


def test_a_small_stem_keeps_the_kernel_of_the_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = offer(monkeypatch, tmp_path, "resnet18")
    ours = TorchvisionModel("resnet18", weights="IMAGENET1K_V1")(3, image_size=32)
    assert torch.equal(ours.conv1.weight, theirs.conv1.weight)  # type: ignore[union-attr, arg-type]
    assert ours.conv1.stride == (1, 1)  # type: ignore[union-attr]
    assert isinstance(ours.maxpool, nn.Identity)
    assert ours(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_channels_that_are_equal_give_what_they_gave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, channels: int
) -> None:
    theirs = offer(monkeypatch, tmp_path, "squeezenet1_1")
    ours = TorchvisionModel("squeezenet1_1", weights="DEFAULT")(1000, in_channels=channels).eval()
    grey = torch.randn(1, 1, 96, 96)
    conv, reference = ours.features[0], theirs.features[0]  # type: ignore[index]
    if channels in (1, 6):
        torch.testing.assert_close(
            conv(grey.expand(1, channels, 96, 96)), reference(grey.expand(1, 3, 96, 96)), atol=1e-5, rtol=1e-5
        )
    first = reference.weight[:, :1] if channels > 1 else reference.weight.sum(1, keepdim=True)
    torch.testing.assert_close(conv.weight[:, :1], first * (3 / channels if channels > 1 else 1))


def test_files_of_densenet_have_older_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = offer(monkeypatch, tmp_path, "densenet121", old_names=True)
    ours = TorchvisionModel("densenet121", weights="DEFAULT")(1000)
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def test_no_file_is_read_to_know_a_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.device("meta"):
        assert TorchvisionModel("squeezenet1_1", weights="DEFAULT")(2)


def test_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(monkeypatch, tmp_path, "squeezenet1_1")
    file = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-test.pth"
    state = torch.load(file)
    del state["features.3.squeeze.weight"]
    torch.save(state, file)
    with pytest.raises(DataError, match=r"squeezenet1_1, IMAGENET1K_V1: the weights do not fit.*features.3.squeeze.w"):
        TorchvisionModel("squeezenet1_1", weights="DEFAULT")(2)


def test_what_classifies_in_the_midst_is_left_out_and_positions_are_interpolated() -> None:
    first = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 2, 1)))
    state = {
        "conv.weight": torch.zeros(2, 3, 1, 1),
        "aux1.fc.weight": torch.zeros(1),
        "AuxLogits.fc.bias": torch.ones(1),
    }
    assert list(fitted(state, first, first="conv")) == ["conv.weight"]
    vit = {"patch_size": 4, "num_layers": 1, "num_heads": 1, "hidden_dim": 2, "mlp_dim": 2}
    large, small = (VisionTransformer(image_size=side, **vit) for side in (16, 8))
    positions = torch.arange(17.0).repeat_interleave(2).view(1, 17, 2)
    state = {**large.state_dict(), "encoder.pos_embedding": positions}
    new = fitted(state, small, first="conv_proj")["encoder.pos_embedding"]
    assert new.shape == (1, 5, 2)
    assert torch.equal(new[0, 0], positions[0, 0])  # of the class token
    assert float(new[0, 1:].mean()) == pytest.approx(float(positions[0, 1:].mean()), abs=0.5)
