"""What a value of the hyper-parameter `start_from` names: whose weights a trial begins with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

START_FROM = "start_from"
"""Name of the hyper-parameter."""

_NAME = r"\w[\w.+-]*"
_BEST = re.compile(rf"(?P<experiment>{_NAME})(/(?P<run>{_NAME}))?")


def Best(experiment: str, run: str | None = None) -> str:  # noqa: N802 - it stands where a value does: Best("cifar")
    """The value of `start_from` that names the best trial of an experiment in the same store.

    Args:
        experiment: Its name, that of its file without `.py`; of its newest run that has weights to begin with.
        run: The id of one of its runs.
    """
    return f"best:{experiment}" if run is None else f"best:{experiment}/{run}"


@dataclass(frozen=True)
class BestOf:
    """The best trial of an experiment: of the run, or of its newest one."""

    experiment: str
    run: str | None


@dataclass(frozen=True)
class TrialOf:
    """Another trial of the same run."""

    trial: int


@dataclass(frozen=True)
class Offered:
    """Weights that torchvision offers for the model, by torchvision's name."""

    name: str


@dataclass(frozen=True)
class WeightsFile:
    """A file, as a path or a URL."""

    target: str


def asked(values: Mapping[str, Any]) -> Any:
    """What a configuration, or what stands for one, has under the name of the hyper-parameter; None: nothing."""
    return values.get(START_FROM, values.get(f"start.{START_FROM}"))


def parse(value: object) -> BestOf | TrialOf | Offered | WeightsFile | None:
    """What the value names; None where it names nothing.

    "best:EXPERIMENT", "best:EXPERIMENT/RUN", "trial:N" and "torchvision:NAME" are what they say, and any other text is
    a file.
    """
    if not isinstance(value, str) or not value:
        return None
    kind, colon, name = value.partition(":")
    if not colon or kind not in ("best", "trial", "torchvision"):
        return WeightsFile(value)
    if kind == "best":
        found = _BEST.fullmatch(name)
        return BestOf(found["experiment"], found["run"]) if found else None
    if kind == "trial":
        return TrialOf(int(name)) if name.isascii() and name.isdigit() else None
    return Offered(name) if name else None
