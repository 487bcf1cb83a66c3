"""Which trial goes on: pure decisions, without Ray, clocks or files."""

from hpo.scheduling.asha import Asha
from hpo.scheduling.no_stopping import NoStopping
from hpo.scheduling.patience import Patience

__all__ = ["Asha", "NoStopping", "Patience"]
