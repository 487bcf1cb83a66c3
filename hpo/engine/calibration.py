"""How many trials a GPU bears: measured once, with the first trials, while they train for the study.

One number of trials a GPU after the other is tried, twice as many each time. Trials that share a GPU are processes of
their own, and other shares mean other processes: hence each number costs a start, and the next one is tried only where
what it may gain repays that. Nothing here knows Ray, a file or a clock: times come in with what happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hpo.protocols import Step

LEAST_GAIN = 1.1
"""Twice as many trials have to train this many times as fast together, or no more are tried."""
LEAST_S = 2.0
"""Seconds of training that each place is measured for, at least; a longer step is measured whole."""
MOST = 8
"""Trials a GPU, unless the experiment begins with more."""
CONTEXT_MB = 500.0
"""Memory that each process on a GPU takes beside its trial's."""
USABLE = 0.9
"""Share of a GPU's memory that its trials may fill."""


@dataclass(frozen=True)
class Measured:
    """What one number of trials a GPU gave.

    Attributes:
        trials_per_gpu: The number.
        samples_per_s: Of all trials together; 0 where the task does not count its samples.
        epochs_per_s: Of all trials together.
        memory_mb: Most device memory of one trial in MiB, where it is known.
        memory_total_mb: Memory of the smallest GPU in MiB, where it is known.
        start_s: Seconds until each of its processes had trained a step: about what it costs to replace processes, since
            those before wait for each other's last step.
    """

    trials_per_gpu: int
    samples_per_s: float
    epochs_per_s: float
    memory_mb: float | None
    memory_total_mb: float | None
    start_s: float

    @property
    def rate(self) -> float:
        """What is compared: samples per second where they are counted, else epochs."""
        return self.samples_per_s or self.epochs_per_s


@dataclass(frozen=True)
class Choice:
    """What the run keeps.

    Attributes:
        trials_per_gpu: The number of trials a GPU.
        why: Why no more of them were tried.
        measured: All that was measured, in its order.
    """

    trials_per_gpu: int
    why: str
    measured: tuple[Measured, ...]

    def detail(self) -> dict[str, Any]:
        """JSON for the journal."""
        return asdict(self) | {"measured": [asdict(one) for one in self.measured]}

    def sentence(self) -> str:
        """One line for people: "4 trials a GPU: 36,600 samples/s against 21,600 with 1; 3.2 of 139 GiB each"."""
        by_number = {one.trials_per_gpu: one for one in self.measured}
        kept = by_number.get(self.trials_per_gpu)
        if kept is None:
            return f"{_trials(self.trials_per_gpu)} a GPU ({self.why})"
        others = [f"{_amount(one.rate)} with {number}" for number, one in by_number.items() if one is not kept]
        unit = "samples/s" if kept.samples_per_s else "epochs/s"
        against = f" against {', '.join(others)}" if others else ""
        memory = ""
        if kept.memory_mb and kept.memory_total_mb:
            memory = f"; {kept.memory_mb / 1024:.2g} of {kept.memory_total_mb / 1024:.0f} GiB each"
        return f"{_trials(self.trials_per_gpu)} a GPU: {_amount(kept.rate)} {unit}{against}{memory} ({self.why})"


@dataclass
class _Place:
    """One process, and what it trained since `since`, the end of the step in which all others had come to train."""

    since: float | None = None
    last: float = 0.0
    samples: int = 0
    steps: int = 0

    @property
    def measured_s(self) -> float:
        return 0.0 if self.since is None else self.last - self.since


@dataclass
class Window:
    """The time in which all places train at once, each past its first step (start-up, capture); and what they trained.

    Time between steps and trials counts, since more trials at once make up for it.

    Args:
        places: Processes that are to train at once.
    """

    places: int
    warm_at: float | None = None
    _by_key: dict[Hashable, _Place] = field(default_factory=dict)

    def stepped(self, key: Hashable, *, at: float, samples: int) -> None:
        """A step of the process `key` ended at the time `at` in seconds."""
        place = self._by_key.get(key)
        if place is None:
            place = self._by_key[key] = _Place()
            if self.warm_at is None and len(self._by_key) == self.places:
                self.warm_at = place.since = place.last = at
            return
        if place.since is not None:
            place.last, place.samples, place.steps = at, place.samples + samples, place.steps + 1
        elif self.warm_at is not None:
            place.since = place.last = at

    @property
    def whole(self) -> bool:
        """Whether every place was measured for long enough."""
        return len(self._long_enough) >= self.places

    @property
    def samples_per_s(self) -> float:
        """Of all places together; the window is whole."""
        return self._total(lambda place: place.samples)

    @property
    def epochs_per_s(self) -> float:
        """Of all places together; the window is whole."""
        return self._total(lambda place: place.steps)

    @property
    def _long_enough(self) -> list[_Place]:
        return [place for place in self._by_key.values() if place.measured_s >= LEAST_S]

    def _total(self, amount: Callable[[_Place], int]) -> float:
        # A process that was replaced in between is a place too many: hence the mean, times their number.
        rates = [amount(place) / place.measured_s for place in self._long_enough]
        return self.places * sum(rates) / len(rates)


