from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.training.data import Digits, ImageFolder, Images, resident, streamed
from hpo.training.data.augment import AUGMENTATIONS, USUAL, Strengths
from hpo.training.data.batches import Batches, InOrder, StoredImages
from hpo.training.data.changes import mixed
from hpo.training.data.epochs import Indices
from hpo.training.data.resident import DeviceImages
from hpo.training.data.streamed import StreamedImages
from hpo.training.share import WHOLE, Share
from tests.training.data import tiny

CPU = torch.device("cpu")
NOT_MIXED = tuple(name for name in AUGMENTATIONS if name not in ("mixup", "cutmix", "noise"))
"""Those that a sample has whichever batch, share and process it is in."""
DRAWN = (*NOT_MIXED, "mixup", "cutmix")
"""Those that are drawn on the host."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Digits().load(Digits().locate(None), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Images:
    root = tmp_path_factory.mktemp("photos")
    data = ImageFolder(tiny.class_folders(root / "all", classes=("a", "b"), num=20, side=16))
    return data.load(data.locate(None), cache_dir=root / "cache")


@pytest.fixture(params=["normalised once", "normalised per batch", "streamed", "streamed by a process"])
def stored(photos: Images, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StoredImages:
    if request.param.startswith("streamed"):
        num_workers = int(request.param == "streamed by a process")
        return StreamedImages.train_part(photos, device=CPU, num_workers=num_workers)
    if request.param == "normalised per batch":
        monkeypatch.setattr(resident, "NORMALISED_MB", 0)
    data = DeviceImages.train_part(photos, device=CPU)
    assert data.is_normalised == (request.param == "normalised once")
    return data


def _flat(stream: Batches | InOrder) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(stream)
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def test_pixels_are_normalised(photos: Images, stored: StoredImages) -> None:
    images, labels = _flat(InOrder(stored, batch_size=7))
    expected = (photos.train_images / 255 - photos.mean) / photos.std
    torch.testing.assert_close(images.double(), torch.from_numpy(expected).permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == photos.train_labels.tolist()
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("augment", [(), ("crop", "flip"), DRAWN])
def test_the_same_batches_from_everywhere(photos: Images, stored: StoredImages, augment: tuple[str, ...]) -> None:
    here, there = (
        Batches(data, plan=np.arange(1, 40), batch_size=8, augment=augment, num_classes=2, seed=3)
        for data in (stored, DeviceImages.train_part(photos, device=CPU))
    )
    for _ in range(2):
        for (images, labels), (others, their_labels) in zip(here, there, strict=True):
            torch.testing.assert_close(images, others, rtol=1e-5, atol=1e-5)
            assert torch.equal(labels, their_labels)
            assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [2, 3])
def test_the_shares_of_several_processes_are_the_batch(stored: StoredImages, size: int) -> None:
    """Each sample once, moved as one process would move it."""
    how = {"plan": np.arange(1, 40), "batch_size": 8, "augment": NOT_MIXED, "seed": 3}
    whole = Batches(stored, **how)
    batches = [(images.clone(), labels.clone()) for images, labels in whole]
    streams = [Batches(stored, **how, share=Share(rank, size)) for rank in range(size)]
    shares = [[(images.clone(), labels.clone()) for images, labels in stream] for stream in streams]
    assert {stream.num_samples for stream in streams} == {whole.num_samples}
    assert {stream.whole_batch for stream in streams} == {8}
    for (images, labels), *parts in zip(batches, *shares, strict=True):
        torch.testing.assert_close(torch.cat([part for part, _ in parts]), images)
        assert torch.equal(torch.cat([part for _, part in parts]), labels)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_process_mixes_its_own_share(stored: StoredImages, size: int) -> None:
    """With shares and boxes that do not depend on it, and partners that do."""
    how = {"plan": np.arange(1, 40), "batch_size": 8, "num_classes": 2, "seed": 3}
    unmixed = _kept(Batches(stored, augment=NOT_MIXED, **how))
    whole = _kept(Batches(stored, augment=DRAWN, **how))
    for rank in range(size):
        part = Share(rank, size).of(8)
        own = _kept(Batches(stored, augment=DRAWN, **how, share=Share(rank, size)))
        for (plain, labels, _), (_, _, all_draws), (images, targets, draws) in zip(unmixed, whole, own, strict=True):
            assert sorted(draws["partner"].tolist()) == list(range(part.stop - part.start))
            for name in draws.keys() - {"partner"}:
                assert torch.equal(draws[name], all_draws[name][part])
            expected = mixed(plain[part].permute(0, 2, 3, 1), labels[part], draws, num_classes=2)
            torch.testing.assert_close(images.permute(0, 2, 3, 1), expected[0])
            assert torch.equal(targets, expected[1])
            assert (targets.shape, targets.dtype) == ((len(images), 2), torch.float32)


def _kept(stream: Batches) -> list[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]:
    """An epoch's batches and what was drawn for them, which the next one would be written over."""
    return [
        (images.clone(), targets.clone(), {name: part.clone() for name, part in stream._buffers.draws.items()})
        for images, targets in stream
    ]


