"""What shows how a training goes, beside its measures: gradients, updates, dead activations.

All of it is summed up in tensors that stay on the device, and read with the measures of the epoch. A layer is what has
parameters of its own, or is such an activation; where these are more than `MAX_LAYERS`, those that lie in the same
module count as one (`layer1.0` instead of `layer1.0.conv1`, `layer1.0.bn1`, …), and where even the outermost modules
are more, there are only the figures of the whole model.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpo.errors import ExperimentError
from hpo.training.distributed import Team
from hpo.training.settings import LoopSettings

MAX_LAYERS = 64
"""Columns of the reports for each thing that is watched: a ResNet-18 has 41 layers, a ResNet-50 107."""
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Hardswish)
"""Modules that give exactly 0 for a range of inputs, and have no gradient there."""


def check(loop: LoopSettings, *, measures: Sequence[str]) -> None:
    """Raise ExperimentError where the gap is asked for by its name, and the task measures no loss."""
    if "gap" in loop.names_to_watch and "loss" not in measures:
        raise ExperimentError(
            f"'gap' is between two losses, and the task measures {', '.join(measures)}",
            where="watch",
            remedy="leave it out, or have the task's measures name 'loss'",
        )


def layers_of(paths: Sequence[str], *, most: int = MAX_LAYERS) -> list[str]:
    """The layer that each part of a model belongs to, given its path; nothing for each where there are too many."""
    for depth in range(max((path.count(".") for path in paths), default=0) + 1, 0, -1):
        layers = [".".join(path.split(".")[:depth]) for path in paths]
        if len(set(layers)) <= most:
            return layers
    return [""] * len(paths)


def _owner(parameter: str) -> str:
    """The module that a parameter is in; itself where that is the whole model."""
    return parameter.rpartition(".")[0] or parameter


class UpdateWatch:
    """Means over optimizer steps of what gradients and updates there were, of each layer that trains and of all.

    `grad_norm` is the norm of the gradient of the loss, over all micro batches and processes, before `l1` and
    `grad_clip` change it. `update_ratio` is the norm of a step's change of the weights over the norm of the weights
    after it, as the ratio of the two means; about 1e-3 is usual, and it is best looked at on a logarithmic axis. Both
    are the same in every process of a trial, since gradients and weights are.

    Args:
        model: On its device; which of its parameters train may change between two epochs.
        names: Of "gradients", "updates".
    """

    def __init__(self, model: nn.Module, names: frozenset[str]) -> None:
        self._model, self._gradients, self._updates = model, "gradients" in names, "updates" in names
        self._lay_out(self._trained())

    @classmethod
    def asked_for(cls, model: nn.Module, loop: LoopSettings) -> UpdateWatch | None:
        """One of what the settings name; None where that is nothing."""
        names = loop.watched & {"gradients", "updates"}
        return cls(model, names) if names else None

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}

    def _lay_out(self, trained: dict[str, nn.Parameter]) -> None:
        self._names, self._weights = list(trained), list(trained.values())
        device = self._weights[0].device if self._weights else None
        places = defaultdict[str, list[int]](list)
        for place, layer in enumerate(layers_of([_owner(name) for name in self._names])):
            places[layer].append(place)
        self._layers = [layer for layer in places if layer] + [""]
        places[""] = list(range(len(self._names)))
        # A row of places for each layer, filled up with one place more, where there is 0: neither a sum over them nor
        # one that holds an infinite number spoils another layer's, and the sum is the same bits each time.
        rows = [places[layer] for layer in self._layers]
        self._places_LP = torch.tensor(
            [row + [len(self._names)] * (len(self._names) - len(row)) for row in rows], dtype=torch.int64, device=device
        )
        self._sums_3L = torch.zeros(3, len(rows), dtype=torch.float64, device=device)
        self._num = torch.zeros((), dtype=torch.float64, device=device)
        self._nothing = torch.zeros((), device=device)

    def clear(self) -> None:
        """Begin another epoch."""
        trained = self._trained()
        if list(trained) != self._names:
            self._lay_out(trained)
        self._sums_3L.zero_()
        self._num.zero_()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Watch the optimizer step inside, whose gradients are there; one that fails is not counted."""
        if not self._names:
            yield
            return
        with torch.no_grad():
            grads = [self._nothing if weight.grad is None else weight.grad for weight in self._weights]
            gradients = self._norms(grads) if self._gradients else None
            before = [weight.clone() for weight in self._weights] if self._updates else []
        yield
        with torch.no_grad():
            if gradients is not None:
                self._sums_3L[0].add_(gradients)
            if before:
                torch._foreach_sub_(before, [weight.detach() for weight in self._weights])
                self._sums_3L[1].add_(self._norms(before))
                self._sums_3L[2].add_(self._norms([weight.detach() for weight in self._weights]))
            self._num.add_(1)

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        """(L,) of each layer's tensors, the last of all of them."""
        squares = torch.stack(torch._foreach_norm(tensors)).double().square()
        return functional.pad(squares, (0, 1))[self._places_LP].sum(1).sqrt()

    def result(self) -> dict[str, Tensor]:
        """`grad_norm`, `update_ratio`, and those of each layer behind a dot; waits for nothing."""
        gradients, changes, weights = self._sums_3L
        found: dict[str, Tensor] = {}
        if self._gradients:
            found |= self._named("grad_norm", gradients / self._num)
        if self._updates:  # a layer that is 0 and stays so has the ratio 0
            found |= self._named("update_ratio", changes / weights.clamp(min=torch.finfo(torch.float64).tiny))
        return found

    def _named(self, what: str, values_L: Tensor) -> dict[str, Tensor]:
        return {
            f"{what}.{layer}" if layer else what: value
            for layer, value in zip(self._layers, values_L.unbind(), strict=True)
        }


