"""Which samples train and which validate: seeded, and every class in its proportion."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError, ExperimentError
from hpo.training.settings import DataSettings

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Two parts of a data set that share no sample and leave none out.

    Attributes:
        train_indices: (N,) int64, ascending.
        val_indices: (M,) int64, ascending.
    """

    train_indices: Indices
    val_indices: Indices


def stratified_split(labels: NDArray[np.int64], *, train_ratio: float, seed: int) -> Split:
    """A random split of (N,) `labels` whose train part has `round(train_ratio * N)` samples.

    The number from each class differs from its exact share by at most 1. A class of two or more samples is in both
    parts, a single sample trains. Equal arguments give equal splits.

    Raises:
        ExperimentError: `train_ratio` is not between 0 and 1.
        DataError: No class has two samples.
    """
    if not 0 < train_ratio < 1:
        raise ExperimentError(
            f"{train_ratio!r} is not between 0 and 1", where="train_ratio", remedy="e.g. 0.9 trains on nine tenths"
        )
    counts = np.bincount(labels)
    if counts.max(initial=0) < 2:
        raise DataError(
            f"no class has two samples among {len(labels)}, so none can both train and validate",
            where="labels",
            remedy="add samples",
        )
    quotas = _quotas(counts, round(train_ratio * len(labels)))
    quotas = np.clip(quotas, np.minimum(counts, 1), np.maximum(counts - 1, np.minimum(counts, 1)))
    everything = np.arange(len(labels))
    chosen = _draw(everything, labels, quotas, seed)
    return Split(everything[chosen], everything[~chosen])


def subset(indices: Indices, *, labels: NDArray[np.int64], num_samples: int, seed: int) -> Indices:
    """`num_samples` of `indices`, ascending, with the classes in proportion; all of them where there are no more.

    Args:
        indices: Of samples to choose from.
        labels: Of the whole data set, so that `labels[indices]` are the labels to choose by.
        num_samples: At least 1. From as many as there are classes on, every class keeps one sample at least.
        seed: Equal arguments give equal subsets.

    Raises:
        ExperimentError: `num_samples` is below 1.
    """
    if num_samples < 1:
        raise ExperimentError(
            f"{num_samples!r} is not an integer of at least 1", where="train_samples", remedy="e.g. 5000; None for all"
        )
    if num_samples >= len(indices):
        return np.sort(indices)
    own_labels = labels[indices]
    counts = np.bincount(own_labels)
    least = np.minimum(counts, 1) if num_samples >= np.count_nonzero(counts) else np.zeros_like(counts)
    quotas = least + _quotas(counts - least, num_samples - int(least.sum()))
    return np.sort(indices[_draw(indices, own_labels, quotas, seed)])


def split_of(labels: NDArray[np.int64], settings: DataSettings) -> Split:
    """The split of (N,) `labels` that the settings ask for, with at most as many samples as they allow.

    Raises:
        DataError: As `stratified_split`.
    """
    split = stratified_split(labels, train_ratio=settings.train_ratio, seed=settings.split_seed)

    def at_most(num_samples: int | None, indices: Indices) -> Indices:
        if num_samples is None:
            return indices
        return subset(indices, labels=labels, num_samples=num_samples, seed=settings.split_seed)

    return replace(
        split,
        train_indices=at_most(settings.train_samples, split.train_indices),
        val_indices=at_most(settings.val_samples, split.val_indices),
    )


def _quotas(counts: NDArray[np.intp], total: int) -> Indices:
    """Shares of `total` in proportion to `counts`, by largest remainders: each is off by less than 1."""
    exact = counts * (total / max(int(counts.sum()), 1))
    shares: Indices = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(shares - exact, kind="stable")
    shares[by_remainder[: total - int(shares.sum())]] += 1
    return shares


def _draw(indices: Indices, labels: NDArray[np.int64], quotas: Indices, seed: int) -> NDArray[np.bool_]:
    """Whether each of `indices` is drawn, `quotas[label]` of each label."""
    # Sorting by raw draws of the bit generator, which never change; NumPy's own shuffles may, from version to version.
    keys = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).random(len(indices))
    chosen = np.zeros(len(indices), np.bool_)
    for label in np.flatnonzero(quotas):
        own = np.flatnonzero(labels == label)
        chosen[own[np.argsort(keys[own], kind="stable")[: quotas[label]]]] = True
    return chosen
