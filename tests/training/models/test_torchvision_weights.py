from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torchvision import models

from hpo.errors import DataError, ExperimentError
from hpo.training.models.torchvision_weights import (
    find_file,
    load_weights,
    model_names,
    weights_named,
    weights_of,
)

CONTENT = b"weights"
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
NOWHERE = f"http://127.0.0.1:9/models/{NAME}"


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HPO_DATA", str(tmp_path / "data"))
    return tmp_path / "torch" / "hub" / "checkpoints", tmp_path / "data" / "weights"


def put(folder: Path, content: bytes = CONTENT) -> Path:
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(content)
    return folder / NAME


@pytest.mark.parametrize("place", [0, 1])
def test_a_file_is_found_in_either_place(places: tuple[Path, Path], place: int) -> None:
    path = put(places[place])
    assert find_file(NOWHERE) == path


def test_the_hub_cache_comes_first(places: tuple[Path, Path]) -> None:
    first, _ = put(places[0]), put(places[1])
    assert find_file(NOWHERE) == first


def test_a_file_that_is_nowhere_is_downloaded_once(places: tuple[Path, Path], tmp_path: Path) -> None:
    server = put(tmp_path / "server")
    found = find_file(server.as_uri())
    assert found == places[0] / NAME
    assert found.read_bytes() == CONTENT
    server.unlink()
    assert find_file(server.as_uri()) == found


def test_a_file_that_cannot_be_had_is_named_with_the_places(places: tuple[Path, Path]) -> None:
    message = rf"{NAME}: the weights are not here, and cannot be downloaded \(.+\)\n  looked for in {places[0]} and "
    with pytest.raises(DataError, match=message + rf"{places[1]}: put the file there on every node, from {NOWHERE}"):
        find_file(NOWHERE)
    assert not list(places[0].glob("*.pth"))


def test_a_damaged_file_is_told_from_its_name(places: tuple[Path, Path], tmp_path: Path) -> None:
    path = put(places[1], b"other")
    with pytest.raises(DataError, match=rf"{path}: the file of weights is damaged \(its checksum is not the one"):
        find_file(NOWHERE)
    path.unlink()
    server = put(tmp_path / "server", b"cut off")
    with pytest.raises(DataError, match=r"its checksum is not the one in its name"):
        find_file(server.as_uri())
    assert not (places[0] / NAME).exists()
    path.write_bytes(CONTENT)
    assert find_file(NOWHERE) == path


def test_a_file_that_is_no_state_is_refused(monkeypatch: pytest.MonkeyPatch, places: tuple[Path, Path]) -> None:
    put(places[1])
    member = weights_of("resnet18", "DEFAULT")
    monkeypatch.setattr(member.value, "url", NOWHERE)
    with pytest.raises(
        DataError, match=rf"{NAME}: the file of weights is damaged \(UnpicklingError while it was read\)"
    ):
        load_weights(member)


def test_a_state_is_loaded_from_where_it_lies(monkeypatch: pytest.MonkeyPatch, places: tuple[Path, Path]) -> None:
    places[1].mkdir(parents=True)
    torch.save({"weight": torch.arange(3)}, places[1] / "plain.pth")
    member = weights_of("resnet18", "DEFAULT")
    monkeypatch.setattr(member.value, "url", "http://127.0.0.1:9/plain.pth")
    assert load_weights(member)["weight"].tolist() == [0, 1, 2]


def test_weights_by_their_names() -> None:
    expected = models.ResNet50_Weights.IMAGENET1K_V2
    assert weights_of("resnet50", "DEFAULT") is expected
    assert weights_of("resnet50", "IMAGENET1K_V2") is expected
    assert weights_of("resnet50", "ResNet50_Weights.IMAGENET1K_V2") is expected
    assert weights_named("ResNet50_Weights.IMAGENET1K_V2") is expected
    assert weights_named("resnet50") is expected


def test_unknown_weights() -> None:
    with pytest.raises(
        ExperimentError, match=r"weights: 'IMAGENET_V1' is none .* resnet18\n  did you mean 'IMAGENET1K_V1'"
    ):
        weights_of("resnet18", "IMAGENET_V1")
    with pytest.raises(
        ExperimentError, match=r"'coco' is none of the weights of resnet18\n  valid names: IMAGENET1K_V1"
    ):
        weights_of("resnet18", "coco")
    with pytest.raises(ExperimentError, match=r"'ResNet19_Weights' names no weights of .*\n  did you mean 'ResNet1"):
        weights_named("ResNet19_Weights")
    with pytest.raises(ExperimentError, match=r'e.g. "ResNet18_Weights.IMAGENET1K_V1"'):
        weights_named("@@@@")


def test_every_classification_network_is_named() -> None:
    assert {"resnet18", "vit_b_16", "vgg11"} < set(model_names())
    assert "fasterrcnn_resnet50_fpn" not in model_names()