class ActivationWatch:
    """Which units of a model's rectifiers gave 0 for every sample of a pass, by forward hooks that are there for it.

    A unit is a channel of maps (B, C, H, W), alive where any place of it is, and else a feature, the last dimension.
    Each use of a module that a model uses several times counts. What a model rectifies by a function
    (`torch.nn.functional.relu`) is not seen.

    Args:
        model: On its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._rectifiers = {name: part for name, part in model.named_modules() if isinstance(part, RECTIFIERS)}
        self._alive: dict[str, list[Tensor]] = {}
        self._uses: dict[str, int] = {}

    @classmethod
    def asked_for(cls, model: nn.Module, loop: LoopSettings) -> ActivationWatch | None:
        """One where the settings name it."""
        return cls(model) if "activations" in loop.watched else None

    @contextmanager
    def over_pass(self) -> Iterator[None]:
        """Watch the samples that go through the model inside."""
        self._alive = {name: [] for name in self._rectifiers}
        hooks = [self._model.register_forward_pre_hook(self._begin)]
        hooks += [
            part.register_forward_hook(functools.partial(self._see, name)) for name, part in self._rectifiers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, *_: Any) -> None:
        self._uses = dict.fromkeys(self._rectifiers, 0)

    def _see(self, name: str, _module: nn.Module, _inputs: Any, outputs: Tensor) -> None:
        alive, uses = _alive(outputs.detach()), self._alive[name]
        use = self._uses[name]
        self._uses[name] += 1
        if use == len(uses):
            uses.append(alive)
        elif len(uses[use]) == len(alive):  # else it has no units of its own: they are as many as a batch is long
            uses[use] |= alive

    def result(self, team: Team) -> dict[str, Tensor]:
        """`dead_share` of all units and of each layer's, in [0, 1]; nothing where there are no rectifiers.

        Where several processes measured, each a part of the samples, the host waits for them.
        """
        units = self._of_all(team)
        names = [name for name, alive in units.items() if len(alive)]
        members = defaultdict[str, list[Tensor]](list)
        for name, layer in zip(names, layers_of(names), strict=True):
            members[""].append(units[name])
            if layer:
                members[layer].append(units[name])
        return {
            f"dead_share.{layer}" if layer else "dead_share": (torch.cat(parts) == 0).double().mean()
            for layer, parts in members.items()
        }

    def _of_all(self, team: Team) -> dict[str, Tensor]:
        """(units,) in how many of the processes each is alive, by the rectifier's name."""
        own = {name: torch.cat(uses).double() for name, uses in self._alive.items() if uses}
        if team.is_alone or not self._rectifiers:
            return own
        device = next(self._model.parameters()).device
        # A process that had no sample to measure has to know how much the others are about to send.
        known = [(len(own[name]), 1) if name in own else (0, 0) for name in self._rectifiers]
        sizes = torch.tensor(known, dtype=torch.int64, device=device)
        team.add_up([sizes])
        lengths = [total // max(num, 1) for total, num in sizes.tolist()]
        parts = [
            own.get(name, torch.zeros(length, dtype=torch.float64, device=device))
            for name, length in zip(self._rectifiers, lengths, strict=True)
        ]
        alive = torch.cat(parts)
        if len(alive):
            team.add_up([alive])
        return dict(zip(self._rectifiers, torch.split(alive, lengths), strict=True))


def _alive(outputs: Tensor) -> Tensor:
    """(units,) whether each is other than 0 for any sample."""
    shaped = outputs if outputs.dim() > 1 else outputs.reshape(-1, 1)
    unit = 1 if shaped.dim() > 3 else shaped.dim() - 1
    return (shaped != 0).transpose(unit, -1).flatten(end_dim=-2).any(0)


def over_step(watch: UpdateWatch | None) -> AbstractContextManager[None]:
    """`watch.step()`, where there is one."""
    return nullcontext() if watch is None else watch.step()


def over_pass(watch: ActivationWatch | None) -> AbstractContextManager[None]:
    """`watch.over_pass()`, where there is one."""
    return nullcontext() if watch is None else watch.over_pass()
