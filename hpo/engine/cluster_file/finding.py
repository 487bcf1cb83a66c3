"""What checking a cluster file gives: findings, and what the cluster costs an hour."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpo.errors import HpoError


class ClusterFileError(HpoError):
    """A cluster file cannot be read, or must not be started as it is."""

    exit_code = 2


@dataclass(frozen=True)
class Finding:
    """One thing about a cluster file: where it stands, what breaks which rule, and what to do.

    A finding that is not `serious` is worth knowing and refuses nothing.
    """

    where: str
    problem: str
    remedy: str = ""
    serious: bool = True

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}"
        return f"{text}\n  {self.remedy}" if self.remedy else text


@dataclass(frozen=True)
class Costs:
    """US dollars an hour, before taxes and traffic: while no trial runs, and with every machine the file allows."""

    idle: float
    most: float
    basis: str

    def __str__(self) -> str:
        return f"${self.idle:.2f} an hour while nothing runs, at most ${self.most:.2f} ({self.basis})"


@dataclass(frozen=True)
class Report:
    """All findings about one file. `costs` is None where the file rents nothing, or a price is not known."""

    kind: str
    findings: tuple[Finding, ...]
    costs: Costs | None = None

    @property
    def refused(self) -> bool:
        """Whether the cluster must not be started from this file."""
        return any(finding.serious for finding in self.findings)


def unknown_names(given: Any, known: Iterable[str], *, where: str) -> Iterator[Finding]:
    """A finding for each name that nobody would read, with the one that was probably meant, or all valid ones."""
    if not isinstance(given, Mapping):
        return
    names = sorted(known)
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            meant = f"did you mean {close[0]}?" if close else f"valid: {', '.join(names)}"
            yield Finding(f"{where}.{name}", "this name is read by nobody", meant)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one: what it should have been is another rule's finding."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []
