"""What a trial's reports look like, by name: for people; it decides nothing.

A diagnosis follows from the reports of one trial alone, in their order. The thresholds are for what nobody would call
well: `docs/results.md` tells how many of 32,000 recorded curves of random configurations got which name.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

DIVERGED = 4.0
"""Times the best loss so far, at which a search for a learning rate gives up (fastai's `LRFinder`)."""
OVERFITTED = 0.1
"""Share by which the validation loss is above its best. Prechelt ("Early stopping – but when?", 1998) stops at 0.05 at
the latest, where he only wants to stop: on noisy losses that is soon reached."""
UNDERFITTED = 0.05
"""Share of its first value by which neither loss has ever fallen, nor the training loss now risen. An epoch's mean
holds what the epoch itself taught, so that even a quick learner's first one is far above its later ones."""
PLATEAU = 0.01
"""Share of all that the score has moved so far, by which it gets better on a plateau at most."""
OSCILLATION, OSCILLATION_OF_LEVEL = 0.2, 0.02
"""Mean step up or down: share of all that the loss has moved so far, and of its level. Noise around a fixed level moves
by 0.36 of its own range, so it is named where it is larger than what has been learnt; on top of a fall that is more
than thrice as large it is not."""
TURNS = 6
"""Of eight; noise turns 5.3 times, a loss that jumps to and fro each time."""
EXPLODED = 10.0
"""Times the mean norm so far; Pascanu, Mikolov & Bengio (2013) clip at half to ten times of it."""
VANISHED = 1e-5
"""Share of the whole gradient that a layer gets. Through a sigmoid comes a quarter at most (Glorot & Bengio 2010): the
first of ten such layers got 1e-8 of it, on digits. The least of any layer of a ResNet-18, a transformer and plain
networks that learnt these was 5e-3."""

RUN = 3
"""Reports in a row in which something is seen before it is named: one may be chance."""
WINDOW = 10
"""Reports that a plateau or an oscillation lasts: the patience that PyTorch's `ReduceLROnPlateau` has by default."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A name for how a trial goes.

    Attributes:
        name: "diverges", "oscillates", "plateaus", "overfits", "underfits", "vanishing_gradients" or
            "exploding_gradients".
        numbers: Behind it, by name.
        sentence: For people.
    """

    name: str
    numbers: Mapping[str, float]
    sentence: str

    def of(self, trial: int) -> str:
        """One line about the trial of that number."""
        does = f"has {self.name.replace('_', ' ')}" if self.name.endswith("gradients") else self.name
        return f"trial {trial} {does}: {self.sentence}"

    def detail(self) -> dict[str, Any]:
        """JSON."""
        return {"name": self.name, "numbers": dict(self.numbers), "sentence": self.sentence}


@dataclass(slots=True)
class Series:
    """One number over the reports; where it is not finite, it is left out.

    Attributes:
        num: Of values.
        first: Value.
        low: Least value.
        high: Largest value.
        total: Sum.
    """

    num: int = 0
    first: float = math.nan
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0

    def see(self, value: float) -> None:
        """Take the next one in."""
        if math.isfinite(value):
            self.first = value if self.num == 0 else self.first
            self.num, self.total = self.num + 1, self.total + value
            self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def extent(self) -> float:
        """How far apart its values are."""
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Point:
    """What counts of one report; NaN where it tells nothing of it.

    Attributes:
        step: Of the trial.
        score: Larger is better.
        loss: What training brings down: the training loss, or where none is reported the score turned round.
        train_loss: Of the training samples.
        val_loss: Of the validation samples.
        best_score: Up to this report.
        grad_norm: Of the whole model.
        least_layer: The layer with the shortest gradient; nothing where no layer is told.
        least_norm: Of that gradient.
    """

    step: int
    score: float
    loss: float
    train_loss: float
    val_loss: float
    best_score: float
    grad_norm: float
    least_layer: str
    least_norm: float


@dataclass(slots=True)
class Course:
    """The reports of a trial so far, as far as a diagnosis depends on them: it costs the same at each report."""

    scores: Series = field(default_factory=Series)
    train: Series = field(default_factory=Series)
    val: Series = field(default_factory=Series)
    norms: Series = field(default_factory=Series)
    losses: Series = field(default_factory=Series)
    best_validated: Point | None = None
    recent: deque[Point] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))
    named: list[Diagnosis] = field(default_factory=list)

    def report(self, step: int, score: float, metrics: Mapping[str, float]) -> list[Diagnosis]:
        """What holds of the trial since this report for the first time."""
        train_loss, val_loss, grad_norm = (
            float(metrics.get(name, math.nan)) for name in ("train_loss", "val_loss", "grad_norm")
        )
        layer, norm = _least(metrics)
        self.scores.see(score)
        point = Point(
            step=step,
            score=score,
            loss=train_loss if "train_loss" in metrics else -score,
            train_loss=train_loss,
            val_loss=val_loss,
            best_score=self.scores.high,
            grad_norm=grad_norm,
            least_layer=layer,
            least_norm=norm,
        )
        found = [_not_finite(point, metrics), _exploding(self, point)]  # which holds it against those before
        self._take_in(point)
        last = list(self.recent)
        found += [rule(self, last) for rule in _RULES]
        known, new = {one.name for one in self.named}, dict[str, Diagnosis]()
        for one in found:
            if one is not None and one.name not in known:
                new.setdefault(one.name, one)
        self.named += new.values()
        return list(new.values())

    def begin_anew(self) -> None:
        """The trial goes on from other weights: what was reported tells nothing of them; what was named stays so."""
        self.scores, self.train, self.val, self.norms, self.losses = (Series() for _ in range(5))
        self.best_validated = None
        self.recent.clear()

    def _take_in(self, point: Point) -> None:
        self.train.see(point.train_loss)
        self.val.see(point.val_loss)
        self.norms.see(point.grad_norm)
        self.losses.see(point.loss)
        if self.val.low == point.val_loss and (
            self.best_validated is None or point.val_loss < self.best_validated.val_loss
        ):
            self.best_validated = point
        self.recent.append(point)


