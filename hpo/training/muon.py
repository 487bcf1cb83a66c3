"""Muon for the matrices of a model, AdamW for all the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from hpo.training.lean import LeanOptimizer, lean

MATRIX = "matrices"
"""Key of a group whose parameters are matrices."""


class MuonAndAdamW(LeanOptimizer):
    """`torch.optim.Muon` on parameters of two dimensions, `torch.optim.AdamW` on the others.

    Muon's updates are scaled to the size of AdamW's (`adjust_lr_fn="match_rms_adamw"`, Liu et al. 2025), so that one
    learning rate serves both.

    Args:
        parameters: Tensors, or groups of them.
        lr: Of both.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Of both.
        momentum: Of Muon.
        nesterov: Of Muon.
        ns_steps: Newton-Schulz iterations of Muon.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
    ) -> None:
        given = list(parameters)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        muon = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": "match_rms_adamw"}
        self._kinds: dict[bool, tuple[Any, dict[str, Any]]] = {
            True: (lean(torch.optim.Muon), muon),
            False: (lean(torch.optim.AdamW), {"betas": betas, "eps": eps, "fused": True}),
        }
        split = [
            {**group, **self._kinds[is_matrix][1], "params": chosen, MATRIX: is_matrix}
            for group in groups
            for is_matrix in (True, False)
            if (chosen := [p for p in group["params"] if (p.dim() == 2) is is_matrix])
        ]
        super().__init__(split, {"lr": lr, "weight_decay": weight_decay})
        self._link()

    def _link(self) -> None:
        """Have two optimizers of PyTorch work on these very groups and states."""
        self._two: list[Optimizer] = []
        for is_matrix, (kind, _) in self._kinds.items():
            groups: list[dict[str, Any]] = [group for group in self.param_groups if group[MATRIX] is is_matrix]
            if groups:
                one = kind([torch.zeros(1, 1, requires_grad=True)])
                for group in groups:
                    for name, value in one.defaults.items():
                        group.setdefault(name, value)
                one.param_groups, one.state = groups, self.state
                self._two.append(one)

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step of both."""
        assert closure is None  # noqa: S101 - nothing here has one
        for one in self._two:
            one.step()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        super().load_state_dict(dict(state_dict))
        self._link()
