"""Adam that becomes SGD by itself, when SGD's learning rate has settled (SWATS; Keskar & Socher 2017, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hpo.training.lean import LeanOptimizer


class Swats(LeanOptimizer):
    """Adam until the rate at which SGD would have taken Adam's steps stays within `switch_tolerance`; then SGD.

    All parameters switch at once, as in the paper. After the switch, a schedule of `lr` goes on: SGD's rate changes in
    the same proportion. The decision is made on the device, so that no step waits for it.

    Args:
        parameters: Tensors, or groups of them.
        lr: Of Adam.
        betas: Of Adam; the first is SGD's momentum as well.
        eps: Of Adam.
        weight_decay: Added to the gradient, times the weights.
        switch_tolerance: Between SGD's rate and its running mean (epsilon of the paper, 1e-9 there).
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        switch_tolerance: float = 1e-9,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "tolerance": switch_tolerance}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step of Adam or of SGD."""
        assert closure is None  # noqa: S101 - nothing here has one
        taken = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not taken:
            return
        shared = self._shared(taken[0][0])
        adams, grads = zip(*(self._adams_step(parameter, group, shared) for parameter, group in taken), strict=True)
        lr = float(taken[0][1]["lr"])
        rate = shared["rate"] / shared["lr"].clamp(min=1e-30) * lr
        switched = shared["switched"] > 0
        for (parameter, group), adam, grad in zip(taken, adams, grads, strict=True):
            momentum = group["betas"][0]
            velocity = self.state[parameter]["velocity"]
            velocity.copy_(torch.where(switched, momentum * velocity + grad, velocity))
            sgd = -(1 - momentum) * rate * (group["lr"] / lr if lr else 0.0) * velocity
            parameter.add_(torch.where(switched, sgd, adam))
        self._look(shared, adams, grads, lr=lr, beta=taken[0][1]["betas"][1], tolerance=taken[0][1]["tolerance"])

    def _shared(self, first: Tensor) -> dict[str, Tensor]:
        """What is one for all parameters, kept with the one that was the first when training began."""
        begun: dict[str, Tensor] | None = next((one for one in self.state.values() if "num" in one), None)
        state: dict[str, Tensor] = self.state[first] if begun is None else begun
        if "num" not in state:
            precise = torch.promote_types(first.dtype, torch.float32)
            for name in ("num", "mean", "rate", "lr", "switched"):
                state[name] = torch.zeros((), dtype=precise, device=first.device)
        state["num"] += 1
        return state

    def _adams_step(self, parameter: Tensor, group: Any, shared: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        state = self.state[parameter]
        if "exp_avg" not in state:
            for name in ("exp_avg", "exp_avg_sq", "velocity"):
                state[name] = torch.zeros_like(parameter)
        assert parameter.grad is not None  # noqa: S101 - those alone are taken
        grad = parameter.grad + group["weight_decay"] * parameter if group["weight_decay"] else parameter.grad
        first, second = group["betas"]
        state["exp_avg"].lerp_(grad, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
        size = group["lr"] * (1 - second ** shared["num"]).sqrt() / (1 - first ** shared["num"])
        return -size * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"]), grad

    def _look(
        self, shared: dict[str, Tensor], adams: Any, grads: Any, *, lr: float, beta: float, tolerance: float
    ) -> None:
        """Switch where SGD's rate has settled."""
        along = sum((step * grad).sum() for step, grad in zip(adams, grads, strict=True))
        length = sum((step * step).sum() for step in adams)
        moves = along != 0
        rate = torch.where(moves, length / torch.where(moves, -along, torch.ones_like(along)), torch.zeros_like(along))
        mean = torch.where(moves, beta * shared["mean"] + (1 - beta) * rate, shared["mean"])
        settled = mean / (1 - beta ** shared["num"])
        near = moves & (shared["num"] > 1) & ((settled - rate).abs() < tolerance) & (settled > 0)
        now = near & (shared["switched"] == 0)
        shared["rate"].copy_(torch.where(now, settled, shared["rate"]))
        shared["lr"].copy_(torch.where(now, torch.full_like(settled, lr), shared["lr"]))
        shared["mean"].copy_(mean)
        shared["switched"].clamp_(min=near.to(shared["switched"].dtype))