def _least(metrics: Mapping[str, float]) -> tuple[str, float]:
    """The layer with the shortest gradient, and its length."""
    norms = [(value, name) for name, value in metrics.items() if name.startswith("grad_norm.") and math.isfinite(value)]
    value, name = min(norms, default=(math.nan, ""))
    return name.removeprefix("grad_norm."), value


def _not_finite(point: Point, metrics: Mapping[str, float]) -> Diagnosis | None:
    for name, value in (("train_loss", point.train_loss), ("val_loss", point.val_loss), ("score", point.score)):
        if not math.isfinite(value) and (name == "score" or name in metrics):
            return Diagnosis("diverges", {name: value}, f"{name} is {value} at step {point.step}")
    return None


def _in_a_row(last: Sequence[Point], seen: Callable[[Point], bool]) -> bool:
    """Whether it is seen in each of so many reports that it is no chance."""
    run = last[-RUN:]
    return len(run) == RUN and all(map(seen, run))


def _diverges(course: Course, last: Sequence[Point]) -> Diagnosis | None:
    first, best, now = course.train.first, course.train.low, last[-1].train_loss
    limit = max(first, best + (DIVERGED - 1) * abs(best))
    if not _in_a_row(last, lambda point: point.train_loss > limit):
        return None
    sentence = f"train_loss is {now:.4g}, after {first:.4g} at first and {best:.4g} at its best"
    return Diagnosis("diverges", {"train_loss": now, "best": best, "first": first}, sentence)


