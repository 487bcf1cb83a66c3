"""Optimizers in groups, and one in place of another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpo.training.capturable import CAPTURABLE, INITIAL_LR, Capturable
from hpo.training.fine_tuning import FineTuning, FineTuningSettings
from hpo.training.groups import keep_state, optimizer_for
from hpo.training.optimizers import OPTIMIZERS


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 1))


def settings(decay: float, head: float, freeze: int | None = None) -> FineTuningSettings:
    return FineTuningSettings(freeze=freeze, lr_decay_per_block=decay, head_lr_factor=head)


@given(st.sampled_from(sorted(OPTIMIZERS)), st.sampled_from([1.0, 0.5]), st.sampled_from([1.0, 4.0]), st.integers(0, 2))
def test_each_trained_parameter_is_in_one_group_at_its_rate(name: str, decay: float, head: float, freeze: int) -> None:
    net = model()
    tuning = FineTuning(net, settings(decay, head, freeze))
    tuning.prepare(net, epoch=0)
    optimizer = optimizer_for(net, lambda parameters: OPTIMIZERS[name](parameters, lr=0.1), tuning)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(rates)
    expected = {
        id(net.get_parameter(own)): 0.1 * group.factor
        for group in tuning.rate_groups()
        for own in group.names
        if own in tuning.trained(0)
    }
    assert rates == pytest.approx(expected)
    assert all(group[INITIAL_LR] == group["lr"] for group in optimizer.param_groups)


def test_without_fine_tuning_there_is_one_group_in_the_models_order() -> None:
    net = model()
    for tuning in (None, FineTuning(net, FineTuningSettings())):
        optimizer = optimizer_for(net, OPTIMIZERS["adam"], tuning)
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]
        assert len(optimizer.param_groups) == 1


def test_the_rates_of_a_capturable_optimizer_are_on_the_device_at_once() -> None:
    net = model()
    optimizer = optimizer_for(net, CAPTURABLE["sgd"], FineTuning(net, settings(0.5, 1.0)))
    assert isinstance(optimizer, Capturable)
    assert [float(numbers["lr"]) for numbers in optimizer.numbers] == pytest.approx([0.25e-3, 0.5e-3, 1e-3])


@pytest.mark.parametrize("make", [OPTIMIZERS["adam"], CAPTURABLE["adam"], CAPTURABLE["sgd"], OPTIMIZERS["sgd"]])
def test_state_is_kept_for_those_that_trained_before(make: Callable[..., torch.optim.Optimizer]) -> None:
    more = {"momentum": 0.9} if "sgd" in repr(make).lower() or make is CAPTURABLE["sgd"] else {}
    net = model()
    tuning = FineTuning(net, FineTuningSettings(freeze=2, unfreeze_every=1))

    def stepped(epoch: int, before: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
        tuning.prepare(net, epoch=epoch)
        optimizer = optimizer_for(net, lambda parameters: make(parameters, lr=0.1, **more), tuning)
        if before is not None:
            keep_state(optimizer, of=before)
        optimizer.zero_grad()
        net(torch.ones(4, 2)).sum().backward()
        optimizer.step()
        return optimizer

    first = stepped(0, None)
    head = net[3].bias
    before = {name: value.clone() for name, value in first.state[head].items()}
    second = stepped(1, first)
    assert set(second.state[head]) == set(before)
    name = "momentum_buffer" if more else "exp_avg"
    after, decay = second.state[head][name], 0.9
    assert torch.allclose(after, decay * before[name] + (4.0 if more else 0.1 * 4.0))
    assert second.state[net[2].weight][name].shape == (3, 3)
    assert net[0].weight not in second.state
