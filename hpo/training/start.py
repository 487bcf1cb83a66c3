"""Beginning with the weights of another model: what fits is loaded, and what became of each tensor is told."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from hpo.errors import ExperimentError

Fate = Literal["loaded", "missing", "unexpected", "shape differs"]

_WRAPPERS = ("module.", "_orig_mod.")
_TOLD = 3
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class TensorRow:
    """What became of one tensor.

    Attributes:
        name: In the model; of an unexpected one, in the weights.
        fate: "missing": the model has it, the weights do not; "unexpected": the other way round.
        model_shape: None where the model does not have it.
        weights_shape: None where the weights do not have it.
    """

    name: str
    fate: Fate
    model_shape: tuple[int, ...] | None
    weights_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class StartReport:
    """What became of each tensor of the model and of the weights.

    Attributes:
        rows: Those of the model in its order, then the unexpected ones.
        stripped: What the names in the weights began with and the model's do not: "module." of `DataParallel` and
            `DistributedDataParallel`, "_orig_mod." of `torch.compile`. Empty: nothing.
    """

    rows: tuple[TensorRow, ...]
    stripped: str = ""

    @property
    def counts(self) -> Mapping[str, int]:
        """How many tensors had each fate; fates that none had are left out."""
        counted = Counter(row.fate for row in self.rows)
        return {fate: counted[fate] for fate in get_args(Fate) if counted[fate]}

    @property
    def summary(self) -> str:
        """One line, e.g. "60 loaded, 2 shape differs (fc.weight, fc.bias)"."""
        parts = []
        for fate, count in self.counts.items():
            names = [row.name for row in self.rows if row.fate == fate]
            more = ", …" if count > _TOLD else ""
            parts.append(f"{count} {fate}" + ("" if fate == "loaded" else f" ({', '.join(names[:_TOLD])}{more})"))
        return ", ".join(parts) + (f"; names without their {self.stripped!r}" if self.stripped else "")

    def as_json(self) -> dict[str, Any]:
        """The rows as JSON, with what was stripped."""
        return {
            "stripped": self.stripped,
            "tensors": [
                {
                    "name": row.name,
                    "fate": row.fate,
                    "model_shape": row.model_shape and list(row.model_shape),
                    "weights_shape": row.weights_shape and list(row.weights_shape),
                }
                for row in self.rows
            ],
        }


def load_start(model: nn.Module, weights: Mapping[str, Tensor], *, partial: bool = False) -> StartReport:
    """What became of each tensor, now that `model` has those of `weights` that fit it by name and shape.

    Values take the model's types, devices and memory layouts. What all names in the weights begin with since a wrapper
    was saved ("module.", "_orig_mod.") is taken off, and the report says so. A batch norm's counter of batches may
    always be missing: files from before PyTorch 0.4.1 have none.

    Args:
        model: Whose parameters and buffers.
        weights: By name.
        partial: Whether some may not fit. Else nothing is loaded unless all do.

    Raises:
        ExperimentError: Something does not fit, though all must; or nothing at all does.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    given, stripped = _stripped(weights, own)
    rows = [_row(name, own.get(name), given.get(name)) for name in [*own, *(name for name in given if name not in own)]]
    report = StartReport(tuple(rows), stripped)
    if not partial and any(row.fate != "loaded" and not _may_be_missing(row) for row in rows):
        raise ExperimentError(
            f"the weights are not those of this model: {_differences(report)}",
            where="start_from",
            remedy="give the model that they were trained in; or partial=True to load what fits",
        )
    fitting = OrderedDict((row.name, given[row.name]) for row in rows if row.fate == "loaded")
    if not fitting:
        raise ExperimentError(
            f"no tensor of the weights fits this model: {_differences(report)}",
            where="start_from",
            remedy="give weights of the same architecture",
        )
    fitting._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # MNASNet refuses a state without
    model.load_state_dict(fitting, strict=False)
    return report


def _stripped(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The weights by the names that a model without wrappers has, and what was taken off."""
    given, taken = dict(weights), ""
    while prefix := next((prefix for prefix in _WRAPPERS if _all_begin(given, prefix)), ""):
        if _all_begin(own, taken + prefix):
            break
        given = {name.removeprefix(prefix): value for name, value in given.items()}
        taken += prefix
    return given, taken


def _all_begin(names: Mapping[str, Tensor], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _row(name: str, ours: Tensor | None, theirs: Tensor | None) -> TensorRow:
    shapes = (None if ours is None else tuple(ours.shape), None if theirs is None else tuple(theirs.shape))
    if ours is None:
        return TensorRow(name, "unexpected", *shapes)
    if theirs is None:
        return TensorRow(name, "missing", *shapes)
    return TensorRow(name, "loaded" if shapes[0] == shapes[1] else "shape differs", *shapes)


def _may_be_missing(row: TensorRow) -> bool:
    return row.fate == "missing" and row.name.endswith(_COUNTER)


def _differences(report: StartReport) -> str:
    parts = []
    for fate in ("shape differs", "missing", "unexpected"):
        found = [row for row in report.rows if row.fate == fate and not _may_be_missing(row)]
        if found:
            more = f" and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
            parts.append(f"{fate}: {', '.join(map(_words, found[:_TOLD]))}{more}")
    return "; ".join(parts)


def _words(row: TensorRow) -> str:
    if row.fate != "shape differs":
        return row.name
    return f"{row.name} {row.weights_shape} in the weights, {row.model_shape} in the model"
