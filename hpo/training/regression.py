"""Tables to numbers: squared, absolute or Huber's loss, and measures in the units of the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpo.errors import ExperimentError
from hpo.training.data import ChunkFolder, TableData
from hpo.training.feed import FedTask, Feed
from hpo.training.learning import Tally
from hpo.training.rules import Rule, number, one_of
from hpo.training.shard_feed import shard_feed
from hpo.training.tabular import Quantities, TableFeed
from hpo.trial import Config

LOSSES = ("mse", "mae", "huber")
"""Values of the hyper-parameter `loss`."""


@dataclass(frozen=True)
class Regression(FedTask):
    """A model that predicts one number or several of the rows of a table.

    It reports `train_loss, val_loss, val_mse, val_mae, val_r2`. The model learns targets that are standardised (mean 0,
    deviation 1 over the train part, validation included), and losses are of these: a `val_loss` of 1 is what the mean
    predicts. `val_mse` and `val_mae` are in the units of the targets, `val_r2` in none; all are means over the outputs.
    What is minimised is the hyper-parameter `loss`: "mse", "mae", or "huber" with `huber_delta`, the deviation
    from which on it is linear. `val_loss` is the squared error whatever is minimised, so that it compares trials.

    Args:
        model: Gives numbers (B, num_outputs) of normalised features (B, in_features). It may ask for `in_features` and
            `num_outputs`, also named `out_features` or `num_classes`.
        data: The table, or shards of one; its targets are numbers (N,) or (N, num_outputs).
    """

    data: TableData | ChunkFolder

    @property
    def feed(self) -> Feed:
        if isinstance(self.data, ChunkFolder):
            return shard_feed(self.data, Quantities())
        return TableFeed(self.data, Quantities())

    @property
    def loss_rules(self) -> Mapping[str, Rule]:
        return {"loss": one_of(*LOSSES), "huber_delta": number(1.0, above=0)}

    @property
    def loss_numbers(self) -> tuple[str, ...]:
        return ("huber_delta",)

    @property
    def train_measures(self) -> tuple[str, ...]:
        return ("loss",)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "mse", "mae", "r2")

    def check_config(self, config: Config) -> None:
        super().check_config(config)
        chosen = config.get("loss", config.get("loss.loss", LOSSES[0]))
        for name in ("huber_delta", "loss.huber_delta"):
            if name in config and chosen != "huber":
                raise ExperimentError(
                    f"loss={chosen!r} does not take it; it belongs to 'huber'",
                    where=name,
                    remedy="let it exist only there: .when(loss='huber'); or leave it out",
                )

    def loss(self, outputs: Tensor, targets: Tensor, *, loss: str = "mse", huber_delta: float | Tensor = 1.0) -> Tensor:
        check_outputs(outputs, targets)
        error = outputs.float() - targets
        if loss == "mse":
            return error.square().mean()
        if loss == "mae":
            return error.abs().mean()
        # Not torch's own, whose delta is no tensor: half the square up to delta, and on from there with its slope.
        near = error.abs().clamp(max=huber_delta)
        return (near * (error.abs() - near / 2)).mean()

    def tally(self, given: Mapping[str, Any], *, device: torch.device) -> Tally:
        return RegressionTally(given["target_std"], device=device)


class RegressionTally(Tally):
    """Sums up errors, targets and their squares, each output by itself.

    Args:
        std: Of each output: what one unit of outputs and targets is in the user's.
        device: Where the sums are kept.
    """

    def __init__(self, std: Sequence[float], *, device: torch.device) -> None:
        self._std = torch.tensor(std, dtype=torch.float64, device=device)
        self._sums_4K = torch.zeros(4, len(std), dtype=torch.float64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)

    def clear(self) -> None:
        for total in self.sums():
            total.zero_()

    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        true = targets.double()
        error = outputs.double() - true
        self._sums_4K.add_(torch.stack([error.square(), error.abs(), true, true.square()]).sum(1))
        self._loss.add_(loss, alpha=len(targets))
        self._count.add_(len(targets))

    def sums(self) -> list[Tensor]:
        return [self._sums_4K, self._loss, self._count]

    def result(self) -> dict[str, Tensor]:
        """`loss`; `mse`, `mae` in the user's units and `r2`, as means over the outputs.

        Where an output's targets are all equal, its R2 is 1 if each is met exactly, else 0, as scikit-learn has it.
        """
        squared, absolute, true, true_squared = self._sums_4K
        spread = true_squared - true.square() / self._count
        is_constant = spread <= 1e-12 * true_squared  # what rounding leaves of 0
        r2 = 1 - squared / torch.where(is_constant, 1.0, spread)
        return {
            "loss": self._loss / self._count,
            "mse": (squared * self._std.square()).mean() / self._count,
            "mae": (absolute * self._std).mean() / self._count,
            "r2": torch.where(is_constant, (squared == 0).double(), r2).mean(),
        }


def check_outputs(outputs: Tensor, targets: Tensor) -> None:
    """Raise ExperimentError for outputs of another shape than the targets, which would be spread over each other."""
    if outputs.shape != targets.shape:
        raise ExperimentError(
            f"its outputs have shape {tuple(outputs.shape)}, not (batch, num_outputs) = {tuple(targets.shape)}",
            where="model",
            remedy="let its last layer have num_outputs outputs",
        )
