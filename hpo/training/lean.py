"""Optimizers without PyTorch's compiler."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch.optim import Optimizer

_Kind = TypeVar("_Kind", bound=Optimizer)


def lean(kind: type[_Kind]) -> type[_Kind]:
    """The optimizer, without importing PyTorch's compiler in order to tell it to leave the optimizer alone.

    That import takes each process a second or two; what the methods do is the same.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    plain: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    plain["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast("type[_Kind]", type(kind.__name__, (kind,), plain))


if TYPE_CHECKING:
    LeanOptimizer = Optimizer
else:
    LeanOptimizer = lean(Optimizer)
    """What an optimizer of our own inherits from."""
