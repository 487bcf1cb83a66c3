"""Images, tables and other samples: where they are, what they look like in memory, and how a trial is fed with them."""

from hpo.training.data.chunk_folder import ChunkFolder
from hpo.training.data.chunks import Chunks
from hpo.training.data.cifar10 import Cifar10
from hpo.training.data.digits import Digits
from hpo.training.data.image_folder import ImageFolder
from hpo.training.data.images import ImageData, Images, Located, default_cache_dir
from hpo.training.data.samples import Samples
from hpo.training.data.table_file import TableFile
from hpo.training.data.tables import Arrays, SklearnTable, TableData

__all__ = [
    "Arrays",
    "ChunkFolder",
    "Chunks",
    "Cifar10",
    "Digits",
    "ImageData",
    "ImageFolder",
    "Images",
    "Located",
    "Samples",
    "SklearnTable",
    "TableData",
    "TableFile",
    "default_cache_dir",
]