def test_two_strengths_of_the_same_kinds_have_one_place(stored: StoredImages) -> None:
    how = {"plan": np.arange(32), "batch_size": 8, "num_classes": 2}
    others = Strengths(
        crop=0.5,
        flip=0.1,
        rotate=180,
        noise=1,
        brightness=2,
        contrast=1,
        cutout=1,
        erase=1,
        mixup=3,
        cutmix=0.1,
    )
    places = [Batches(stored, augment=USUAL, seed=1, **how).place, Batches(stored, augment=others, seed=2, **how).place]
    assert places[0] == places[1]
    alone = [Batches(stored, augment=(name,), seed=1, **how).place for name in AUGMENTATIONS]
    assert places[0] not in alone
    assert alone[0] == alone[1]  # crop and flip, together a move
    assert len(set(alone)) == len(AUGMENTATIONS) - 1
    assert Batches(stored, augment=Strengths(crop=0.0), seed=1, **how).place == Batches(stored, seed=1, **how).place


def test_noise_comes_from_pytorchs_generator(stored: StoredImages) -> None:
    stream = Batches(stored, plan=np.arange(32), batch_size=32, augment=Strengths(noise=0.1), seed=1)
    plain = Batches(stored, plan=np.arange(32), batch_size=32, seed=1)
    torch.manual_seed(1)
    first = next(iter(stream))[0] - next(iter(plain))[0]
    assert abs(float((first * stored._changed._std_C.view(1, 3, 1, 1)).std()) - 0.1) < 0.01
    stream.restore({"epoch": 0})
    assert not torch.equal(next(iter(stream))[0] - next(iter(plain))[0], first)


def test_a_batch_is_computed_from_tensors_that_stay(stored: StoredImages) -> None:
    one, other = (Batches(stored, plan=np.arange(32), batch_size=8, augment=("flip",), seed=s) for s in (1, 2))
    assert one.place == other.place
    assert one.place != Batches(stored, plan=np.arange(32), batch_size=4, augment=("flip",), seed=1).place
    assert one.place != Batches(stored, plan=np.arange(32), batch_size=8, seed=1).place
    one.batch()
    one.begin_epoch()
    while one.advance():
        for mine, its in zip(one.batch(), other.batch(), strict=True):
            assert torch.equal(mine, its)


def test_looking_ahead_changes_nothing(stored: StoredImages) -> None:
    plain, looking = (Batches(stored, plan=np.arange(32), batch_size=8, augment=("crop",), seed=5) for _ in "ab")
    for _ in range(3):
        first, second = _flat(plain), _flat(looking)
        looking.look_ahead()
        assert torch.equal(first[0], second[0])
    looking.restore({"epoch": 0})
    plain.restore({"epoch": 0})
    assert torch.equal(_flat(plain)[0], _flat(looking)[0])


