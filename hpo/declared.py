"""What an experiment file names: its settings, their rules, and what of them the outcome depends on."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hpo.errors import ExperimentError


class Declared(ABC):  # noqa: B024 - it declares; what to begin is said by its three kinds
    """Something that an experiment file names, with its settings as dataclass fields."""

    def check(self) -> None:
        """Raise ExperimentError where a setting breaks a rule; `where` is the setting's name."""
        return

    def describe(self) -> dict[str, Any]:
        """JSON of the class and all of its settings: equal descriptions mean equal behaviour."""
        return {"class": type(self).__name__.lower(), **_settings(self)}


def described(value: object) -> Any:
    """JSON of a setting: declarations describe themselves, classes and functions are named in full."""
    if isinstance(value, Declared):
        return value.describe()
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [described(part) for part in value]
    if settings := _settings(value):
        return {"class": type(value).__name__.lower(), **settings}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    owner = value if hasattr(value, "__qualname__") else type(value)
    return str(value) if isinstance(value, Path) else f"{owner.__module__}.{owner.__qualname__}"


def _settings(value: Any) -> dict[str, Any]:
    if not is_dataclass(value) or isinstance(value, type):
        return {}
    return {f.name: described(getattr(value, f.name)) for f in fields(value)}


def positive_int(owner: Mapping[str, Any], *names: str) -> None:
    """Raise ExperimentError for the first of the named values that is not an integer of at least 1."""
    for name in names:
        value = owner[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ExperimentError(
                f"{value!r} is not an integer of at least 1", where=name, remedy="give a whole number, e.g. 9"
            )
