from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.errors import CheckpointError
from hpo.training import checkpoint

STATE = {"weights": {"a": torch.arange(4.0)}, "epoch": 3, "parts": (1, [2.5, None, "text"])}
CONFIG = {"lr": 0.1, "augment": ("crop", "flip"), "epochs": None}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    size = checkpoint.write(path, STATE, config=CONFIG)
    content = checkpoint.read(path)
    assert size == path.stat().st_size
    assert content["config"] == {"lr": 0.1, "augment": ["crop", "flip"], "epochs": None}
    assert (content["epoch"], content["parts"]) == (3, (1, [2.5, None, "text"]))
    assert torch.equal(content["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index]


def test_a_snapshot_is_a_copy_in_which_shared_memory_is_shared(tmp_path: Path) -> None:
    tied = torch.arange(50_000.0)
    snapshot = checkpoint.StateSnapshot({"one": tied, "other": tied.view(-1), "parts": [tied[:3]]}, config=CONFIG)
    expected = tied.clone()
    tied.zero_()
    size = snapshot.write(tmp_path / "a.pt")
    content = checkpoint.read(tmp_path / "a.pt")
    assert torch.equal(content["one"], expected)
    assert torch.equal(content["other"], expected)
    assert torch.equal(content["parts"][0], expected[:3])
    assert tied.nbytes < size < 1.1 * tied.nbytes


def test_a_snapshot_for_which_the_device_has_no_room_is_taken_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = copy.deepcopy
    refused: list[object] = []

    def no_room(value: object, *memo: object) -> object:
        if not refused:
            refused.append(value)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copied(value, *memo)

    monkeypatch.setattr("copy.deepcopy", no_room)
    snapshot = checkpoint.StateSnapshot(STATE, config=CONFIG)
    snapshot.write(tmp_path / "a.pt")
    content = checkpoint.read(tmp_path / "a.pt")
    assert refused
    assert (content["epoch"], content["parts"]) == (3, (1, [2.5, None, "text"]))
    assert torch.equal(content["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_on_a_gpu_a_snapshot_is_of_its_moment_and_waits_for_no_later_work(tmp_path: Path) -> None:
    weights = torch.ones(1_000_000, device="cuda")
    snapshot = checkpoint.StateSnapshot({"weights": weights}, config={})
    later = torch.cuda.Event()
    weights.zero_()
    torch.cuda._sleep(10_000_000_000)  # cycles: seconds
    later.record()
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(snapshot.write, tmp_path / "a.pt").result()
    assert not later.query()
    assert bool((checkpoint.read(tmp_path / "a.pt")["weights"] == 1).all())


def test_nothing_is_left_behind_when_the_state_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="lambda"):
        checkpoint.write(tmp_path / "a.pt", {"bad": lambda: 0}, config={})
    assert list(tmp_path.iterdir()) == []


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"format": 1, "config": "{}", "object": Path("x")}, path)
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        checkpoint.read(path)


def test_another_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"format": 99, "config": "{}"}, path)
    with pytest.raises(CheckpointError, match=r"a\.pt: the checkpoint has format 99, this version reads 1"):
        checkpoint.read(path)


def test_other_weights_than_were_written_are_an_error(tmp_path: Path) -> None:
    path, weights = tmp_path / "a.pt", torch.full((1000,), 0.25)
    checkpoint.write(path, {"weights": weights}, config=CONFIG)
    content = path.read_bytes()
    assert content.count(weights.numpy().tobytes()) == 1
    path.write_bytes(content.replace(weights.numpy().tobytes(), (weights + 0.25).numpy().tobytes()))
    with pytest.raises(CheckpointError, match=r"cut off or damaged \(BadZipFile: .* does not match its checksum\)"):
        checkpoint.read(path)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_is_an_error_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, where: float, flip: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "a.pt"
    checkpoint.write(path, STATE, config=CONFIG)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= flip
    path.write_bytes(bytes(content))
    try:
        found = checkpoint.read(path)
    except CheckpointError:
        return
    assert torch.equal(found["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index]
    assert found["epoch"] == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "lr": 0.2}, r"another configuration: lr is 0\.1 there and 0\.2 here\n  load it into a trial"),
        ({"lr": 0.1, "epochs": None}, r"augment is \['crop', 'flip'\] there and 'nothing' here"),
        ({**CONFIG, "momentum": 0.9}, r"momentum is 'nothing' there and 0\.9 here"),
    ],
)
def test_another_configuration_is_named(config: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.write(path, STATE, config=CONFIG)
    checkpoint.check_same(CONFIG, checkpoint.read(path)["config"], path=path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check_same(config, checkpoint.read(path)["config"], path=path)  # type: ignore[arg-type]
