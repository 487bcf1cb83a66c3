"""Tasks on small tables, in a module that a new process imports quickly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.training import Classification, MultiLabel, Regression
from hpo.training.data import Arrays
from hpo.training.models import Mlp


def product() -> tuple[NDArray[Any], NDArray[Any]]:
    """200 rows of five features, and a number of which two of them tell most."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 5))
    return inputs, 100 + 20 * inputs[:, 0] * inputs[:, 1] + generator.normal(size=200)


def numbers() -> tuple[NDArray[Any], NDArray[Any]]:
    """100 rows of three features of very different scales, and a sum of two of them."""
    inputs = np.random.default_rng(0).normal(size=(100, 3)) * [1, 1e3, 1e-2] + [0, 1e6, 5]
    return inputs, 40 + 3 * inputs[:, 0] + (inputs[:, 1] - 1e6) / 500


def classes() -> tuple[NDArray[Any], NDArray[Any]]:
    inputs, targets = numbers()
    return inputs, np.where(targets > 42, "high", np.where(targets > 38, "middle", "low"))


def labels() -> tuple[NDArray[Any], NDArray[Any]]:
    inputs, targets = numbers()
    return inputs, np.stack([targets > 40, targets > 43], axis=1)


PRODUCT = Regression(model=Mlp, data=Arrays(product))
NUMBERS = Regression(model=Mlp, data=Arrays(numbers))
CLASSES = Classification(model=Mlp, data=Arrays(classes))
LABELS = MultiLabel(model=Mlp, data=Arrays(labels))
