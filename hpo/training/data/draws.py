"""What is drawn for the images of an epoch, on the host, from seed and epoch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.seeds import derive
from hpo.training.data.augment import Strengths
from hpo.training.data.moves import ONE, largest_shift

Draws = Mapping[str, Tensor]
"""(N, ...) each, by name; what is off has none:

    moves: (N, 3) or (N, 5) int64, as `moves.MovedPixels` takes them.
    brightness, contrast: (N,) float32, factors.
    noise: (N,) float32, standard deviation, the same for all.
    cutout, erase: (N, 4) int64, holes: first row, row after the last, first column, column after the last.
    partner: (N,) float64, by whose order within a batch its images are dealt out: see `partners`.
    mixup: (N,) float32, the partner's share of all pixels.
    cutmix: (N, 4) int64, the box that shows the partner.
    target: (N,) float32, the partner's share of the target.
"""

ERASED_AREA = (0.02, 0.33)
"""Of a hole of random erasing, as a share of the image's."""
ERASED_RATIO = (0.3, 3.3)
"""Its height to its width, uniform in the logarithm as in torchvision: high is as likely as wide."""
_TRIES = 10
"""For a hole that fits into the image; one that never does is left out, as in torchvision."""

_Numbers = NDArray[np.int64]


def draw(
    strengths: Strengths, *, num: int, height: int, width: int, generator: torch.Generator, seed: int
) -> dict[str, Tensor]:
    """The draws for `num` images, on the host.

    Two strengths of the same kinds give the same names, shapes and types. What one kind draws does not depend on
    whether another is on, but for `crop` and `flip`, which draw from `generator`; all others from streams of `seed`.
    """
    dice = _Dice(num=num, height=height, width=width, seed=seed)
    draws = dict(_moves(strengths, dice, generator))
    for name in ("brightness", "contrast"):
        if change := getattr(strengths, name):
            draws[name] = _float32(dice.stream(name).uniform(max(0.0, 1 - change), 1 + change, num))
    if strengths.noise:
        draws["noise"] = torch.full((num,), float(strengths.noise))
    if strengths.cutout:
        side = np.full(num, round(strengths.cutout * min(height, width)))
        draws["cutout"] = torch.from_numpy(dice.around(dice.stream("cutout"), side, side))
    if strengths.erase:
        draws["erase"] = torch.from_numpy(_erased(strengths.erase, dice))
    return draws | dict(_mixes(strengths, dice))


def partners(keys_N: Tensor, *, batch_size: int) -> Tensor:
    """(N,) int64: for each sample, which one of its batch it is mixed with; each serves once, maybe itself."""
    return keys_N.view(-1, batch_size).argsort(stable=True, dim=1).flatten()


class _Dice:
    """Random numbers for `num` images of a size: a stream for each purpose."""

    def __init__(self, *, num: int, height: int, width: int, seed: int) -> None:
        self.num, self.height, self.width = num, height, width
        self._seed = seed

    def stream(self, purpose: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(derive(self._seed, purpose)))

    def around(self, stream: np.random.Generator, rows_N: _Numbers, columns_N: _Numbers) -> _Numbers:
        """(N, 4) boxes of so many rows and columns about any pixel, cut off at the edges."""
        sides = []
        for length, side in ((rows_N, self.height), (columns_N, self.width)):
            first = np.floor(stream.random(self.num) * side).astype(np.int64) - length // 2
            sides += [np.clip(first, 0, side), np.clip(first + length, 0, side)]
        return np.stack(sides, axis=1)


def _moves(strengths: Strengths, dice: _Dice, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    if not strengths.on & {"crop", "flip", "rotate"}:
        return
    moves = torch.zeros(dice.num, 3, dtype=torch.int64)
    for column, side in enumerate((dice.height, dice.width)):
        if limit := largest_shift(side, strengths.crop):
            moves[:, column].random_(-limit, limit + 1, generator=generator)
    if strengths.flip == 0.5:  # drawn as ever, for trials that are resumed
        moves[:, 2].random_(0, 2, generator=generator)
    elif strengths.flip:
        moves[:, 2] = torch.rand(dice.num, generator=generator) < strengths.flip
    if strengths.rotate:
        angles = np.radians(dice.stream("rotate").uniform(-strengths.rotate, strengths.rotate, dice.num))
        turns = np.rint(np.stack([np.cos(angles), np.sin(angles)], axis=1) * ONE).astype(np.int64)
        moves = torch.cat([moves, torch.from_numpy(turns)], dim=1)
    yield "moves", moves


def _erased(probability: float, dice: _Dice) -> _Numbers:
    stream = dice.stream("erase")
    boxes = np.zeros((dice.num, 4), np.int64)
    waiting = np.flatnonzero(stream.random(dice.num) < probability)
    low, high = map(math.log, ERASED_RATIO)
    for _ in range(_TRIES):
        area = dice.height * dice.width * stream.uniform(*ERASED_AREA, len(waiting))
        ratio = np.exp(stream.uniform(low, high, len(waiting)))
        rows, columns = (np.rint(np.sqrt(part)).astype(np.int64) for part in (area * ratio, area / ratio))
        top, left = (
            np.floor(stream.random(len(waiting)) * np.maximum(side - length + 1, 1)).astype(np.int64)
            for side, length in ((dice.height, rows), (dice.width, columns))
        )
        fits = (rows < dice.height) & (columns < dice.width)
        boxes[waiting[fits]] = np.stack([top, top + rows, left, left + columns], axis=1)[fits]
        waiting = waiting[~fits]
    return boxes


def _mixes(strengths: Strengths, dice: _Dice) -> Iterator[tuple[str, Tensor]]:
    both = bool(strengths.mixup and strengths.cutmix)
    if not (strengths.mixup or strengths.cutmix):
        return
    blended = dice.stream("mixup or cutmix").random(dice.num) < 0.5 if both else np.full(dice.num, not strengths.cutmix)
    yield "partner", torch.from_numpy(dice.stream("partner").random(dice.num))
    share = np.zeros(dice.num)
    if strengths.mixup:
        share = np.where(blended, dice.stream("mixup").beta(strengths.mixup, strengths.mixup, dice.num), 0)
        yield "mixup", _float32(share)
    if strengths.cutmix:
        stream = dice.stream("cutmix")
        side = np.where(blended, 0, np.sqrt(stream.beta(strengths.cutmix, strengths.cutmix, dice.num)))
        rows, columns = (np.floor(length * side).astype(np.int64) for length in (dice.height, dice.width))
        boxes = dice.around(stream, rows, columns)
        top, bottom, left, right = boxes.T
        share = share + (bottom - top) * (right - left) / (dice.height * dice.width)
        yield "cutmix", torch.from_numpy(boxes)
    yield "target", _float32(share)


def _float32(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
