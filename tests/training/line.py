"""A task of one's own: a line through noisy points, with data, loss and measures that the package knows nothing of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpo.protocols import Dataset, Setting
from hpo.training.learning import Batch, Source, Stream, Tally
from hpo.training.rules import Rule, number
from hpo.training.settings import DataSettings
from hpo.training.supervised import SupervisedTask


class Line(nn.Module):
    def __init__(
        self, in_features: int, *, dropout: float = 0.0, broken: bool = False, room: int | None = None
    ) -> None:
        super().__init__()
        self.room, self.seen = room, []  # samples that there is memory for
        self.layer = nn.Linear(in_features, 1)
        self.dropout = nn.Dropout(dropout)
        self.broken = broken

    def forward(self, inputs: Tensor) -> Tensor:
        if self.broken:
            raise RuntimeError("the model is broken")
        self.seen.append((self.training, len(inputs)))
        if self.room is not None and len(inputs) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.layer(self.dropout(inputs)).squeeze(1)


@dataclass(frozen=True)
class LineFit(SupervisedTask):
    model: Any = Line
    slope: float = 3.0

    @property
    def gives(self) -> tuple[str, ...]:
        return ("in_features",)

    @property
    def loss_rules(self) -> Mapping[str, Rule]:
        return {"power": number(2, least=1)}

    @property
    def train_measures(self) -> tuple[str, ...]:
        return ("loss",)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss",)

    def loss(self, outputs: Tensor, targets: Tensor, *, power: float = 2.0) -> Tensor:
        return (outputs - targets).abs().pow(power).mean()

    def tally(self, given: Mapping[str, Any], *, device: torch.device) -> Tally:
        return MeanLoss(device)

    def locate(self, data_dir: Path | None) -> Dataset:
        return Dataset("line", f"slope-{self.slope}", located={"slope": self.slope})

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        return {"in_features": 2}

    def open(self, setting: Setting) -> Source[DataSettings]:
        return Points(setting.dataset.located["slope"])


class MeanLoss(Tally):
    def __init__(self, device: torch.device) -> None:
        self.sum, self.count = torch.zeros((), device=device), torch.zeros((), device=device)

    def clear(self) -> None:
        self.sum.zero_()
        self.count.zero_()

    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        self.sum += loss * len(targets)
        self.count += len(targets)

    def sums(self) -> list[Tensor]:
        return [self.sum, self.count]

    def result(self) -> dict[str, Tensor]:
        return {"loss": self.sum / self.count}


class Points(Source[DataSettings]):
    def __init__(self, slope: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.rand(64, 2, generator=generator)
        self.targets = slope * self.inputs[:, 0] + 0.1 * torch.randn(64, generator=generator)

    @property
    def given(self) -> Mapping[str, Any]:
        return {"in_features": 2}

    def training(self, settings: DataSettings, *, batch_size: int, seed: int) -> Stream:
        return Shuffled(self.inputs[:40], self.targets[:40], batch_size=batch_size, seed=seed)

    def validation(self, settings: DataSettings) -> list[Batch]:
        return [(self.inputs[40:], self.targets[40:])]

    def testing(self, settings: DataSettings) -> list[Batch]:
        return self.validation(settings)


class Shuffled(Stream):
    def __init__(self, inputs: Tensor, targets: Tensor, *, batch_size: int, seed: int) -> None:
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def num_samples(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Batch]:
        self.begun_with = self.generator.get_state()
        for chosen in torch.randperm(len(self.inputs), generator=self.generator).split(self.batch_size):
            yield self.inputs[chosen], self.targets[chosen]

    def state(self) -> dict[str, Any]:
        begun_with = self.begun_with if self.position else self.generator.get_state()
        return {"generator": begun_with, "position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.position = state.get("position", 0)
