"""The experiment: one question, declared once, frozen, and checked before anything starts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from hpo.declared import Declared, described
from hpo.errors import ExperimentError
from hpo.goal import Goal
from hpo.per_trial import PerTrial, check_concurrent
from hpo.protocols import Policy, Search, Task
from hpo.space import Domain, Space, is_value
from hpo.trial import Config

RUN_FIELDS = ("trials", "seed", "concurrent", "max_failures", "checkpoint_every_s", "keep_checkpoints")
"""Fields of an experiment that `quick` and `--set` may change by name."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What to try, how to judge it, and what each trial may use; see the README for an example.

    Args:
        task: What a trial trains.
        space: Domains of the hyper-parameters to be tried, by name.
        goal: `Maximize(metric)` or `Minimize(metric)`.
        trials: Number of trials in total: running the file again adds none, raising it adds the difference. May be
            left out where every domain is a grid.
        fixed: Values of the hyper-parameters that are not tried.
        policy: One policy or several; the first stop wins, and at most one may pause trials.
        search: How configurations are chosen; by default independent draws, and grids crossed.
        per_trial: Resources of each trial.
        concurrent: Trials at a time, at most; None: as many as `per_trial` lets fit. "auto": as many for each GPU as
            train fastest together, which the first trials find out once; `per_trial.gpus` is where they begin.
        seed: Everything random follows from it.
        quick: What `--quick` changes: run fields (`trials`), settings of a part (`asha.max_epochs`), or values of
            hyper-parameters (`train_samples`).
        max_failures: Times that a trial is started again after an error of its own before it counts as failed.
        checkpoint_every_s: Seconds of training that a killed trial may lose, at least; writing is kept to about
            1 % of the time, so large models write less often.
        keep_checkpoints: Number of best trials whose checkpoints stay after they ended.
    """

    task: Task
    space: Mapping[str, Domain]
    goal: Goal
    trials: int | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy | tuple[Policy, ...] = ()
    search: Search | None = None
    per_trial: PerTrial = field(default_factory=PerTrial)
    concurrent: int | Literal["auto"] | None = None
    seed: int = 0
    quick: Mapping[str, Any] = field(default_factory=dict)
    max_failures: int = 1
    checkpoint_every_s: float = 30.0
    keep_checkpoints: int = 5

    def __post_init__(self) -> None:
        _check_types(self)
        set_ = object.__setattr__
        set_(self, "policy", tuple(self.policy) if isinstance(self.policy, (list, tuple)) else (self.policy,))
        set_(self, "fixed", {name: _frozen(value) for name, value in self.fixed.items()})
        set_(self, "space", Space(self.space).domains)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies, always as a tuple."""
        assert isinstance(self.policy, tuple)  # noqa: S101 - set so in __post_init__; tells the type checker
        return self.policy

    @property
    def domains(self) -> Space:
        """The space."""
        return Space(self.space)

    @property
    def max_steps(self) -> int | None:
        """Steps that the longest trial may train, or None where its own configuration says when it ends."""
        return _least(policy.max_steps for policy in self.policies)

    @property
    def max_epochs(self) -> int | None:
        """Epochs that the longest trial may train, as far as policies count epochs."""
        return _least(policy.max_steps for policy in self.policies if policy.resource == "epoch")

    @property
    def num_trials(self) -> int:
        """Trials in total."""
        size = self.search.num_configurations(self.domains, self.fixed) if self.search else None
        if self.trials is None:
            return size if size is not None else len(self.domains.cells(self.fixed))
        return self.trials if size is None else min(self.trials, size)

    def trained(self, config: Config) -> Config:
        """The part of a configuration that is the task's; the rest is the policies'."""
        taken = {name for policy in self.policies for name in policy.takes}
        return {name: value for name, value in config.items() if name not in taken}

    # --- checks ---

    def check(self) -> None:
        """Raise ExperimentError for the first thing that cannot be; nothing is started for it.

        Every value that a domain can take at its ends, and every choice, is shown to the task.
        """
        _check_numbers(self)
        check_concurrent(self.concurrent, per_trial=self.per_trial)
        _check_workers(self)
        _check_goal_and_end(self)
        _check_fixed(self)
        self.domains.check_conditions(self.fixed)
        _check_parts(self)
        for config, name in self._example_configs():
            try:
                for policy in self.policies:
                    policy.check_config(config)
                trained = self.trained(config)
                self.task.check_config(trained)
                self.task.check_workers(trained, workers=self.per_trial.workers)
            except ExperimentError as error:
                raise (_placed(self, error) if error.where else error.inside(self._where(name))) from None

    def _where(self, name: str) -> str:
        return f"space.{name}" if name in self.space else f"fixed.{name}" if name in self.fixed else name

    def _example_configs(self) -> Iterator[tuple[Config, str]]:
        space = self.domains
        for name, domain in space.domains.items():
            for value in domain.examples():
                cell = {**_parents(space, domain), name: value}
                yield space.draw(self.fixed, seed=self.seed, trial=0, cell=cell), name
        yield space.draw(self.fixed, seed=self.seed, trial=0), "fixed"

    # --- overrides ---

    def with_overrides(self, overrides: Mapping[str, Any], *, source: str) -> Experiment:
        """The experiment with named settings replaced, as `quick` and `--set` do.

        Args:
            overrides: By name: a run field, `part.setting` (a part is named by its class in lower case), or a
                hyper-parameter, which becomes fixed at the value.
            source: What the user wrote it in, for errors.
        """
        changed = self
        for name, value in overrides.items():
            try:
                changed = changed._with(name, _frozen(value))
            except ExperimentError as error:
                raise error.inside(source) from None
        return changed

    def _with(self, name: str, value: Any) -> Experiment:
        if name in RUN_FIELDS:
            return replace(self, **{name: value})
        part, _, setting = name.partition(".")
        if setting and part in self._parts():
            return self._with_part(part, setting, value)
        if name not in self.space and name not in self.fixed:
            self._check_known(name, value)
        space = {key: domain for key, domain in self.space.items() if key != name}
        return replace(self, space=_still_possible(space, name, value), fixed={**self.fixed, name: value})

    def _parts(self) -> dict[str, Declared]:
        parts: tuple[Declared | None, ...] = (*self.policies, self.search)
        named = {type(part).__name__.lower(): part for part in parts if part is not None}
        return {**named, "per_trial": self.per_trial}

    def _with_part(self, part: str, setting: str, value: Any) -> Experiment:
        old: Any = self._parts()[part]
        valid = [f.name for f in fields(old)]
        if setting not in valid:
            raise ExperimentError(
                f"{part} has no setting {setting!r}", where=f"{part}.{setting}", remedy=f"valid: {', '.join(valid)}"
            )
        new = replace(old, **{setting: value})
        swap = {id(old): new}
        return replace(
            self,
            policy=tuple(swap.get(id(policy), policy) for policy in self.policies),
            search=swap.get(id(self.search), self.search),
            per_trial=swap.get(id(self.per_trial), self.per_trial),
        )

    def _check_known(self, name: str, value: Any) -> None:
        base = self.domains.draw(self.fixed, seed=self.seed, trial=0)
        try:
            self.task.check_config(self.trained({**base, name: value}))
        except ExperimentError as error:
            if error.where != name:
                return  # something else is wrong, and is said by check()
            names = self._names()
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close and "did you mean" not in error.remedy else ""
            raise ExperimentError(
                error.problem, where=name, remedy=f"{hint}{error.remedy}; fields that can be set: {', '.join(names)}"
            ) from None

    def _names(self) -> list[str]:
        parts = [f"{part}.{f.name}" for part, owner in self._parts().items() for f in fields(owner)]  # type: ignore[arg-type]
        return [*RUN_FIELDS, *parts, *self.fixed, *self.space]

    # --- identity ---

    def describe(self) -> dict[str, Any]:
        """JSON of all that the outcome depends on, as JSON gives it back; `digest_of` hashes it."""
        description = {
            "task": self.task.describe(),
            "space": self.domains.describe(),
            "fixed": described(self.fixed),
            "goal": f"{self.goal.mode} {self.goal.metric}",
            "policy": [policy.describe() for policy in self.policies],
            "search": self.search.describe() if self.search else None,
            "seed": self.seed,
        }
        return dict(json.loads(json.dumps(description)))


