"""Growing data: the chunks that a data set comes in, and which samples each epoch trains on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.declared import positive_int
from hpo.errors import DataError, ExperimentError
from hpo.seeds import derive
from hpo.training.data.epochs import EpochPlan, Indices
from hpo.training.data.split import Split
from hpo.training.rules import number, one_of
from hpo.training.settings import ChunkSettings
from hpo.trial import Config

USUAL_REPLAY = 0.2
"""What is replayed where chunks replace each other and nothing is said."""

_by = one_of("random", "label", "order")
_mode = one_of("cumulative", "replace")
_replay = number(USUAL_REPLAY, least=0, most=1)

Sizes = Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class Chunks:
    """How a data set that is all there is divided into chunks, and what a trial sees of those that it had before.

    Train and held-out samples are split first, as ever; then both parts are divided by the same rule, so that each
    chunk has samples of its own to be measured by.

    Attributes:
        num_chunks: At least 1.
        by: "random": drawn by `split_seed`, as many for each chunk; "order": as they lie, as many for each chunk;
            "label": whole classes, in their order, as many for each chunk; or the size of each chunk, drawn like
            "random": numbers of samples that add up to all of the train part, or shares that add up to 1.
        mode: "cumulative": an epoch trains on all chunks so far; "replace": on its own chunk, and on `replay` times as
            many samples of those before, drawn anew for each epoch.
        replay: In [0, 1], of the mode "replace" alone; None: 0.2 there.
    """

    num_chunks: int
    by: str | tuple[float, ...] = "random"
    mode: str = "cumulative"
    replay: float | None = None

    @classmethod
    def of(cls, num_chunks: int, by: str | Sizes, mode: str, replay: float | None) -> Chunks:
        """As a user names them."""
        return cls(num_chunks, by if isinstance(by, str) else tuple(by), mode, replay)

    @property
    def is_cumulative(self) -> bool:
        """Whether an epoch trains on all chunks so far."""
        return self.mode == "cumulative"

    def check(self) -> None:
        """Raise ExperimentError where a value breaks a rule."""
        positive_int({"num_chunks": self.num_chunks}, "num_chunks")
        if isinstance(self.by, str):
            if not _by.holds(self.by):
                raise ExperimentError(
                    f"{self.by!r} is not {_by.says}, nor the sizes of chunks", where="by", remedy='e.g. by="label"'
                )
        else:
            self._check_sizes(self.by)
        _mode.check(self.mode, where="mode")
        if self.replay is not None:
            _replay.check(self.replay, where="replay")
            self._check_replayed(self.replay, where="replay")

    def check_config(self, config: Config) -> None:
        """Raise ExperimentError where a hyper-parameter says what to replay of chunks that need it not."""
        for name in ("replay", "data.replay"):
            if config.get(name) is not None:
                self._check_replayed(config[name], where=name)

    def check_fits(self, num_samples: int, *, num_classes: int | None) -> None:
        """Raise ExperimentError where such data cannot be divided so.

        Args:
            num_samples: Of the train part, those to be held out included.
            num_classes: None where the data have none.
        """
        if self.num_chunks > num_samples:
            raise ExperimentError(
                f"{self.num_chunks} chunks are more than the {num_samples} samples of the train part",
                where="data.num_chunks",
                remedy=f"give at most {num_samples}",
            )
        if self.by == "label" and (num_classes is None or self.num_chunks > num_classes):
            if num_classes is None:
                raise ExperimentError(
                    "'label' divides by classes, and the targets are none",
                    where="data.by",
                    remedy='divide by "random", by "order" or by sizes',
                )
            raise ExperimentError(
                f"{self.num_chunks} chunks are more than the {num_classes} classes that are to be divided",
                where="data.num_chunks",
                remedy=f'give at most {num_classes}, or divide by "random"',
            )
        if self._sizes_are_numbers and sum(self._sizes) != num_samples:
            raise ExperimentError(
                f"the sizes add up to {sum(self._sizes):,}, but the train part has {num_samples:,} samples",
                where="data.by",
                remedy="give sizes that add up to that, or shares that add up to 1",
            )

    def divided(self, split: Split, labels: NDArray[np.int64], *, num_classes: int, seed: int) -> ChunkedSplit:
        """Both parts of a split in chunks.

        Args:
            split: Of the whole train part.
            labels: (N,) of the whole train part.
            num_classes: Of them.
            seed: Equal arguments give equal chunks.

        Raises:
            DataError: A chunk has no sample to train on, or none that is held out.
        """
        parts = [
            self._of_part(indices, labels, num_classes, derive(seed, "chunks", name))
            for name, indices in (("train", split.train_indices), ("held out", split.val_indices))
        ]
        return ChunkedSplit(*parts)

    def first(self, labels: NDArray[np.int64]) -> Indices:
        """Rows of the first chunk, of (N,) labels of a whole train part that nothing is held out of."""
        return self._of_part(np.arange(len(labels)), labels, int(labels.max(initial=-1)) + 1, 0)[0]

    def plan(self, train: Sequence[Indices], settings: ChunkSettings, *, seed: int) -> InChunks:
        """Which samples each epoch trains on, of chunks of the train samples."""
        own = USUAL_REPLAY if self.replay is None else self.replay
        replay = own if settings.replay is None else settings.replay
        return InChunks.of(
            train,
            epochs_per_chunk=settings.epochs_per_chunk,
            replay=None if self.is_cumulative else replay,
            seed=seed,
        )

    @property
    def _sizes(self) -> tuple[float, ...]:
        return () if isinstance(self.by, str) else self.by

    @property
    def _sizes_are_numbers(self) -> bool:
        return bool(self._sizes) and all(isinstance(size, int) for size in self._sizes)

    def _check_replayed(self, replay: object, *, where: str) -> None:
        if self.is_cumulative:
            raise ExperimentError(
                f"{replay!r} is given, but cumulative chunks hold all earlier samples anyway",
                where=where,
                remedy='leave it out, or let chunks replace each other: mode="replace"',
            )

    def _check_sizes(self, sizes: tuple[float, ...]) -> None:
        if len(sizes) != self.num_chunks:
            raise ExperimentError(
                f"{len(sizes)} sizes are given for {self.num_chunks} chunks", where="by", remedy="give one for each"
            )
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 < size < math.inf:
                raise ExperimentError(
                    f"{size!r} is not the size of a chunk",
                    where="by",
                    remedy="give numbers of samples, e.g. (30000, 20000), or shares, e.g. (0.6, 0.4)",
                )
        if not self._sizes_are_numbers and not math.isclose(sum(sizes), 1.0, abs_tol=1e-6):
            raise ExperimentError(
                f"the shares add up to {sum(sizes):g}, not to 1", where="by", remedy="e.g. by=(0.6, 0.4)"
            )

    def _of_part(self, indices: Indices, labels: NDArray[np.int64], num_classes: int, seed: int) -> tuple[Indices, ...]:
        if self.by == "label":
            chunk_of = np.arange(num_classes) * self.num_chunks // max(num_classes, 1)
            own = chunk_of[labels[indices]]
            return tuple(indices[own == chunk] for chunk in range(self.num_chunks))
        weights = np.array(self._sizes or (1,) * self.num_chunks, np.float64)
        ends = np.floor(np.cumsum(weights) * (len(indices) / weights.sum()) + 0.5).astype(np.int64)
        if self.by != "order":
            indices = shuffled(indices, seed)
        return tuple(np.sort(chunk) for chunk in np.split(indices, ends[:-1]))


@dataclass(frozen=True, eq=False)
class ChunkedSplit:
    """A split whose two parts come in the same number of chunks, which share no sample and leave none out.

    Attributes:
        train: (N_k,) int64 each, ascending.
        held_out: (M_k,) int64 each, ascending.

    Raises:
        DataError: One of them is empty.
    """

    train: tuple[Indices, ...]
    held_out: tuple[Indices, ...]

    def __post_init__(self) -> None:
        parts = (("to train on", self.train), ("that is held out", self.held_out))
        for what, chunks in parts:
            for number_of, indices in enumerate(chunks, 1):
                if not len(indices):
                    raise DataError(
                        f"chunk {number_of} of {len(chunks)} has no sample {what}",
                        where="data.num_chunks",
                        remedy="give fewer chunks, or more samples (train_samples, val_samples, train_ratio)",
                    )

    def measured(self, chunk: int) -> dict[str, Indices]:
        """What is held out, as `Source.parts` has it: the "new" of a chunk (from 1), and the "old" before it."""
        old = {"old": np.sort(np.concatenate(self.held_out[: chunk - 1]))} if chunk > 1 else {}
        return {**old, "new": self.held_out[chunk - 1]}


class InChunks(EpochPlan):
    """So many epochs for each chunk, one chunk after the other.

    Args:
        sizes: Samples of each chunk.
        rows: Gives those of a chunk, from 0: (N_k,) int64, rows of the stored data.
        num_old: Samples of earlier chunks that each chunk may be trained on together with.
        old: Gives those of a chunk.
        epochs_per_chunk: At least 1.
        replay: How many of these an epoch has, as a share of its chunk's samples; all where there are fewer. None: all.
        seed: Of which they are; they are drawn anew for each epoch.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        rows: Callable[[int], Indices],
        *,
        num_old: Sequence[int],
        old: Callable[[int], Indices],
        epochs_per_chunk: int = 1,
        replay: float | None = None,
        seed: int = 0,
    ) -> None:
        self._sizes, self._rows, self._old = sizes, rows, old
        self._epochs_per_chunk, self._seed = epochs_per_chunk, seed
        wanted = num_old if replay is None else [round(replay * size) for size in sizes]
        self._num_replayed = [min(one, most) for one, most in zip(wanted, num_old, strict=True)]

    @classmethod
    def of(cls, chunks: Sequence[Indices], **how: Any) -> InChunks:
        """Of chunks whose rows are all known; any earlier sample may be trained on again."""
        sizes = [len(rows) for rows in chunks]
        num_old = [0, *accumulate(sizes[:-1])]
        return cls(sizes, chunks.__getitem__, num_old=num_old, old=lambda index: np.concatenate(chunks[:index]), **how)

    def indices(self, epoch: int) -> Indices:
        index = self._index(epoch)
        own, num_old = self._rows(index), self._num_replayed[index]
        if not num_old:
            return own
        return np.concatenate([own, shuffled(self._old(index), derive(self._seed, "replay", epoch))[:num_old]])

    def num_samples(self, epoch: int) -> int:
        index = self._index(epoch)
        return self._sizes[index] + self._num_replayed[index]

    @property
    def least(self) -> int:
        return min(map(sum, zip(self._sizes, self._num_replayed, strict=True)))

    def chunk(self, epoch: int) -> int:
        return self._index(epoch) + 1

    @property
    def num_epochs(self) -> int:
        return len(self._sizes) * self._epochs_per_chunk

    def _index(self, epoch: int) -> int:
        return min(epoch // self._epochs_per_chunk, len(self._sizes) - 1)


def shuffled(indices: Indices, seed: int) -> Indices:
    """The indices in a random order; equal arguments give equal orders."""
    # By raw draws of the bit generator, which never change; NumPy's own shuffles may, from version to version.
    keys = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).random(len(indices))
    return indices[np.argsort(keys, kind="stable")]
