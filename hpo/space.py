"""What may be tried: domains of hyper-parameters, and the space that they span.

    space={"lr": loguniform(1e-4, 1e-1), "optimizer": choice("adam", "sgd"),
           "momentum": uniform(0.5, 0.99).when(optimizer="sgd")}

A domain draws from a `random.Random` that belongs to one trial and one name, so adding a hyper-parameter to a
space leaves what is drawn for the others as it was.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import product
from typing import Any

from hpo.errors import ExperimentError
from hpo.seeds import stream
from hpo.trial import Config, Value


@dataclass(frozen=True)
class Domain(ABC):
    """The values of one hyper-parameter, and the condition under which it exists."""

    condition: tuple[tuple[str, tuple[Value, ...]], ...] = field(default=(), kw_only=True)

    @abstractmethod
    def draw(self, generator: random.Random) -> Value:
        """A value of the domain; uses `generator` and nothing else."""

    @abstractmethod
    def examples(self) -> tuple[Value, ...]:
        """The values to check before a run: all of a finite choice, both ends of a range."""

    @abstractmethod
    def problem(self) -> tuple[str, str] | None:
        """The rule that this domain breaks and the remedy, or None."""

    def describe(self) -> dict[str, Any]:
        """JSON of the domain, for the digest and for people."""
        fields = {k: v for k, v in vars(self).items() if k != "condition"}
        when = {"when": {name: list(values) for name, values in self.condition}} if self.condition else {}
        return {"domain": type(self).__name__.lower(), **fields, **when}

    def when(self, **parents: Value | list[Value]) -> Domain:
        """The same domain, existing only where each named hyper-parameter has the given value, or one of a list."""
        condition = tuple(
            (name, tuple(values) if isinstance(values, list) else (values,)) for name, values in parents.items()
        )
        return replace(self, condition=self.condition + condition)

    def active(self, config: Config) -> bool:
        """Whether the hyper-parameter exists beside the values of `config`."""
        return all(name in config and config[name] in values for name, values in self.condition)


_HUGE = 1e300
"""Numbers from here on count as infinite: the width of a range has to be finite too."""


@dataclass(frozen=True)
class _Range(Domain):
    low: float
    high: float

    def examples(self) -> tuple[Value, ...]:
        return (self.low, self.high)

    def problem(self) -> tuple[str, str] | None:
        for name, value in (("low", self.low), ("high", self.high)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _HUGE:
                return f"{name}={value!r} is not a finite number", "give two numbers, low below high"
        if not self.low < self.high:
            return (
                f"low={self.low!r} is not below high={self.high!r}",
                "swap the two, or fix the value in `fixed`",
            )
        return None


class _Positive(_Range):
    """A range on a logarithmic scale."""

    def problem(self) -> tuple[str, str] | None:
        found = super().problem()
        if found is None and self.low <= 0:
            return f"low={self.low!r} is not above 0", "a logarithmic range starts above 0, e.g. at 1e-5"
        return found


class _Whole(_Range):
    """A range of integers, both ends included."""

    def problem(self) -> tuple[str, str] | None:
        for name, value in (("low", self.low), ("high", self.high)):
            if isinstance(value, bool) or not isinstance(value, int):
                return f"{name}={value!r} is not an integer", "give integers, or use uniform / loguniform"
        return super().problem()


@dataclass(frozen=True)
class Uniform(_Range):
    """Real numbers in [low, high], each equally likely."""

    def draw(self, generator: random.Random) -> float:
        return generator.uniform(self.low, self.high)


@dataclass(frozen=True)
class LogUniform(_Positive):
    """Real numbers in [low, high], each order of magnitude equally likely."""

    def draw(self, generator: random.Random) -> float:
        value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class RandInt(_Whole):
    """Integers from low to high, both included."""

    def draw(self, generator: random.Random) -> int:
        return generator.randint(int(self.low), int(self.high))


@dataclass(frozen=True)
class LogRandInt(_Whole, _Positive):
    """Integers from low to high, both included, each order of magnitude equally likely."""

    def draw(self, generator: random.Random) -> int:
        # Half a unit beyond both ends, so that the ends get the share that the integers between them get.
        drawn = math.exp(generator.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
        return int(min(max(round(drawn), self.low), self.high))


_MOST_STEPS = 1e12
"""Steps of a range at most; floats could not tell many more apart."""


@dataclass(frozen=True)
class QUniform(_Range):
    """Multiples of `q`, counted from low, up to high."""

    q: float

    def draw(self, generator: random.Random) -> float:
        return self._nth(generator.randint(0, self._steps))

    def examples(self) -> tuple[Value, ...]:
        return (self._nth(0), self._nth(self._steps))

    def problem(self) -> tuple[str, str] | None:
        if found := super().problem():
            return found
        if isinstance(self.q, bool) or not isinstance(self.q, (int, float)) or not self.q > 0:
            return f"q={self.q!r} is not a number above 0", "q is the distance between two values"
        if self.q > self.high - self.low:
            return (
                f"q={self.q!r} is larger than the range {self.low!r} to {self.high!r}",
                "make q smaller: it is the distance between two values",
            )
        if (self.high - self.low) / self.q > _MOST_STEPS:
            return (
                f"q={self.q!r} cuts the range {self.low!r} to {self.high!r} into more than {_MOST_STEPS:g} steps",
                "make q larger, or use uniform",
            )
        return None

    @property
    def _steps(self) -> int:
        return math.floor((self.high - self.low) / self.q + 1e-9)

    def _nth(self, number: int) -> float:
        if all(isinstance(part, int) for part in (self.low, self.q)):
            return self.low + number * self.q
        # In decimals, as they were written: 0.1 + 2 * 0.1 is 0.3 to a reader.
        return min(float(Decimal(str(self.low)) + number * Decimal(str(self.q))), float(self.high))


@dataclass(frozen=True)
class Choice(Domain):
    """One of the given values, each equally likely."""

    values: tuple[Value, ...]

    def draw(self, generator: random.Random) -> Value:
        return self.values[generator.randrange(len(self.values))]

    def examples(self) -> tuple[Value, ...]:
        return self.values

    def problem(self) -> tuple[str, str] | None:
        if not self.values:
            return "no values are given", "name at least one value: choice('adam', 'sgd')"
        for value in self.values:
            if not is_value(value):
                return (
                    f"{value!r} is a {type(value).__name__}, which the store cannot hold",
                    "use numbers, strings, booleans, None, or tuples of these; name an object, look it up in the task",
                )
        keys = [(type(value).__name__, value) for value in self.values]
        twice = next((value for (_, value), key in zip(keys, keys, strict=True) if keys.count(key) > 1), None)
        return None if twice is None else (f"{twice!r} is named twice", "name each value once")


@dataclass(frozen=True)
class Grid(Choice):
    """All of the given values in turn, crossed with every other grid of the space."""


def is_value(value: object) -> bool:
    """Whether the store can hold `value` in a configuration: a JSON scalar, or a tuple of such."""
    if isinstance(value, tuple):
        return all(is_value(part) for part in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int, str))


def uniform(low: float, high: float) -> Uniform:
    """Real numbers in [low, high]."""
    return Uniform(low, high)


def loguniform(low: float, high: float) -> LogUniform:
    """Real numbers in [low, high], uniform in the logarithm; low above 0."""
    return LogUniform(low, high)


def randint(low: int, high: int) -> RandInt:
    """Integers from low to high, both included."""
    return RandInt(low, high)


def lograndint(low: int, high: int) -> LogRandInt:
    """Integers from low to high, both included, uniform in the logarithm; low above 0."""
    return LogRandInt(low, high)


def quniform(low: float, high: float, q: float) -> QUniform:
    """The values low, low + q, low + 2q, … up to high."""
    return QUniform(low, high, q)


def choice(*values: Value | list[Value]) -> Choice:
    """One of the values; a single list is read as the values."""
    return Choice(_values(values))


def grid(*values: Value | list[Value]) -> Grid:
    """All of the values in turn; a single list is read as the values."""
    return Grid(_values(values))


def _values(values: tuple[Any, ...]) -> tuple[Value, ...]:
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], list) else values


@dataclass(frozen=True)
class Space:
    """The named domains of an experiment, parents before the parameters that depend on them."""

    domains: Mapping[str, Domain]

    def __post_init__(self) -> None:
        for name, domain in self.domains.items():
            if not isinstance(domain, Domain):
                raise ExperimentError(
                    f"{domain!r} is not a domain",
                    where=f"space.{name}",
                    remedy="use uniform, loguniform, randint, lograndint, quniform, choice, grid; or move it to fixed",
                )
            if found := domain.problem():
                raise ExperimentError(found[0], where=f"space.{name}", remedy=found[1])
        object.__setattr__(self, "domains", dict(self._in_order()))

    def _in_order(self) -> Iterator[tuple[str, Domain]]:
        done: set[str] = set()
        waiting = dict(self.domains)
        while waiting:
            ready = [n for n, d in waiting.items() if all(p in done or p not in waiting for p, _ in d.condition)]
            if not ready:
                raise ExperimentError(
                    f"the conditions of {', '.join(sorted(waiting))} depend on each other in a circle",
                    where="space",
                    remedy="let at least one of them exist without a condition",
                )
            for name in ready:
                done.add(name)
                yield name, waiting.pop(name)

    def check_conditions(self, fixed: Config) -> None:
        """Raise ExperimentError where a condition names a parameter or a value that cannot be."""
        for name, domain in self.domains.items():
            for parent, wanted in domain.condition:
                known = self.domains.get(parent)
                if known is None and parent not in fixed:
                    raise ExperimentError(
                        f"its condition names {parent!r}, which is neither in space nor in fixed",
                        where=f"space.{name}",
                        remedy=f"valid names: {', '.join(sorted({*self.domains, *fixed} - {name}))}",
                    )
                possible = known.values if isinstance(known, Choice) else None
                possible = (fixed[parent],) if known is None else possible
                if not wanted:
                    raise ExperimentError(
                        f"its condition names no value of {parent}, so it would never exist",
                        where=f"space.{name}",
                        remedy=f"name a value: .when({parent}=…)",
                    )
                for value in wanted:
                    if possible is not None and value not in possible:
                        raise ExperimentError(
                            f"its condition waits for {parent}={value!r}, which never happens",
                            where=f"space.{name}",
                            remedy=f"{parent} is one of: {', '.join(map(repr, possible))}",
                        )

    def draw(self, fixed: Config, *, seed: int, trial: int, cell: Config | None = None) -> dict[str, Value]:
        """The configuration of trial number `trial`: `fixed`, `cell` (grid values), and a draw for the rest."""
        config: dict[str, Value] = dict(fixed)
        for name, domain in self.domains.items():
            if not domain.active(config):
                continue
            if cell is not None and name in cell:
                config[name] = cell[name]
            else:
                config[name] = domain.draw(stream(seed, "trial", trial, name))
        return config

    @property
    def grids(self) -> dict[str, Grid]:
        """The parameters that are to be crossed."""
        return {name: domain for name, domain in self.domains.items() if isinstance(domain, Grid)}

    def cells(self, fixed: Config) -> list[dict[str, Value]]:
        """All crossings of the grids, the last-named parameter turning fastest; no two are the same configuration."""
        grids = self.grids
        cells: dict[str, dict[str, Value]] = {}
        for values in product(*(domain.values for domain in grids.values())):
            crossed = dict(zip(grids, values, strict=True))
            cell: dict[str, Value] = {}
            known, absent = dict(fixed), set[str]()
            for name, domain in self.domains.items():
                if any(p in absent or (p in known and known[p] not in wanted) for p, wanted in domain.condition):
                    absent.add(name)
                elif name in crossed:
                    cell[name] = known[name] = crossed[name]
            cells.setdefault(repr(sorted(cell.items())), cell)
        return list(cells.values())

    def describe(self) -> dict[str, Any]:
        """JSON of the space."""
        return {name: domain.describe() for name, domain in self.domains.items()}
