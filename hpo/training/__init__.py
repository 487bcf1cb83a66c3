"""How one trial trains: models, data, loss and measures, on PyTorch."""

from hpo.training.classification import Classification
from hpo.training.models import Dropout
from hpo.training.supervised import SupervisedTask

__all__ = ["Classification", "Dropout", "SupervisedTask"]