def digest_of(description: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change when the description does."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two descriptions, one line each: `space.lr.high: 0.1 is now 0.3`."""
    lines = []
    for key in sorted({*old, *new}):
        name, before, after = f"{path}{key}", old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changes(before, after, f"{name}.")
        elif before != after:
            lines.append(f"{name}: {_short(before)} is now {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value


def _least(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _placed(experiment: Experiment, error: ExperimentError) -> ExperimentError:
    """The error, its hyper-parameter named by where the user wrote it."""
    return ExperimentError(error.problem, where=experiment._where(error.where), remedy=error.remedy)


def _still_possible(space: Mapping[str, Domain], name: str, value: Any) -> dict[str, Domain]:
    """The domains whose conditions can be met with `name` at `value`."""
    kept = dict(space)
    for key, domain in space.items():
        if any(parent == name and value not in wanted for parent, wanted in domain.condition):
            kept.pop(key)
    gone = set(space) - set(kept)
    while late := [key for key, domain in kept.items() if any(parent in gone for parent, _ in domain.condition)]:
        gone.update(late)
        for key in late:
            kept.pop(key)
    return kept


def _parents(space: Space, domain: Domain) -> dict[str, Any]:
    """Values under which `domain` exists."""
    values: dict[str, Any] = {}
    for parent, wanted in domain.condition:
        if parent in space.domains:
            values |= {**_parents(space, space.domains[parent]), parent: wanted[0]}
    return values


def _check_types(experiment: Experiment) -> None:
    policies = experiment.policy if isinstance(experiment.policy, (list, tuple)) else [experiment.policy]
    expected: list[tuple[str, object, type, str]] = [
        ("task", experiment.task, Task, "a task, e.g. Classification(model=ConvNet, data=Cifar10())"),
        ("space", experiment.space, Mapping, 'domains by name, e.g. {"lr": loguniform(1e-4, 1e-1)}'),
        ("fixed", experiment.fixed, Mapping, 'values by name, e.g. {"batch_size": 128}'),
        ("quick", experiment.quick, Mapping, 'values by name, e.g. {"trials": 8}'),
        ("goal", experiment.goal, Goal, 'Maximize("val_accuracy") or Minimize("val_loss")'),
        ("per_trial", experiment.per_trial, PerTrial, "PerTrial(gpus=1)"),
        *((f"policy[{i}]", policy, Policy, "a policy, e.g. Asha(max_epochs=27)") for i, policy in enumerate(policies)),
    ]
    if experiment.search is not None:
        expected.append(("search", experiment.search, Search, "a search, e.g. RandomSearch()"))
    for where, value, kind, example in expected:
        if not isinstance(value, kind):
            raise ExperimentError(
                f"{value!r} is a {type(value).__name__}, not what belongs here", where=where, remedy=f"give {example}"
            )


def _check_numbers(experiment: Experiment) -> None:
    rules: list[tuple[str, Any, type | tuple[type, ...], float]] = [
        ("seed", experiment.seed, int, 0),
        ("max_failures", experiment.max_failures, int, 0),
        ("keep_checkpoints", experiment.keep_checkpoints, int, 1),
        ("checkpoint_every_s", experiment.checkpoint_every_s, (int, float), 0),
    ]
    if experiment.trials is not None:
        rules.insert(0, ("trials", experiment.trials, int, 1))
    for where, value, kind, least in rules:
        number: Any = value if isinstance(value, kind) and not isinstance(value, bool) else math.nan
        if not least <= number < math.inf:
            what = "an integer" if kind is int else "a number"
            raise ExperimentError(
                f"{value!r} is not {what} of at least {least:g}", where=where, remedy=f"e.g. {where}={max(least, 1):g}"
            )


def _check_workers(experiment: Experiment) -> None:
    num, task = experiment.per_trial.workers, experiment.task
    if num > 1 and not task.several_workers:
        raise ExperimentError(
            f"{num} processes cannot train a trial of {type(task).__name__} together",
            where="per_trial.workers",
            remedy="leave it out, or have the task say `several_workers = True`, and heed `Setting.group`",
        )


def _check_goal_and_end(experiment: Experiment) -> None:
    metrics = experiment.task.metrics
    if experiment.goal.metric not in metrics:
        close = get_close_matches(experiment.goal.metric, metrics, n=1)
        raise ExperimentError(
            f"{type(experiment.task).__name__} does not report {experiment.goal.metric!r}",
            where="goal",
            remedy=f"{f'did you mean {close[0]!r}? ' if close else ''}it reports: {', '.join(metrics)}",
        )
    if sum(policy.may_pause for policy in experiment.policies) > 1:
        raise ExperimentError(
            "more than one policy pauses trials", where="policy", remedy="keep one of them; any number may stop trials"
        )
    for policy in experiment.policies:
        if policy.resource == "chunk" and not experiment.task.grows:
            raise ExperimentError(
                f"{type(policy).__name__} counts chunks, but the data come all at once",
                where="policy",
                remedy='leave out resource="chunk", or have them come chunk by chunk: Cifar10().in_chunks(5)',
            )
    ends = experiment.task.grows or "epochs" in {*experiment.fixed, *experiment.space}
    if experiment.max_steps is None and not ends:
        raise ExperimentError(
            "nothing says when a trial has trained enough",
            where="policy",
            remedy='add Asha(max_epochs=…) or NoStopping(max_epochs=…), or fixed={"epochs": …}',
        )
    if experiment.trials is None and (not experiment.space or set(experiment.domains.grids) != set(experiment.space)):
        raise ExperimentError(
            "it says nowhere how many trials to run", where="trials", remedy="give trials=…, e.g. trials=64"
        )


def _check_fixed(experiment: Experiment) -> None:
    for name, value in experiment.fixed.items():
        if name in experiment.space:
            raise ExperimentError(
                "it stands in space as well", where=f"fixed.{name}", remedy="keep it in one of the two"
            )
        if not is_value(value):
            raise ExperimentError(
                f"{value!r} is a {type(value).__name__}, which the store cannot hold",
                where=f"fixed.{name}",
                remedy="use numbers, strings, booleans, None, or tuples of these",
            )


def _check_parts(experiment: Experiment) -> None:
    parts: list[tuple[str, Declared]] = [
        ("task", experiment.task),
        ("per_trial", experiment.per_trial),
        *((type(policy).__name__.lower(), policy) for policy in experiment.policies),
    ]
    for name, part in parts:
        try:
            part.check()
        except ExperimentError as error:
            raise ExperimentError(error.problem, where=f"{name}.{error.where}", remedy=error.remedy) from None
    if experiment.search is not None:
        experiment.search.check_space(experiment.domains, trials=experiment.trials)