def test_in_order_again_and_again(photos: Images, stored: StoredImages) -> None:
    chosen = np.array([5, 3, 39])
    stream = InOrder(stored, indices=chosen, batch_size=2)
    first, second = _flat(stream), _flat(stream)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], torch.from_numpy(photos.train_labels[chosen]))
    assert [len(labels) for _, labels in stream] == [2, 1]
    assert not list(InOrder(stored, indices=np.zeros(0, np.int64)))


@given(st.integers(1, 60), st.integers(1, 50), st.integers(0, 2**63 - 1))
def test_an_epoch_holds_samples_at_most_once(num: int, batch_size: int, seed: int) -> None:
    images = np.arange(80, dtype=np.uint8).reshape(80, 1, 1, 1)
    one = np.ones(1, np.float32)
    data = DeviceImages(images, np.arange(80), mean=0 * one, std=one / 255, device=CPU)
    indices = np.sort(np.random.default_rng(0).permutation(80)[:num])
    stream = Batches(data, plan=indices, batch_size=batch_size, seed=seed)
    parts = list(stream)
    size = min(batch_size, num)
    assert [len(labels) for _, labels in parts] == [size] * (num // size)
    assert stream.num_samples == size * len(parts)
    labels = torch.cat([labels for _, labels in parts])
    assert labels.unique().numel() == labels.numel()
    assert set(labels.tolist()) <= set(indices.tolist())
    assert torch.equal(torch.cat([part for part, _ in parts]).flatten().round().long(), labels)


def test_epochs_differ_and_seeds_differ(digits: Images) -> None:
    data = DeviceImages.train_part(digits, device=CPU)
    stream, other = (Batches(data, plan=np.arange(1000), batch_size=100, seed=seed) for seed in (1, 2))
    orders = [_flat(part)[0] for part in (stream, stream, other)]
    assert not any(torch.equal(orders[i], orders[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_goes_on_where_the_state_was_taken(stored: StoredImages, seen: int) -> None:
    def begun() -> Batches:
        return Batches(stored, plan=np.arange(35), batch_size=8, augment=DRAWN, num_classes=2, seed=9)

    original, restored = begun(), begun()
    for _ in range(seen):
        _flat(original)
    restored.restore(json.loads(json.dumps(original.state())))
    for _ in range(2):
        for one, other in zip(_flat(original), _flat(restored), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("position", "share"), [(1, WHOLE), (4, WHOLE), (3, Share(1, 2))])
def test_goes_on_between_any_two_batches(stored: StoredImages, position: int, share: Share) -> None:
    def begun() -> Batches:
        return Batches(stored, plan=np.arange(35), batch_size=8, augment=DRAWN, num_classes=2, seed=9, share=share)

    whole = begun()
    epochs = [[(images.clone(), targets.clone()) for images, targets in whole] for _ in range(3)]
    original, restored = begun(), begun()
    list(original)
    original.begin_epoch()
    assert [original.advance() for _ in range(position)] == [True] * position
    state = json.loads(json.dumps(original.state()))
    assert (state["epoch"], state["position"]) == ((1, position) if position < 4 else (2, 0))
    restored.restore(state)
    assert restored.position == state["position"]
    left = [*epochs[1][position:], *epochs[2]]
    again = [(images.clone(), targets.clone()) for _ in range(1 + (position < 4)) for images, targets in restored]
    assert len(again) == len(left)
    for (images, targets), (others, their_targets) in zip(left, again, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(targets, their_targets)


def test_what_is_skipped_is_not_read(photos: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    data = StreamedImages.train_part(photos, device=CPU, num_workers=0)
    seen: list[int] = []
    read = streamed._Mapped.__getitem__

    def recorded(self: streamed._Mapped, rows: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        seen.extend(rows.tolist())
        return read(self, rows)

    monkeypatch.setattr(streamed._Mapped, "__getitem__", recorded)
    stream = Batches(data, plan=np.arange(40), batch_size=8, seed=1)
    list(stream)
    order, seen[:] = list(seen), []
    stream.restore({"seed": 1, "epoch": 0, "position": 3, "batch_size": 8})
    list(stream)
    assert seen == order[24:]


def test_a_state_of_once_is_that_of_a_whole_epoch(photos: Images) -> None:
    stored = DeviceImages.train_part(photos, device=CPU)
    one, other = (Batches(stored, plan=np.arange(35), batch_size=8, seed=9) for _ in "ab")
    _flat(one)
    other.restore({"epoch": 1})
    for mine, theirs in zip(_flat(one), _flat(other), strict=True):
        assert torch.equal(mine, theirs)


def test_another_trials_place_finishes_its_epoch_in_whole_batches_of_ones_own(photos: Images) -> None:
    stored = DeviceImages.train_part(photos, device=CPU)
    theirs = Batches(stored, plan=np.arange(40), batch_size=8, seed=1)
    order = [int(row) for _, rows in _rows_of(theirs) for row in rows]
    theirs.restore({"epoch": 0})
    theirs.begin_epoch()
    assert [theirs.advance() for _ in range(3)] == [True] * 3
    own = Batches(stored, plan=np.arange(40), batch_size=10, seed=2)
    own.restore(theirs.state())  # 24 samples were had: two batches of 10
    assert [int(row) for _, rows in _rows_of(own) for row in rows] == order[20:]
    fresh = Batches(stored, plan=np.arange(40), batch_size=10, seed=2)
    fresh.restore({"epoch": 1})
    assert [rows.tolist() for _, rows in _rows_of(own)] == [rows.tolist() for _, rows in _rows_of(fresh)]


def _rows_of(stream: Batches) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of an epoch, and which of them these are: no two have equal pixels."""
    everything, _ = _flat(InOrder(stream._data))
    batches = [images.clone() for images, _ in stream]
    return [(images, (images[:, None] == everything).flatten(2).all(2).int().argmax(1)) for images in batches]


def test_large_data_stays_the_mapped_file(photos: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "NORMALISED_MB", 0)
    data = DeviceImages.train_part(photos, device=CPU)
    assert data._images_NHWC.data_ptr() == photos.train_images.ctypes.data


def test_a_part_without_images(tmp_path: Path) -> None:
    data = ImageFolder(tiny.class_folders(tmp_path / "x", classes=("a", "b"), parts=("",)))
    images = data.load(data.locate(None), cache_dir=tmp_path / "cache")
    test_part = DeviceImages.test_part(images, device=CPU)
    assert len(test_part) == 0
    assert not list(InOrder(test_part))


def test_batch_size_is_positive(stored: StoredImages) -> None:
    with pytest.raises(ExperimentError, match="batch_size: 0 is not at least 1"):
        Batches(stored, plan=np.arange(3), batch_size=0, seed=0)


def test_unknown_augmentation(stored: StoredImages) -> None:
    with pytest.raises(ExperimentError, match="'blur' is no augmentation"):
        Batches(stored, plan=np.arange(3), batch_size=1, augment=("blur",), seed=0)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_needs_two_images_and_classes(stored: StoredImages, name: str) -> None:
    def batches(size: int, **how: Any) -> Batches:
        return Batches(stored, plan=np.arange(20), batch_size=size, augment=(name,), seed=0, **how)

    batches(6, num_classes=2, share=Share(1, 3))
    with pytest.raises(
        ExperimentError, match=rf"batch_size: a batch of 1 gives .* {name} could mix\n  give at least 2"
    ):
        batches(1, num_classes=2)
    with pytest.raises(
        ExperimentError, match=rf"batch_size: a batch of 5 gives .*\n  give at least 6, or leave {name}"
    ):
        batches(5, num_classes=2, share=Share(0, 3))
    with pytest.raises(ExperimentError, match=rf"{name}: nothing says how many classes .*\n  give num_classes"):
        batches(6)


@pytest.mark.gpu
def test_same_batches_on_a_gpu(photos: Images) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    arguments = {"plan": np.arange(40), "batch_size": 8, "augment": DRAWN, "num_classes": 2, "seed": 3}
    on_cpu, on_gpu = (
        _flat(Batches(DeviceImages.train_part(photos, device=torch.device(name)), **arguments))
        for name in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu[0].cpu(), on_cpu[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(on_gpu[1].cpu(), on_cpu[1])
