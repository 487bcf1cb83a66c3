"""A network as users have it, which needs no hpo."""

from __future__ import annotations

from torch import Tensor, nn


class Net(nn.Module):
    """One hidden layer on the flattened input."""

    def __init__(self, in_features: int, num_classes: int, *, hidden: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs
