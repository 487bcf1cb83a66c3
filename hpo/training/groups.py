"""The parameters of an optimizer in groups of one learning rate each, and an optimizer in place of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from hpo.training.capturable import INITIAL_LR, Capturable
from hpo.training.fine_tuning import FineTuning

_Built = TypeVar("_Built", bound=Optimizer)


def optimizer_for(model: nn.Module, build: Callable[[list[Any]], _Built], tuning: FineTuning | None) -> _Built:
    """The optimizer of those parameters that train, each group at its part of the learning rate.

    Args:
        model: Whose parameters say by `requires_grad` whether they train.
        build: Takes parameters, or groups of them.
        tuning: Says which group has which part; None: all are one group, in the model's order.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = (
        []
        if tuning is None
        else [group for group in tuning.rate_groups() if not trained.keys().isdisjoint(group.names)]
    )
    if len(groups) < 2:
        optimizer = build(list(trained.values()))
        factors = {id(parameter): group.factor for group in groups for parameter in trained.values()}
    else:
        members = [[trained[name] for name in group.names if name in trained] for group in groups]
        optimizer = build([{"params": parameters} for parameters in members])
        factors = {id(p): group.factor for group, own in zip(groups, members, strict=True) for p in own}
    for own in optimizer.param_groups:  # an optimizer may have parted the groups further
        own["lr"] *= factors.get(id(own["params"][0]), 1.0)
        own[INITIAL_LR] = own["lr"]
    if isinstance(optimizer, Capturable):
        optimizer.push()
    return optimizer


@torch.no_grad()
def keep_state(optimizer: Optimizer, *, of: Optimizer) -> None:
    """Have `optimizer`, which is new, go on with the state that another of its kind has of the same parameters."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for parameter, state in of.state.items():
        if id(parameter) not in own:
            continue
        if not isinstance(optimizer, Capturable):
            optimizer.state[parameter] = state
            continue
        for name, tensor in optimizer.state[parameter].items():
            if state.get(name) is not None:
                tensor.copy_(state[name])
    if isinstance(optimizer, torch.optim.SGD):
        _complete_momentum(optimizer)


def _complete_momentum(optimizer: torch.optim.SGD) -> None:
    """Begin the momentum of new parameters at 0: the fused implementation takes all of a group's buffers or none."""
    for group in optimizer.param_groups:
        states = [optimizer.state[parameter] for parameter in group["params"]]
        if any(state.get("momentum_buffer") is not None for state in states):
            for parameter, state in zip(group["params"], states, strict=True):
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
