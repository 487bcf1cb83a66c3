"""Shards: which are found, what is kept of those that are gone, and what is in memory."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpo.declared import described
from hpo.errors import DataError, ExperimentError
from hpo.training.data import ChunkFolder
from hpo.training.data.chunk_folder_files import NpzArray
from hpo.training.data.chunk_folder_held import HeldShards
from hpo.training.data.chunk_folder_memory import ShardPlan, evenly
from hpo.training.settings import ChunkSettings, DataSettings
from tests.training.test_device_only import CUDA, pretending  # noqa: F401

SIZES = st.lists(st.integers(2, 40), min_size=1, max_size=7)


# --- which are found ---


def test_shards_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("010.npz", "002.npz", ".hidden.npz", "_later.npz", "011.npz.tmp", "012.npz.part"):
        (tmp_path / name).touch()
    kind, paths = ChunkFolder(tmp_path).shards()
    assert kind == "npz"
    assert [path.name for path in paths] == ["002.npz", "010.npz"]


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ((), {}, r"x: the folder holds no shard\n  put image folders, .npz or .parquet files into it"),
        (("a.txt",), {}, r"a\.txt: it is no shard: neither a folder, nor an \.npz or \.parquet file"),
        (("a.npz", "b/"), {}, r"b: it is a shard of another kind \(folder\) than a\.npz \(npz\)\n  keep one kind"),
        (
            ("a/",),
            {"targets": "y"},
            r"a: class folders hold images, which have no targets by name\n  leave targets out",
        ),
        (("a.parquet",), {}, r"a\.parquet: nothing says which columns are to be predicted\n  name them, e\.g\. "),
    ],
)
def test_what_is_no_shard_is_named(tmp_path: Path, names: tuple[str, ...], settings: Any, message: str) -> None:
    (tmp_path / "x").mkdir()
    for name in names:
        (tmp_path / "x" / name).mkdir() if name.endswith("/") else (tmp_path / "x" / name).touch()
    with pytest.raises(DataError, match=message):
        ChunkFolder(tmp_path / "x", **settings).shards()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: the folder cannot be read: No such file"):
        ChunkFolder(tmp_path / "gone").shards()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": ""}, "path: '' is not a path"),
        ({"test_path": 3}, "test_path: 3 is not a path"),
        ({"size": 0}, "size: 0 is not an integer of at least 1"),
        ({"size": 8, "targets": "y"}, "size: rows of a table have no size"),
        ({"features": "x"}, r"features: 'x' are given, but nothing to predict from them\n  name it"),
        ({"classes": "ab"}, "classes: 'ab' are not two or more different classes"),
        ({"classes": ("a", "a")}, r"classes: \('a', 'a'\) are not two or more different classes"),
        ({"num_classes": 1}, "num_classes: 1 are not two or more different classes"),
        ({"num_classes": 2, "classes": ("a", "b")}, "num_classes: classes are given as well"),
        ({"replay": 1.5}, "replay: 1.5 is not a number of at least 0 and of at most 1"),
    ],
)
def test_what_cannot_be_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        ChunkFolder(**{"path": "shards", **settings}).check()


def test_it_describes_itself_and_travels() -> None:
    data = ChunkFolder("~/shards", targets=("a", "b"), classes=(1, 2))
    data.check()
    assert pickle.loads(pickle.dumps(data)) == data  # noqa: S301
    assert json.loads(json.dumps(described(data)))["targets"] == ["a", "b"]
    assert (data.name, data.class_names) == ("chunks:shards", ("1", "2"))


# --- what is kept ---


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 100))
def test_evenly_fills_the_room_and_favours_nobody(most: list[int], room: int) -> None:
    given_out = evenly(most, room)
    assert sum(given_out) == min(room, sum(most))
    assert all(own <= limit for own, limit in zip(given_out, most, strict=True))
    less = [own for own, limit in zip(given_out, most, strict=True) if own < limit]
    assert max(less, default=0) - min(less, default=0) <= 1
    assert all(own <= min(less, default=own) + 1 for own in given_out)


@given(SIZES, st.floats(0, 1), st.floats(0.2, 0.8), st.integers(0, 2**63 - 1))
def test_what_is_kept_is_thinned_and_bounded_and_knows_no_later_shard(
    sizes: list[int], replay: float, train_ratio: float, seed: int
) -> None:
    settings = DataSettings(train_ratio=train_ratio, split_seed=seed)
    plan = ShardPlan(sizes, settings, replay=replay)
    train, held_out = ([part(index) for index in range(len(sizes))] for part in (plan.train, plan.held_out))
    for size, own in zip(sizes, train, strict=True):
        assert len(own) == min(max(round(train_ratio * size), 1), size - 1)
    assert sorted(np.concatenate([*train, *held_out])) == [*range(sum(sizes))]
    for index in range(len(sizes)):
        kept = plan.kept(index)
        before = set(range(plan.starts[index]))
        assert set(kept.tolist()) <= before
        assert np.array_equal(kept, np.sort(kept))
        of_train = np.isin(kept, np.concatenate(train))
        assert of_train.sum() <= round(replay * max(len(part) for part in train[: index + 1]))
        assert (~of_train).sum() <= max(len(part) for part in held_out[: index + 1])
        if index:
            here = {*plan.kept(index - 1).tolist(), *range(plan.starts[index - 1], plan.starts[index])}
            assert set(kept.tolist()) <= here, "it had been thinned out"
            assert set(plan.measured(index + 1)["old"].tolist()) <= set(kept.tolist())
            assert len(plan.measured(index + 1)["old"])
            assert np.array_equal(ShardPlan(sizes, settings, replay=replay).kept(index), kept), "wherever it begins"
        shorter = ShardPlan(sizes[: index + 1], settings, replay=replay)
        assert np.array_equal(shorter.kept(index), kept)
        epochs, fewer = (one.epochs(ChunkSettings(), seed=1) for one in (plan, shorter))
        assert np.array_equal(epochs.indices(index), fewer.indices(index))
        assert set(epochs.indices(index).tolist()) <= {*train[index].tolist(), *kept.tolist()}


def test_at_most_so_many_of_each_shard_are_trained_on_and_held_out() -> None:
    plan = ShardPlan([100, 100], DataSettings(train_samples=7, val_samples=3), replay=1.0)
    assert [len(plan.train(1)), len(plan.held_out(1)), len(plan.kept(1))] == [7, 3, 10]
    assert set(plan.kept(1).tolist()) == {*plan.train(0).tolist(), *plan.held_out(0).tolist()}


def test_all_that_may_be_replayed_is_where_shards_are_alike() -> None:
    plan = ShardPlan([100] * 5, DataSettings(train_ratio=0.8), replay=0.25)
    epochs = plan.epochs(ChunkSettings(epochs_per_chunk=2), seed=0)
    assert [epochs.num_samples(2 * index) for index in range(5)] == [80, 100, 100, 100, 100]
    shards = np.searchsorted(plan.starts, epochs.indices(8), side="right") - 1
    assert np.bincount(shards).tolist() == [5, 5, 5, 5, 80]
    assert [len(plan.measured(chunk).get("old", ())) for chunk in (1, 2, 3, 5)] == [0, 20, 20, 20]


# --- what is in memory ---


@given(SIZES, st.floats(0, 1), st.data())
def test_it_gives_the_samples_that_it_was_to_bring_wherever_it_was_before(
    sizes: list[int], replay: float, data: st.DataObject
) -> None:
    total = sum(sizes)
    inputs, targets = torch.arange(2.0 * total).view(total, 2), torch.arange(total)
    plan = ShardPlan(sizes, DataSettings(train_ratio=0.5), replay=replay)
    reads: list[int] = []

    def read(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        reads.append(index)
        part = slice(plan.starts[index], plan.starts[index + 1])
        return inputs[part], targets[part]

    held = HeldShards(plan.starts.tolist(), read)
    before = -1
    for index in data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=6)):
        reads.clear()
        held.bring(index, plan.kept(index))
        if index == before:
            assert not reads
        if index == before + 1:
            assert reads == [index], "going on to the next shard reads that one alone"
        assert len(reads) <= index + 1
        here = np.concatenate([plan.kept(index), np.arange(plan.starts[index], plan.starts[index + 1])])
        rows = np.random.default_rng(0).permutation(here)
        got = [*held.batches(rows, 7)]
        assert torch.equal(torch.cat([own for own, _ in got]), inputs[rows])
        assert torch.equal(torch.cat([own for _, own in got]), targets[rows])
        assert [len(own) for _, own in got[:-1]] == [7] * (len(got) - 1)
        before = index


def test_a_shard_that_cannot_be_read_leaves_nothing_behind() -> None:
    fails = True

    def read(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if fails and index == 1:
            raise DataError("damaged")
        return torch.full((4, 1), float(index)), torch.arange(4)

    held = HeldShards([0, 4, 8], read)
    held.bring(0, np.empty(0, np.int64))
    with pytest.raises(DataError):
        held.bring(1, np.array([0, 3]))
    fails = False
    held.bring(1, np.array([0, 3]))
    assert [*held.batches(np.empty(0, np.int64), 3)] == []
    ((inputs, targets),) = held.batches(np.array([3, 4, 0]), 3)
    assert (inputs.flatten().tolist(), targets.tolist()) == ([0, 1, 0], [3, 0, 0])


# --- arrays, read block by block ---


@given(st.integers(0, 40), st.sampled_from("CF"), st.sampled_from(["<f4", ">f8", "|u1", "<i4"]))
def test_blocks_make_the_array(rows: int, order: Any, dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 200, (rows, 3, 2)).astype(dtype)
    array = np.asarray(array, order=order)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        (np.savez_compressed if rows % 2 else np.savez)(path, a=array, b=np.zeros(2))
        found = NpzArray(path, "a")
        blocks = [*found.blocks(block_bytes=64)]
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    whole = np.concatenate([block for _, block in blocks]) if blocks else array
    assert np.array_equal(whole, array)
    assert [start for start, _ in blocks] == np.cumsum([0, *[len(block) for _, block in blocks]])[:-1].tolist()


def test_what_is_gathered_stays_on_the_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.getfixturevalue("pretending")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # which has no pretended form
    held = HeldShards([0, 4, 8], lambda _: (torch.zeros((4, 3), device=CUDA), torch.zeros(4, device=CUDA)))
    held.bring(1, np.array([0, 3]))
    found = [*held.batches(np.array([0, 5, 3]), 2)]
    assert [inputs.shape for inputs, _ in found] == [(2, 3), (1, 3)]
    assert {part.device for batch in found for part in batch} == {CUDA}
