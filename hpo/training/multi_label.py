"""Tables to any number of labels a row: binary cross-entropy, and measures by label and over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpo.training.data import ChunkFolder, TableData
from hpo.training.feed import FedTask, Feed
from hpo.training.learning import Tally
from hpo.training.regression import check_outputs
from hpo.training.rules import Rule, number
from hpo.training.shard_feed import shard_feed
from hpo.training.tabular import Labels, TableFeed


@dataclass(frozen=True)
class MultiLabel(FedTask):
    """A model that tells which labels the rows of a table have, each by itself, trained with binary cross-entropy.

    It reports `train_loss, train_accuracy`, and `val_loss, val_accuracy, val_exact_match, val_f1, val_micro_f1`.
    Accuracy is the share of single labels that are right (1 less the Hamming loss), `exact_match` that of rows where
    all are; `f1` is the mean over the labels, where one that is neither there nor predicted has 0; `micro_f1` is that
    of all labels counted together. The hyper-parameter `pos_weight` is how often a label that is there counts in the
    training loss; `val_loss` is without it, so that it compares trials.

    Args:
        model: Gives logits (B, num_outputs) of normalised features (B, in_features). It may ask for `in_features` and
            `num_outputs`, also named `out_features` or `num_classes`. A label is predicted where its logit is above 0.
        data: The table, or shards of one; its targets are 0 and 1, (N, num_outputs).
    """

    data: TableData | ChunkFolder

    @property
    def feed(self) -> Feed:
        if isinstance(self.data, ChunkFolder):
            return shard_feed(self.data, Labels())
        return TableFeed(self.data, Labels())

    @property
    def loss_rules(self) -> Mapping[str, Rule]:
        return {"pos_weight": number(2.0, above=0)}

    @property
    def loss_numbers(self) -> tuple[str, ...]:
        return ("pos_weight",)

    @property
    def train_measures(self) -> tuple[str, ...]:
        return ("loss", "accuracy")

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "accuracy", "exact_match", "f1", "micro_f1")

    def loss(self, outputs: Tensor, targets: Tensor, *, pos_weight: float | Tensor = 1.0) -> Tensor:
        check_outputs(outputs, targets)
        weight = pos_weight if isinstance(pos_weight, Tensor) else outputs.new_full((), pos_weight)
        return functional.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weight)

    def tally(self, given: Mapping[str, Any], *, device: torch.device) -> Tally:
        return LabelTally(given["num_outputs"], device=device)


class LabelTally(Tally):
    """Counts what is right and wrong of each label.

    Args:
        num_labels: Labels, K.
        device: Where the counts are kept.
    """

    def __init__(self, num_labels: int, *, device: torch.device) -> None:
        self._counts_3K = torch.zeros(3, num_labels, dtype=torch.int64, device=device)
        self._exact, self._count = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        self._loss = torch.zeros((), dtype=torch.float64, device=device)

    def clear(self) -> None:
        for total in self.sums():
            total.zero_()

    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        said, true = outputs > 0, targets > 0.5
        self._counts_3K.add_(torch.stack([said & true, said, true]).sum(1))
        self._exact.add_((said == true).all(1).sum())
        self._count.add_(len(targets))
        self._loss.add_(loss, alpha=len(targets))

    def sums(self) -> list[Tensor]:
        return [self._counts_3K, self._exact, self._count, self._loss]

    def result(self) -> dict[str, Tensor]:
        """`loss`, `accuracy` (of single labels), `exact_match` (of rows), `f1` (mean over labels), `micro_f1`."""
        both, said, true = self._counts_3K.double()
        wrong = said + true - 2 * both
        return {
            "loss": self._loss / self._count,
            "accuracy": 1 - wrong.mean() / self._count,
            "exact_match": self._exact.double() / self._count,
            "f1": (2 * both / (said + true).clamp(min=1)).mean(),
            "micro_f1": 2 * both.sum() / (said + true).sum().clamp(min=1),
        }
