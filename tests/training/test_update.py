from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hpo.training.settings import LoopSettings
from hpo.training.update import Average, change_gradients, numbers


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def with_gradients(*, scale: float = 1.0) -> nn.Module:
    made = model()
    torch.manual_seed(1)
    for parameter in made.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    return made


def gradients(made: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in made.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("largest", [0.1, 1.0, 1e6])
def test_gradients_are_clipped_as_pytorch_does(largest: float, *, as_tensor: bool) -> None:
    ours, theirs = with_gradients(), with_gradients()
    change_gradients(ours.parameters(), {"grad_clip": torch.tensor(largest) if as_tensor else largest})
    clip_grad_norm_(theirs.parameters(), largest)
    torch.testing.assert_close(gradients(ours), gradients(theirs))


def test_l1_is_the_gradient_of_the_sum_of_magnitudes() -> None:
    ours, theirs = with_gradients(), with_gradients()
    change_gradients(ours.parameters(), {"l1": 0.3})
    (0.3 * sum(parameter.abs().sum() for parameter in theirs.parameters())).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(gradients(ours), gradients(theirs))


def test_l1_comes_before_the_clipping() -> None:
    made = with_gradients(scale=0.0)
    change_gradients(made.parameters(), {"l1": 5.0, "grad_clip": 1.0})
    norm = torch.cat([grad.flatten() for grad in gradients(made)]).norm()
    assert norm.item() == pytest.approx(1.0, rel=1e-4)


def test_parameters_without_gradient_are_left_alone() -> None:
    made = model()
    change_gradients(made.parameters(), {"l1": 5.0, "grad_clip": 1.0})
    assert not gradients(made)


def test_what_is_off_is_no_number() -> None:
    assert numbers(LoopSettings()) == {}
    assert numbers(LoopSettings(l1=0.1, grad_clip=2.0, ema=0.9)) == {"l1": 0.1, "grad_clip": 2.0, "ema": 0.9}


def trained(made: nn.Module, averages: list[object], *, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter))
        for average in averages:
            if isinstance(average, Average):
                average.update(torch.tensor(0.9) if step % 2 else 0.9)
            elif isinstance(average, AveragedModel):
                average.update_parameters(made)


def test_the_average_is_pytorchs() -> None:
    made = model()
    ours = Average(made)
    theirs = AveragedModel(made, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    trained(made, [ours, theirs], steps=5)
    for name, parameter in theirs.module.named_parameters():
        torch.testing.assert_close(ours.weights()[name], parameter.detach())


def test_it_is_shown_for_a_while() -> None:
    made = model()
    average = Average(made)
    trained(made, [average], steps=3)
    own = copy.deepcopy(made.state_dict())
    mean = {name: value.clone() for name, value in average.weights().items()}
    with average.shown():
        for name, parameter in made.named_parameters():
            assert torch.equal(parameter, mean[name])
    assert all(torch.equal(value, own[name]) for name, value in made.state_dict().items())
    assert all(torch.equal(value, mean[name]) for name, value in average.weights().items())


def test_it_goes_on_from_its_state_and_begins_anew() -> None:
    made = model()
    first, second = Average(made), Average(made)
    trained(made, [first], steps=3)
    second.restore(copy.deepcopy(first.state()))
    trained(made, [first, second], steps=2)
    assert all(torch.equal(value, second.weights()[name]) for name, value in first.weights().items())
    second.begin()
    trained(made, [second], steps=1)
    assert all(torch.equal(value, second.weights()[name]) for name, value in made.named_parameters())
