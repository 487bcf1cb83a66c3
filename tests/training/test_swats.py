from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpo.training.swats import Swats

Vector = NDArray[np.float64]
TOLERANCE = 1e-5
CURVES = np.array([1.0, 4.0, 0.5, 2.0, 3.0])
NOISE = np.random.default_rng(0).normal(scale=0.3, size=(100, 5))


def slope(weights: Vector, step: int) -> Vector:
    """Of a bowl, seen through noise."""
    noisy: Vector = CURVES * weights + NOISE[step]
    return noisy


def by_the_paper(
    weights: Vector, grad: Callable[[Vector, int], Vector], *, lr: float, tolerance: float, steps: int
) -> tuple[list[Vector], int]:
    """Algorithm 1 line by line, on one vector; and the step at which it switched."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    m = np.zeros_like(weights)
    a = np.zeros_like(weights)
    v = np.zeros_like(weights)
    lam, big, switched, seen = 0.0, 0.0, 0, []
    for k in range(1, steps + 1):
        g = grad(weights, k)
        if switched:
            v = beta1 * v + g
            weights = weights - (1 - beta1) * big * v
            seen.append(weights)
            continue
        m = beta1 * m + (1 - beta1) * g
        a = beta2 * a + (1 - beta2) * g**2
        p = -lr * np.sqrt(1 - beta2**k) / (1 - beta1**k) * m / (np.sqrt(a) + eps)
        weights = weights + p
        seen.append(weights)
        if p @ g != 0:
            gamma = p @ p / -(p @ g)
            lam = beta2 * lam + (1 - beta2) * gamma
            if k > 1 and abs(lam / (1 - beta2**k) - gamma) < tolerance and lam > 0:
                switched, big = k, lam / (1 - beta2**k)
    return seen, switched


def trained(*, steps: int, tolerance: float, split: int | None = None) -> list[Vector]:
    """In two parameters, so that what is one for both is seen to be."""
    parameters = [nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.ones(3, dtype=torch.float64))]
    optimizer = Swats(parameters, lr=0.01, switch_tolerance=tolerance)
    seen = []
    for step in range(steps):
        if step == split:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = Swats(parameters, lr=0.5, switch_tolerance=tolerance)
            optimizer.load_state_dict(state)
        grad = torch.from_numpy(slope(torch.cat(list(parameters)).detach().numpy(), step + 1))
        parameters[0].grad, parameters[1].grad = grad[:2], grad[2:]
        optimizer.step()
        seen.append(torch.cat(list(parameters)).detach().numpy())
    return seen


def test_it_is_the_papers_algorithm_before_and_after_the_switch() -> None:
    theirs, switched = by_the_paper(np.ones(5), slope, lr=0.01, tolerance=TOLERANCE, steps=80)
    assert 2 < switched < 60
    np.testing.assert_allclose(trained(steps=80, tolerance=TOLERANCE), theirs, rtol=1e-6, atol=1e-9)


def test_it_goes_on_from_its_state_on_either_side_of_the_switch() -> None:
    whole = trained(steps=80, tolerance=TOLERANCE)
    for split in (5, 70):
        np.testing.assert_allclose(trained(steps=80, tolerance=TOLERANCE, split=split), whole, rtol=1e-9)


def test_a_schedule_goes_on_after_the_switch() -> None:
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = Swats([parameter], lr=0.1, switch_tolerance=1e9)
    for _ in range(2):
        parameter.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    assert optimizer.state[parameter]["switched"]
    before = parameter.item()
    optimizer.param_groups[0]["lr"] = 0.05
    parameter.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    rate = optimizer.state[parameter]["rate"].item()
    assert (
        before - parameter.item() == (1 - 0.9) * rate * 0.5 * 1.0
        or abs(before - parameter.item() - 0.1 * rate * 0.5) < 1e-7
    )
