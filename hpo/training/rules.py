"""What the value of a hyper-parameter must be, in words that can be shown to a person."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpo.errors import ExperimentError


@dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        says: Completes "… is not", e.g. "a number above 0".
        example: A value that keeps the rule.
        holds: Whether a value keeps it; any value may be given.
    """

    says: str
    example: object
    holds: Callable[[Any], bool]

    def check(self, value: object, *, where: str) -> None:
        """Raise ExperimentError at `where` for a value that breaks the rule."""
        if not self.holds(value):
            raise ExperimentError(f"{value!r} is not {self.says}", where=where, remedy=f"e.g. {where}={self.example!r}")

    def or_none(self) -> Rule:
        """The rule that allows None as well."""
        return Rule(f"{self.says}, or None", self.example, lambda value: value is None or self.holds(value))


def number(
    example: float,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Rule:
    """A finite number within the bounds; a boolean is none."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (above is None or value > above)
            and (least is None or value >= least)
            and (below is None or value < below)
            and (most is None or value <= most)
        )

    bounds = [("above", above), ("of at least", least), ("below", below), ("of at most", most)]
    words = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    return Rule(f"a number {words}".rstrip(), example, holds)


def integer(example: int, *, least: int | None = None, odd: bool = False) -> Rule:
    """An integer within the bounds; a boolean is none."""

    def holds(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and (least is None or value >= least) and (not odd or value % 2 == 1)

    return Rule(("an odd integer" if odd else "an integer") + _at_least(least), example, holds)


def one_of(*values: object) -> Rule:
    """One of the values."""
    return Rule(f"one of {', '.join(map(repr, values))}", values[0], lambda value: value in values)


def flag() -> Rule:
    """True or False."""
    return Rule("True or False", True, lambda value: isinstance(value, bool))


def text() -> Rule:
    """A string."""
    return Rule("a string", "text", lambda value: isinstance(value, str))


def several(each: Rule, *, example: tuple[object, ...], size: int | None = None, least: int = 0) -> Rule:
    """A tuple (or list) whose parts keep the rule `each`; of `size` parts, or of at least `least`."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, (tuple, list))
            and (size is None or len(value) == size)
            and len(value) >= least
            and all(each.holds(part) for part in value)
        )

    of = f" of {size} parts" if size is not None else f" of at least {least} parts" if least else ""
    return Rule(f"a tuple{of}, each {each.says}", example, holds)


def _at_least(least: int | None) -> str:
    return "" if least is None else f" of at least {least}"


BY_ANNOTATION = {
    "bool": flag(),
    "int": integer(1),
    "float": number(0.5),
    "str": text(),
}
"""Rules for parameters that nothing else is known of, by the name of their annotation."""
