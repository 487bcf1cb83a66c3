"""Hyper-parameter tuning for PyTorch over many GPUs and nodes."""

from hpo.experiment import Experiment
from hpo.goal import Goal, Maximize, Minimize
from hpo.per_trial import PerTrial
from hpo.scheduling import Asha, NoStopping, Patience
from hpo.search import GridSearch, RandomSearch
from hpo.space import choice, grid, lograndint, loguniform, quniform, randint, uniform
from hpo.start_from import Best

__version__ = "0.1.0"

__all__ = [
    "Asha",
    "Best",
    "Experiment",
    "Goal",
    "GridSearch",
    "Maximize",
    "Minimize",
    "NoStopping",
    "Patience",
    "PerTrial",
    "RandomSearch",
    "__version__",
    "choice",
    "grid",
    "lograndint",
    "loguniform",
    "quniform",
    "randint",
    "uniform",
]