class Calibration:
    """Tries one number of trials a GPU after the other, until it has chosen.

    It is told what happens by `stepped` and `failed`. Once it is `moving`, the trials are to be put off, and `move` is
    called when none trains any more.

    Args:
        places: Trials at a time for each number of trials a GPU that the cluster's cores and the trials that are left
            allow, rising; the first is where the run begins.
        epochs_left: Epochs that the study is likely to take from now on.
        at: Time in seconds, when the first processes are about to start.
    """

    def __init__(self, places: Mapping[int, int], *, epochs_left: Callable[[], float], at: float) -> None:
        self._places, self._epochs_left = dict(places), epochs_left
        self.trials_per_gpu = self.next_number = min(places)
        self.choice: Choice | None = None
        self._measured: list[Measured] = []
        self._memory_mb = 0.0
        self._memory_total_mb = math.inf
        self._began, self._window = at, Window(self.slots)

    @property
    def slots(self) -> int:
        """Trials at a time now."""
        return self._places[self.trials_per_gpu]

    @property
    def moving(self) -> bool:
        """Whether the processes are to be replaced by those of another number."""
        return self.next_number != self.trials_per_gpu

    @property
    def settled(self) -> bool:
        """Whether the choice is made, and the processes are those of it."""
        return self.choice is not None and not self.moving

    def move(self, *, at: float) -> None:
        """The processes of the next number are about to start."""
        self.trials_per_gpu, self._began = self.next_number, at
        self._window = Window(self.slots)

    def stepped(self, key: Hashable, step: Step, *, at: float) -> None:
        """A process trained a step that ended at `at`."""
        self._memory_mb = max(self._memory_mb, step.device_memory_mb or 0.0)
        self._memory_total_mb = min(self._memory_total_mb, step.device_memory_total_mb or math.inf)
        if self.moving or self.choice is not None:
            return
        self._window.stepped(key, at=at, samples=step.num_samples)
        if self._window.whole:
            self._measured.append(self._result())
            self._decide()

    def failed(self, *, out_of_memory: bool) -> bool:
        """Whether the failure is that of too many trials on a GPU, and not the trial's own.

        Any other failure starts the measurement over: a process may have ended.
        """
        crowded = out_of_memory and not self.settled and self.trials_per_gpu > min(self._places)
        if crowded and self.choice is None:
            fewer = [one for one in self._measured if one.trials_per_gpu < self.trials_per_gpu]
            self._choose(_best(fewer), f"{self.trials_per_gpu} do not fit into its memory")
        elif not self.moving:
            self._window = Window(self.slots)
        return crowded

    def _result(self) -> Measured:
        window = self._window
        assert window.warm_at is not None  # noqa: S101 - it is whole
        return Measured(
            self.trials_per_gpu,
            window.samples_per_s,
            window.epochs_per_s,
            self._memory_mb or None,
            self._memory_total_mb if self._memory_total_mb < math.inf else None,
            window.warm_at - self._began,
        )

    def _decide(self) -> None:
        """Try the next number, or keep the best: where going back to it does not repay, the present one."""
        last, left = self._measured[-1], self._epochs_left()
        why = why_no_more(self._measured, tuple(self._places), epochs_left=left)
        if not why:
            self.next_number = min(number for number in self._places if number > last.trials_per_gpu)
            return
        best = _best(self._measured)
        self._choose(best if repays(last, gain=best.rate / last.rate, starts=1, epochs_left=left) else last, why)

    def _choose(self, kept: Measured, why: str) -> None:
        self.next_number = kept.trials_per_gpu
        self.choice = Choice(kept.trials_per_gpu, why, tuple(self._measured))


def why_no_more(measured: Sequence[Measured], numbers: Sequence[int], *, epochs_left: float) -> str:
    """Why the number after the last one measured is not worth trying; empty where it is."""
    last = measured[-1]
    following = [number for number in numbers if number > last.trials_per_gpu]
    if len(measured) > 1 and last.rate < LEAST_GAIN * measured[-2].rate:
        share = last.rate / measured[-2].rate
        return f"{last.trials_per_gpu} train {share:.0%} of what {measured[-2].trials_per_gpu} do"
    if not following:
        return "cores or trials for more are not there"
    number = min(following)
    if last.memory_mb and last.memory_total_mb:
        needed = number * (last.memory_mb + CONTEXT_MB)
        if needed > USABLE * last.memory_total_mb:
            return f"{number} would need {needed / 1024:.1f} of its {last.memory_total_mb / 1024:.1f} GiB"
    if not repays(last, gain=LEAST_GAIN, starts=2, epochs_left=epochs_left):
        return f"about {epochs_left / last.epochs_per_s:.0f} s are left, too few to repay the start of {number}"
    return ""


def repays(now: Measured, *, gain: float, starts: int, epochs_left: float) -> bool:
    """Whether training `gain` times as fast saves more than starting all processes anew so often takes."""
    left_s = epochs_left / now.epochs_per_s
    return left_s * (1 - 1 / gain) > starts * now.start_s


def _best(measured: Sequence[Measured]) -> Measured:
    return max(measured, key=lambda one: one.rate)


def _amount(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _trials(number: int) -> str:
    return f"{number} trial{'s' if number != 1 else ''}"
