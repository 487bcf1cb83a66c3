"""Labelled images: where they are, what they look like decoded, and how a trial is fed with them."""

from hpo.training.data.cifar10 import Cifar10
from hpo.training.data.digits import Digits
from hpo.training.data.image_folder import ImageFolder
from hpo.training.data.images import ImageData, Images, Located, default_cache_dir

__all__ = ["Cifar10", "Digits", "ImageData", "ImageFolder", "Images", "Located", "default_cache_dir"]
