from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpo.errors import DataError, ExperimentError
from hpo.training import checkpoint
from hpo.training.models import ConvNet
from hpo.training.weights_file import digest, read_weights, write_plain

CONFIG = {"lr": 0.01, "filters": (2, 4), "augment": ["crop"], "note": "ü", "freeze": None}


def weights(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = ConvNet(1, 3, filters=(2, 4)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return dict(model.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def own(path: Path, *, best: dict[str, Tensor] | None) -> Path:
    state = {"model": weights(1), "best": {"step": 2, "score": 0.5, "model": best}, "optimizer": {}, "epoch": 3}
    checkpoint.write(path, state, config=CONFIG)
    return path


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.safetensors"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    parts = {"inputs": {"mean": [0.5], "std": [2.0]}, "classes": ["a", "b"]}
    beside = write_plain(tmp_path / name, weights(), config=CONFIG, preprocessing=parts)
    read = read_weights(tmp_path / name)
    expected = weights()
    assert read.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) and value.is_contiguous() for key, value in read.items())
    assert beside == tmp_path / "model.json"
    assert json.loads(beside.read_text()) == {"config": {**CONFIG, "filters": [2, 4]}, **parts}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", name]


def test_pytorch_alone_reads_plain_weights(tmp_path: Path) -> None:
    write_plain(tmp_path / "model.pt", weights(), config=CONFIG)
    ConvNet(1, 3, filters=(2, 4)).load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


def test_safetensors_alone_reads_weights_and_configuration(tmp_path: Path) -> None:
    from safetensors import safe_open

    write_plain(tmp_path / "model.safetensors", weights(), config=CONFIG)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"])["lr"] == 0.01
        assert set(file.keys()) == set(weights())


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_tensors_that_share_memory_are_written_each(tmp_path: Path, name: str) -> None:
    whole = torch.arange(6.0)
    write_plain(tmp_path / name, {"whole": whole, "part": whole[::2], "same": whole}, config={})
    read = read_weights(tmp_path / name)
    assert read["part"].tolist() == [0.0, 2.0, 4.0]
    assert torch.equal(read["same"], whole)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExperimentError, match=r"model.bin: '.bin' is no format of weights\n  name the file .pt or .pth"
    ):
        write_plain(tmp_path / "model.bin", weights(), config={})
    with pytest.raises(ExperimentError, match=r"'model' is no format of weights"):
        write_plain(tmp_path / "model", weights(), config={})
    assert not any(tmp_path.iterdir())


def test_of_a_checkpoint_the_best_weights_count_else_the_current_ones(tmp_path: Path) -> None:
    assert same(read_weights(own(tmp_path / "best.ckpt", best=weights(2))), weights(2))
    assert same(read_weights(own(tmp_path / "last.ckpt", best=None)), weights(1))


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w, "epoch": 3}, lambda w: {"model": w}])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_others_saved(tmp_path: Path, wrap: Any, zipped: object) -> None:
    path = tmp_path / "theirs.pth"
    torch.save(wrap(weights()), path, _use_new_zipfile_serialization=zipped)
    assert same(read_weights(path), weights())


class Dangerous:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("gone.pt", "gone.safetensors"):
        with pytest.raises(DataError, match=rf"{name}: there is no such file of weights"):
            read_weights(tmp_path / name)
    with pytest.raises(DataError, match=r"gone.pt: the file of weights cannot be read \(No such file"):
        digest(tmp_path / "gone.pt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"model": {}}])
def test_a_file_without_tensors_by_name(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model.pt: the file holds no tensors by name\n  write it by torch.save\("):
        read_weights(tmp_path / "model.pt")


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Dangerous()}, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"the file holds no weights, or is damaged \(UnpicklingError"):
        read_weights(tmp_path / "model.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "own.ckpt"])
@pytest.mark.parametrize("harm", ["cut", "flip", "text"])
def test_a_damaged_file(tmp_path: Path, name: str, harm: str) -> None:
    path = tmp_path / name
    if name == "own.ckpt":
        own(path, best=None)
    else:
        write_plain(path, {"weight": torch.ones(4000)}, config={})
    content = bytearray(path.read_bytes())
    if harm == "flip" and name == "model.safetensors":
        content[2] ^= 0xFF  # in its header: safetensors has no sums over tensors
    elif harm == "flip":
        content[content.index(torch.ones(2).numpy().tobytes())] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "flip": content, "text": b"no weights"}[harm])
    with pytest.raises(DataError, match=rf"{name}: the "):
        read_weights(path)


def test_the_digest_is_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    assert digest(path) == hashlib.sha256(b"weights").hexdigest()[:16]
    path.write_bytes(b"others")
    assert digest(path) != hashlib.sha256(b"weights").hexdigest()[:16]
