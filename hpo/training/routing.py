"""Which part of a trial takes which hyper-parameter: the one whose signature names it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hpo.errors import ExperimentError
from hpo.training.rules import BY_ANNOTATION, Rule
from hpo.trial import Config


@dataclass(frozen=True)
class Part:
    """Something that takes hyper-parameters.

    Attributes:
        name: Qualifies its hyper-parameters: `model.dropout`.
        shown: What people know it by: the model's class, the optimizer's name.
        takes: Its hyper-parameters, and what they must be where that is known.
        given: Names in its signature that no hyper-parameter may have, since something else gives them.
        required: Hyper-parameters without a default.
        open: It takes any other name too (`**settings`), where that is qualified.
    """

    name: str
    shown: str
    takes: Mapping[str, Rule | None]
    given: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    open: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        target: Callable[..., object],
        *,
        shown: str = "",
        rules: Mapping[str, Rule] | None = None,
        given: Iterable[str] = (),
    ) -> Part:
        """The part that is built by `target`: a class, a function, or a `functools.partial` of one.

        A parameter without a rule must be what its annotation says, where that is int, float, bool or str. What a
        partial has bound is not given a second time.
        """
        parameters = inspect.signature(target).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        bound = target.keywords if isinstance(target, functools.partial) else {}
        own = [p for p in named if p.name not in set(given) or p.name in bound]
        return cls(
            name=name,
            shown=shown or name,
            takes={p.name: (rules or {}).get(p.name) or BY_ANNOTATION.get(_annotation(p)) for p in own},
            given=frozenset(p.name for p in named if p not in own),
            required=frozenset(p.name for p in own if p.default is p.empty),
            open=any(p.kind is p.VAR_KEYWORD for p in parameters),
        )

    def reached_by(self, qualified: str) -> bool:
        """Whether `part.name` is a hyper-parameter of this part."""
        part, _, name = qualified.partition(".")
        return part == self.name and (name in self.takes or (self.open and bool(name) and name not in self.given))


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


@dataclass(frozen=True)
class Routed:
    """A configuration, taken apart.

    Attributes:
        chosen: What each choosing hyper-parameter chose, by its name: `{"optimizer": "adam"}`.
        arguments: Keyword arguments of each part, by the part's name.
    """

    chosen: Mapping[str, str]
    arguments: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Routing:
    """The parts of a trial.

    Attributes:
        parts: Those that every trial has.
        chosen: Those that a hyper-parameter chooses from, by its name, then by its value.
        defaults: Its value where a configuration does not say.
    """

    parts: Sequence[Part]
    chosen: Mapping[str, Mapping[str, Part]]
    defaults: Mapping[str, str]

    def route(self, config: Config) -> Routed:
        """The configuration, each value with the part that takes it.

        Raises:
            ExperimentError: A name reaches no part or two, is given twice, is missing, or its value breaks a rule;
                `where` is the hyper-parameter.
        """
        chosen = {name: self._choice(name, config) for name in self.chosen}
        parts = [*self.parts, *chosen.values()]
        routed: dict[str, dict[str, Any]] = {part.name: {} for part in parts}
        for written, value in config.items():
            if written in chosen:
                continue
            part = self._taker(written, parts)
            name = written.removeprefix(f"{part.name}.")
            if name in routed[part.name]:
                raise ExperimentError(
                    f"it is given twice: as {name!r} and as '{part.name}.{name}'",
                    where=written,
                    remedy="keep one of the two",
                )
            if (rule := part.takes.get(name)) is not None:
                rule.check(value, where=written)
            routed[part.name][name] = _without_lists(value)
        for part in parts:
            _check_complete(part, routed[part.name])
        return Routed({name: part.shown for name, part in chosen.items()}, routed)

    def _choice(self, name: str, config: Config) -> Part:
        value = config.get(name, self.defaults[name])
        choices = self.chosen[name]
        if not isinstance(value, str) or value not in choices:
            raise ExperimentError(
                f"{value!r} is not one of {', '.join(map(repr, choices))}",
                where=name,
                remedy=_did_you_mean(str(value), choices) or f"e.g. {name}={next(iter(choices))!r}",
            )
        return choices[value]

    def _taker(self, name: str, parts: Sequence[Part]) -> Part:
        takers = [part for part in parts if name in part.takes or part.reached_by(name)]
        if len(takers) == 1:
            return takers[0]
        if takers:
            raise ExperimentError(
                f"{' and '.join(part.shown for part in takers)} both take it",
                where=name,
                remedy=f"say which: {' or '.join(f'{part.name}.{name}' for part in takers)}",
            )
        raise self._untaken(name, parts)

    def _untaken(self, name: str, parts: Sequence[Part]) -> ExperimentError:
        own = name.rpartition(".")[2]
        for part in parts:
            if own in part.given and name in (own, f"{part.name}.{own}"):
                return ExperimentError(f"{part.shown} gets it from the task", where=name, remedy="leave it out")
        for chooser, choices in self.chosen.items():
            takers = [value for value, part in choices.items() if own in part.takes]
            if takers and name in (own, f"{choices[takers[0]].name}.{own}"):
                chosen = next(part.shown for part in choices.values() if part in parts)
                return ExperimentError(
                    f"{chooser}={chosen!r} does not take it; it belongs to {', '.join(map(repr, takers))}",
                    where=name,
                    remedy=f"let it exist only there: .when({chooser}={_one_or_list(takers)}); or leave it out",
                )
        valid = sorted({*self.chosen, *(name for part in parts for name in part.takes)})
        return ExperimentError(
            "no part takes it", where=name, remedy=f"{_did_you_mean(name, valid)}valid names: {', '.join(valid)}"
        )


def _without_lists(value: Any) -> Any:
    """The value as it was before it went through JSON."""
    return tuple(map(_without_lists, value)) if isinstance(value, (list, tuple)) else value


def _check_complete(part: Part, given: Mapping[str, Any]) -> None:
    for name in sorted(part.required - given.keys()):
        raise ExperimentError(
            f"{part.shown} needs it, and neither space nor fixed gives it",
            where=name,
            remedy=f'add it, e.g. fixed={{"{name}": …}}, or give it a default',
        )


def _did_you_mean(name: str, valid: Iterable[str]) -> str:
    close = get_close_matches(name, list(valid), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _one_or_list(values: list[str]) -> str:
    return repr(values[0]) if len(values) == 1 else repr(values)
