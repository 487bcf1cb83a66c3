"""How one trial trains: models, data, loss and measures, on PyTorch."""

from hpo.training.arrays import ArrayTask
from hpo.training.classification import Classification
from hpo.training.models import Dropout
from hpo.training.multi_label import MultiLabel
from hpo.training.regression import Regression
from hpo.training.supervised import SupervisedTask

__all__ = ["ArrayTask", "Classification", "Dropout", "MultiLabel", "Regression", "SupervisedTask"]
