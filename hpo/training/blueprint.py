"""What of a model a captured step has built in: two models with equal blueprints can share one, weights swapped.

A CUDA graph repeats what Python did while it was captured. So whatever Python looked at must be the same again: the
modules, their settings, the shapes of their tensors. Values of parameters and of buffers may differ; they are copied.
Nothing is assumed equal: a value of which nobody knows how to compare it equals nothing, not even itself. What a
model reads outside of itself (a global variable that a script changes from trial to trial) is not looked at.
"""

from __future__ import annotations

import hashlib
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

Blueprint = Mapping[str, object]
"""Descriptions by where they belong, e.g. "features.0.kernel_size"."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_NAMED = (type, torch.dtype, torch.device, torch.memory_format, Enum, types.ModuleType, types.BuiltinFunctionType)
_OWN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
_unlike = count()


def blueprint(model: nn.Module) -> Blueprint:
    """Everything about `model` that a captured step depends on, except values of parameters and buffers."""
    modules = dict(model.named_modules(remove_duplicate=False))
    known: dict[int, str] = {}
    for name, module in modules.items():
        known.setdefault(id(module), name)
        for own, tensor in (module._parameters | module._buffers).items():
            known.setdefault(id(tensor), f"{name}.{own}")
    describe = _Describer(known)
    described: dict[str, object] = {}
    for name, module in modules.items():
        prefix = f"{name}." if name else ""
        described[f"{prefix}class"] = (_Same(type(module)), known[id(module)])
        for own, tensor in (module._parameters | module._buffers).items():
            described[f"{prefix}{own}"] = (own in module._buffers, _form(tensor), known[id(tensor)])
        described |= {f"{prefix}{own}": describe(value) for own, value in vars(module).items() if own not in _OWN}
    return described


def difference(ours: Blueprint, theirs: Blueprint) -> str:
    """The first thing in which two blueprints differ, in words; nothing where they are equal."""
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in ours or name not in theirs:
            return f"only one of the models has {name}"
        if ours[name] != theirs[name]:
            return f"the models differ in {name}"
    return ""


def _form(tensor: Tensor | None) -> object:
    if tensor is None:
        return None
    return (_Same(type(tensor)), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)


class _Describer:
    """Describes values so that equal descriptions mean that a program cannot tell the values apart.

    Args:
        known: Names of the modules and tensors that are described elsewhere, by their ids.
    """

    def __init__(self, known: Mapping[int, str]) -> None:
        self._known = known
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []

    def __call__(self, value: object) -> object:
        if isinstance(value, weakref.ref):
            value = value()
        if isinstance(value, _PLAIN):
            return type(value), repr(value)
        if isinstance(value, _NAMED):
            return _Same(value)
        if id(value) in self._known:
            return "part", self._known[id(value)]
        if id(value) in self._seen:
            return "again", self._seen[id(value)]
        self._seen[id(value)] = len(self._alive)
        self._alive.append(value)  # or its id might come to be that of another value
        return _content(value) or self._function(value) or self._container(value) or self._object(value)

    def _container(self, value: object) -> object:
        if type(value) in (tuple, list):
            return type(value), tuple(map(self, value))  # type: ignore[call-overload]
        if type(value) in (dict, OrderedDict):
            return type(value), tuple((self(key), self(part)) for key, part in value.items())  # type: ignore[attr-defined]
        if type(value) in (set, frozenset):
            return type(value), tuple(map(self, sorted(value, key=repr)))  # type: ignore[call-overload]
        return None

    def _function(self, function: object) -> object:
        if not isinstance(function, types.FunctionType):
            return None
        cells = tuple(self(cell.cell_contents) for cell in function.__closure__ or ())
        return _Same(function.__code__), cells, self(function.__defaults__), self(function.__kwdefaults__)

    def _object(self, value: object) -> object:
        """By what pickle would keep of it: all that there is to a value, or a refusal."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 - whatever a class raises, it cannot be compared
            return "unlike anything", next(_unlike)
        if isinstance(reduced, str):
            return _Same(value)
        make, arguments, *state = reduced
        return (
            self(make),
            self(arguments),
            *(self(list(part) if isinstance(part, Iterator) else part) for part in state),
        )


def _content(values: object) -> object:
    """A tensor that is neither parameter nor buffer is a constant to a graph."""
    if not isinstance(values, (Tensor, np.ndarray)):
        return None
    if isinstance(values, np.ndarray):
        if values.dtype.hasobject:
            return "unlike anything", next(_unlike)
        return values.shape, values.dtype, hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    raw = values.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return _form(values), hashlib.sha256(raw.numpy().tobytes()).hexdigest()


class _Same:
    """Equals only what holds the very same object, which it keeps alive, so that no other can take its place."""

    def __init__(self, held: object) -> None:
        self._held = held

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return False
        return self._held is other._held or (isinstance(self._held, torch.device) and self._held == other._held)

    def __hash__(self) -> int:
        return hash(type(self._held))


def describe(value: object) -> object:
    """Something that equals another such description only where a program cannot tell the values apart."""
    return _Describer({})(value)
