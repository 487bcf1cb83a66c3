"""Which configuration comes next."""

from hpo.search.grid_search import GridSearch
from hpo.search.random_search import RandomSearch

__all__ = ["GridSearch", "RandomSearch"]
