"""What happened: the store of runs, written through a journal, read with SQL."""

from hpo.results.journal import read_entries
from hpo.results.layout import Place, RunPaths, new_run_id, write_atomically
from hpo.results.lock import is_held
from hpo.results.query import Store
from hpo.results.run_store import RunStore
from hpo.results.segment import Entry, Torn
from hpo.results.tensorboard import TensorBoardWriter

__all__ = [
    "Entry",
    "Place",
    "RunPaths",
    "RunStore",
    "Store",
    "TensorBoardWriter",
    "Torn",
    "is_held",
    "new_run_id",
    "read_entries",
    "write_atomically",
]
