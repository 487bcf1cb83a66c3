from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hpo.training.muon import MuonAndAdamW


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(6, 4), (4,), (3, 4, 2, 2), (5, 5)]]


def _train(
    optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], *, steps: int, seed: int = 1
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def test_matrices_are_muons_and_the_rest_is_adamws() -> None:
    ours, theirs = _parameters(), _parameters()
    _train([MuonAndAdamW(ours, lr=0.02, weight_decay=0.1, momentum=0.9)], ours, steps=4)
    matrices, others = [theirs[0], theirs[3]], [theirs[1], theirs[2]]
    _train(
        [
            torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=0.02, weight_decay=0.1),
        ],
        theirs,
        steps=4,
    )
    torch.testing.assert_close([p.detach() for p in ours], [p.detach() for p in theirs])


def test_it_goes_on_from_its_state() -> None:
    def trained(*, again: bool) -> list[Tensor]:
        parameters = _parameters()
        optimizer = MuonAndAdamW(parameters, lr=0.02)
        _train([optimizer], parameters, steps=3)
        if again:
            state: Any = copy.deepcopy(optimizer.state_dict())
            optimizer = MuonAndAdamW(parameters, lr=0.5)
            optimizer.load_state_dict(state)
        _train([optimizer], parameters, steps=3, seed=2)
        return [p.detach() for p in parameters]

    assert all(torch.equal(one, other) for one, other in zip(trained(again=True), trained(again=False), strict=True))


def test_groups_keep_their_rates() -> None:
    parameters = _parameters()
    before = [p.detach().clone() for p in parameters]
    optimizer = MuonAndAdamW([{"params": parameters[:2], "lr": 0.0}, {"params": parameters[2:]}], lr=0.1)  # type: ignore[list-item]
    _train([optimizer], parameters, steps=1)
    moved = [not torch.equal(p.detach(), old) for p, old in zip(parameters, before, strict=True)]
    assert moved == [False, False, True, True]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    still = [p.detach().clone() for p in parameters]
    _train([optimizer], parameters, steps=1)
    assert all(torch.equal(p.detach(), old) for p, old in zip(parameters, still, strict=True))