def _oscillates(course: Course, last: Sequence[Point]) -> Diagnosis | None:
    window = [point.loss for point in last[-WINDOW:]]
    if len(window) < WINDOW or not all(map(math.isfinite, window)):
        return None
    steps = [after - before for before, after in pairwise(window)]
    turns = sum(one * other < 0 for one, other in pairwise(steps))
    swing, level = sum(map(abs, steps)) / len(steps), abs(sum(window)) / len(window)
    extent = course.losses.extent
    if turns < TURNS or swing < max(OSCILLATION * extent, OSCILLATION_OF_LEVEL * level):
        return None
    what = "train_loss" if course.train.num else "the score"
    sentence = f"{what} turned {turns} times in {WINDOW} steps, by {swing:.4g} a step; "
    between = f"it is between {min(window):.4g} and {max(window):.4g}"
    return Diagnosis("oscillates", {"turns": turns, "swing": swing, "extent": extent}, sentence + between)


def _plateaus(course: Course, last: Sequence[Point]) -> Diagnosis | None:
    scores = [point.score for point in last]
    if len(scores) <= WINDOW or not all(map(math.isfinite, scores)):
        return None
    extent, best = course.scores.extent, course.scores.high
    gain = best - last[0].best_score
    if gain > PLATEAU * extent or best - min(scores[1:]) > 5 * PLATEAU * extent:
        return None
    sentence = f"the score got better by {gain:.2g} in {WINDOW} steps, and has moved by {extent:.4g} in all; "
    return Diagnosis(
        "plateaus", {"gain": gain, "extent": extent, "best_score": best}, f"{sentence}its best is {best:.4g}"
    )


def _overfits(course: Course, last: Sequence[Point]) -> Diagnosis | None:
    if (best := course.best_validated) is None:
        return None
    lowest, learnt, now = best.val_loss, best.train_loss, last[-1]
    limit = lowest + OVERFITTED * abs(lowest)
    if not _in_a_row(last, lambda point: point.val_loss > limit and point.train_loss < learnt):
        return None
    return Diagnosis(
        "overfits",
        {
            "val_loss": now.val_loss,
            "best_val_loss": lowest,
            "best_step": best.step,
            "train_loss": now.train_loss,
            "train_loss_then": learnt,
        },
        f"val_loss rose from {lowest:.4g} at step {best.step} to {now.val_loss:.4g}, while train_loss fell "
        f"from {learnt:.4g} to {now.train_loss:.4g}",
    )


def _underfits(course: Course, last: Sequence[Point]) -> Diagnosis | None:
    train, val = course.train, course.val
    if train.num < WINDOW or val.num < WINDOW:
        return None
    fell = any(series.first - series.low >= UNDERFITTED * abs(series.first) for series in (train, val))
    if fell or not _in_a_row(last, lambda point: point.train_loss - train.first < UNDERFITTED * abs(train.first)):
        return None
    return Diagnosis(
        "underfits",
        {"train_loss": train.low, "first_train_loss": train.first, "val_loss": val.low, "first_val_loss": val.first},
        f"in {train.num} steps train_loss came from {train.first:.4g} to {train.low:.4g} at its best, "
        f"val_loss from {val.first:.4g} to {val.low:.4g}",
    )


def _vanishing(_course: Course, last: Sequence[Point]) -> Diagnosis | None:
    if not _in_a_row(last, lambda point: point.least_norm <= VANISHED * point.grad_norm):
        return None
    now = last[-1]
    return Diagnosis(
        "vanishing_gradients",
        {"grad_norm": now.grad_norm, f"grad_norm.{now.least_layer}": now.least_norm},
        f"the gradient of {now.least_layer} has the norm {now.least_norm:.2g}, the model's {now.grad_norm:.4g}",
    )


def _exploding(course: Course, point: Point) -> Diagnosis | None:
    norms, now = course.norms, point.grad_norm
    if norms.num < RUN or not point.loss >= course.losses.low:
        return None
    mean = norms.total / norms.num
    if not now > EXPLODED * mean:  # NaN is not
        return None
    sentence = f"the gradient's norm is {now:.4g}, after {mean:.4g} in the mean of {norms.num} steps"
    return Diagnosis("exploding_gradients", {"grad_norm": now, "mean": mean}, sentence)


_RULES = (_diverges, _oscillates, _plateaus, _overfits, _underfits, _vanishing)
