"""The laws of chunks, and of the epochs that train on them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpo.declared import described
from hpo.errors import DataError, ExperimentError
from hpo.training.data import Digits, ImageData, SklearnTable
from hpo.training.data.chunks import ChunkedSplit, Chunks, InChunks
from hpo.training.data.epochs import Indices
from hpo.training.data.split import Split, split_of
from hpo.training.settings import ChunkSettings, DataSettings
from tests.training.data.contract import ImageDataContract

SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Chunks, NDArray[np.int64], Split, int]:
    """Chunks, labels that can be divided so, a split of them, and a seed."""
    num_classes, num_chunks = draw(st.integers(2, 8)), draw(st.integers(1, 6))
    labels = np.array(draw(st.lists(st.integers(0, num_classes - 1), min_size=8, max_size=80)))
    by: Any = draw(st.sampled_from(["random", "label", "order", "sizes", "shares"]))
    if by in ("sizes", "shares"):
        cuts = sorted(draw(st.sets(st.integers(1, len(labels) - 1), min_size=num_chunks - 1, max_size=num_chunks - 1)))
        sizes = np.diff([0, *cuts, len(labels)]).tolist()
        by = sizes if by == "sizes" else [size / len(labels) for size in sizes]
    chunks = Chunks.of(num_chunks, by, "replace", None)
    seed = draw(SEEDS)
    assume(np.bincount(labels).max() >= 2)
    split = split_of(labels, DataSettings(train_ratio=draw(st.floats(0.2, 0.8)), split_seed=seed))
    return chunks, labels, split, seed


def divided(case: tuple[Chunks, NDArray[np.int64], Split, int]) -> ChunkedSplit:
    chunks, labels, split, seed = case
    try:
        return chunks.divided(split, labels, num_classes=int(labels.max()) + 1, seed=seed)
    except DataError:
        assume(False)
        raise


@given(cases())
def test_chunks_share_no_sample_and_leave_none_out(case: tuple[Chunks, NDArray[np.int64], Split, int]) -> None:
    chunks, _, split, _ = case
    found, again = divided(case), divided(case)
    for own, same, whole in (
        (found.train, again.train, split.train_indices),
        (found.held_out, again.held_out, split.val_indices),
    ):
        assert len(own) == chunks.num_chunks
        assert np.array_equal(np.sort(np.concatenate(own)), whole)
        for one, other in zip(own, same, strict=True):
            assert np.array_equal(one, other)
            assert np.array_equal(one, np.sort(one))
            assert one.dtype == np.int64


@given(cases())
def test_sizes_are_what_was_asked_for(case: tuple[Chunks, NDArray[np.int64], Split, int]) -> None:
    chunks, labels, _, _ = case
    found = divided(case)
    for own in (found.train, found.held_out):
        sizes = np.array([len(part) for part in own])
        if isinstance(chunks.by, tuple):
            weights = np.array(chunks.by) / sum(chunks.by)
            assert np.abs(sizes - weights * sizes.sum()).max() <= 1
        elif chunks.by != "label":
            assert sizes.max() - sizes.min() <= 1
    if chunks.by == "order":
        assert (np.diff(np.concatenate(found.train)) > 0).all()
    if chunks.by == "label":
        of_train, of_held_out = ([set(labels[part].tolist()) for part in own] for own in (found.train, found.held_out))
        for index, (one, other) in enumerate(zip(of_train, of_held_out, strict=True)):
            assert other <= one  # the one sample of a class trains
            assert all(max(one) < min(later) for later in of_train[index + 1 :])


def test_classes_are_divided_as_evenly_as_can_be() -> None:
    labels = np.repeat(np.arange(10), 4)
    split = split_of(labels, DataSettings(train_ratio=0.5))
    found = Chunks(4, "label").divided(split, labels, num_classes=10, seed=0)
    assert [sorted(set(labels[part].tolist())) for part in found.train] == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]


def test_another_seed_gives_other_chunks_but_in_order() -> None:
    labels = np.zeros(60, np.int64)
    split = split_of(labels, DataSettings(train_ratio=0.5))

    def first(by: str, seed: int) -> list[int]:
        return Chunks(3, by).divided(split, labels, num_classes=1, seed=seed).train[0].tolist()

    assert first("random", 0) != first("random", 1)
    assert first("order", 0) == first("order", 1) == split.train_indices[:10].tolist()


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    epochs_per_chunk=st.integers(1, 4),
    replay=st.none() | st.floats(0, 1),
    seed=SEEDS,
)
def test_an_epoch_follows_from_its_number_alone(
    sizes: list[int], epochs_per_chunk: int, replay: float | None, seed: int
) -> None:
    rows = np.random.default_rng(0).permutation(1000)[: sum(sizes)]
    chunks = np.split(rows, np.cumsum(sizes)[:-1])
    plan, other = (InChunks.of(chunks, epochs_per_chunk=epochs_per_chunk, replay=replay, seed=seed) for _ in range(2))
    assert plan.num_epochs == len(sizes) * epochs_per_chunk
    drawn = {epoch: other.indices(epoch) for epoch in reversed(range(plan.num_epochs))}
    for epoch in range(plan.num_epochs):
        chunk = plan.chunk(epoch)
        assert chunk == epoch // epochs_per_chunk + 1
        indices = plan.indices(epoch)
        assert np.array_equal(indices, drawn[epoch])
        assert indices.dtype == np.int64
        assert len(indices) == plan.num_samples(epoch) == len(set(indices.tolist()))
        own, old = set(chunks[chunk - 1].tolist()), {row for part in chunks[: chunk - 1] for row in part.tolist()}
        assert own <= set(indices.tolist()) <= own | old
        wanted = len(old) if replay is None else min(round(replay * len(own)), len(old))
        assert len(indices) == len(own) + wanted
    assert plan.least == min(plan.num_samples(epoch) for epoch in range(plan.num_epochs))


def test_what_is_replayed_is_drawn_anew_for_each_epoch() -> None:
    chunks: Sequence[Indices] = [np.arange(100), np.arange(100, 120)]
    plan = InChunks.of(chunks, epochs_per_chunk=2, replay=0.5, seed=3)
    first, second = (set(plan.indices(epoch).tolist()) - {*range(100, 120)} for epoch in (2, 3))
    assert len(first) == len(second) == 10
    assert first != second


def test_a_hyper_parameter_is_stronger_than_what_was_declared() -> None:
    train = [np.arange(10), np.arange(10, 20)]
    for declared, asked, expected in ((None, None, 2), (0.5, None, 5), (0.5, 0.1, 1), (0.5, 0.0, 0)):
        plan = Chunks(2, mode="replace", replay=declared).plan(train, ChunkSettings(replay=asked), seed=0)
        assert plan.num_samples(1) == 10 + expected
    assert Chunks(2).plan(train, ChunkSettings(), seed=0).num_samples(1) == 20


# --- declarations ---


class TestDigitsInChunks(ImageDataContract):
    @pytest.fixture
    def data(self, place: Path) -> ImageData:
        return Digits().in_chunks(5, by="label", mode="replace", replay=0.2)


def test_it_describes_itself_and_travels() -> None:
    data = SklearnTable("wine").in_chunks(3, by=[0.5, 0.25, 0.25], mode="replace")
    assert pickle.loads(pickle.dumps(data)) == data  # noqa: S301
    assert json.loads(json.dumps(described(data)))["chunks"] == {
        "class": "chunks",
        "num_chunks": 3,
        "by": [0.5, 0.25, 0.25],
        "mode": "replace",
        "replay": None,
    }
    assert Digits().in_chunks(5).in_chunks(3) == Digits().in_chunks(3)
    assert data.name == "wine"
    assert Digits().in_chunks(2).title == Digits().title


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_chunks": 0}, "num_chunks: 0 is not an integer of at least 1"),
        (
            {"by": "class"},
            r"by: 'class' is not one of 'random', 'label', 'order', nor the sizes of chunks\n  e\.g\. by=",
        ),
        ({"by": (1, 2, 3)}, r"by: 3 sizes are given for 2 chunks\n  give one for each"),
        ({"by": (0.5, 0.4)}, r"by: the shares add up to 0\.9, not to 1"),
        ({"by": (1, 0)}, "by: 0 is not the size of a chunk"),
        ({"by": ("a", "b")}, "by: 'a' is not the size of a chunk"),
        ({"mode": "all"}, "mode: 'all' is not one of 'cumulative', 'replace'"),
        ({"mode": "replace", "replay": 2}, "replay: 2 is not a number of at least 0 and of at most 1"),
        ({"replay": 0.2}, r"replay: 0\.2 is given, but cumulative .* anyway\n  leave it out, or .*mode=\"replace\""),
    ],
)
def test_what_cannot_be_is_an_error(arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"num_chunks": 2, "by": "random", "mode": "cumulative", "replay": None, **arguments}
    with pytest.raises(ExperimentError, match=message):
        Chunks.of(**settings).check()


@pytest.mark.parametrize(
    ("chunks", "num_classes", "message"),
    [
        (
            Chunks(11),
            3,
            r"data\.num_chunks: 11 chunks are more than the 10 samples of the train part\n  give at most 10",
        ),
        (Chunks(4, "label"), 3, r"data\.num_chunks: 4 chunks are more than the 3 classes .*\n  give at most 3, or"),
        (Chunks(2, "label"), None, r"data\.by: 'label' divides by classes, and the targets are none"),
        (Chunks(2, (5, 6)), 3, r"data\.by: the sizes add up to 11, but the train part has 10 samples"),
    ],
)
def test_what_does_not_fit_the_data_is_an_error(chunks: Chunks, num_classes: int | None, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        chunks.check_fits(10, num_classes=num_classes)
    with pytest.raises(ExperimentError, match=r"12 chunks are more than the 10 classes"):
        Digits().in_chunks(12, by="label").locate(None)


def test_a_chunk_without_a_sample_is_an_error() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    split = split_of(labels, DataSettings(train_ratio=0.5))
    with pytest.raises(DataError, match=r"data\.num_chunks: chunk 2 of 2 has no sample that is held out\n  give fewer"):
        Chunks(2, "label").divided(split, labels, num_classes=2, seed=0)
