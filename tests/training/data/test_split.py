from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpo.errors import DataError, ExperimentError
from hpo.training.data.split import split_of, stratified_split, subset
from hpo.training.settings import DataSettings

counts = st.lists(st.integers(0, 40), min_size=1, max_size=8)
ratios = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**63 - 1)


def _labels(counts: list[int]) -> NDArray[np.int64]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).permutation(labels)


@given(counts, ratios, seeds)
def test_split_laws(counts: list[int], ratio: float, seed: int) -> None:
    assume(max(counts) >= 2)
    labels = _labels(counts)
    split = stratified_split(labels, train_ratio=ratio, seed=seed)
    train, val = split.train_indices, split.val_indices
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
    assert np.array_equal(train, np.sort(train))
    assert np.array_equal(val, np.sort(val))
    assert train.dtype == val.dtype == np.int64
    for label, count in enumerate(counts):
        in_train = int((labels[train] == label).sum())
        assert abs(in_train - ratio * count) <= 1
        if count >= 2:
            assert 1 <= in_train <= count - 1
    again = stratified_split(labels, train_ratio=ratio, seed=seed)
    assert np.array_equal(again.train_indices, train)


def test_other_seeds_give_other_splits() -> None:
    labels = _labels([50] * 4)
    splits = {stratified_split(labels, train_ratio=0.8, seed=seed).train_indices.tobytes() for seed in range(20)}
    assert len(splits) == 20


def test_exact_total_and_known_draw() -> None:
    labels = _labels([161, 163, 159, 162, 164])
    split = stratified_split(labels, train_ratio=0.9, seed=0)
    assert len(split.train_indices) == round(0.9 * len(labels))
    assert split.val_indices[:5].tolist() == [5, 9, 26, 27, 38]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_ratio_is_between_0_and_1(ratio: float) -> None:
    with pytest.raises(ExperimentError, match=f"train_ratio: {ratio} is not between 0 and 1"):
        stratified_split(_labels([5, 5]), train_ratio=ratio, seed=0)


def test_nothing_to_validate_on() -> None:
    with pytest.raises(DataError, match="no class has two samples among 3"):
        stratified_split(_labels([1, 1, 1]), train_ratio=0.5, seed=0)


@given(counts, st.integers(1, 400), seeds, st.data())
def test_subset_laws(counts: list[int], num_samples: int, seed: int, data: st.DataObject) -> None:
    labels = _labels(counts)
    keep = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    indices = np.flatnonzero(np.array(keep, np.bool_))
    chosen = subset(indices, labels=labels, num_samples=num_samples, seed=seed)
    assert len(chosen) == min(num_samples, len(indices))
    assert set(chosen) <= set(indices)
    assert np.array_equal(chosen, np.unique(chosen))
    own, of = np.bincount(labels[chosen], minlength=9), np.bincount(labels[indices], minlength=9)
    if len(chosen) < len(indices):
        assert (np.abs(own - of * num_samples / len(indices)) <= 2).all()
    if num_samples >= np.count_nonzero(of):
        assert (own[of > 0] >= 1).all()
    assert np.array_equal(chosen, subset(indices, labels=labels, num_samples=num_samples, seed=seed))


def test_subset_needs_a_sample() -> None:
    with pytest.raises(ExperimentError, match="train_samples: 0 is not an integer of at least 1"):
        subset(np.arange(4), labels=_labels([2, 2]), num_samples=0, seed=0)


@given(counts, seeds, st.none() | st.integers(1, 50), st.none() | st.integers(1, 50))
def test_a_split_as_the_settings_ask_for(
    counts: list[int], seed: int, train_samples: int | None, val_samples: int | None
) -> None:
    assume(max(counts) >= 2)
    labels = _labels(counts)
    settings = DataSettings(train_ratio=0.6, train_samples=train_samples, val_samples=val_samples, split_seed=seed)
    whole, split = stratified_split(labels, train_ratio=0.6, seed=seed), split_of(labels, settings)
    for indices, of, most in (
        (split.train_indices, whole.train_indices, train_samples),
        (split.val_indices, whole.val_indices, val_samples),
    ):
        assert set(indices) <= set(of)
        assert len(indices) == min(len(of), most or len(of))
