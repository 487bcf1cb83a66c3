"""At which learning rate does a ResNet-18 learn six classes of CIFAR-10, so that others may begin with its weights?

Expected: with --quick on real images 0.48 validation accuracy at 1e-3, after three epochs of 1,500 images, in 9 min on
          two busy CPU cores (n = 1). The whole study wants a GPU.
Run:      python -m hpo.run experiments/pretrain_resnet.py --quick
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpo import Asha, Experiment, Maximize, PerTrial, loguniform
from hpo.training import Classification
from hpo.training.data import Cifar10, Digits, ImageData, Located, cache, default_cache_dir
from hpo.training.data.sources import check_same
from hpo.training.models import TorchvisionModel


@dataclass(frozen=True)
class SomeClasses(ImageData):
    """Images of some classes of a data set, whose labels are numbered anew in the order given."""

    images: ImageData
    labels: tuple[int, ...]

    @property
    def title(self) -> str:
        return f"{len(self.labels)} classes of {self.images.title}"

    def locate(self, data_dir: Path | None) -> Located:
        whole = self.images.locate(data_dir)
        images = self.images.load(whole, cache_dir=default_cache_dir())
        return replace(
            whole,
            dataset=f"{whole.dataset}:{'+'.join(map(str, self.labels))}",
            classes=tuple(whole.classes[label] for label in self.labels),
            num_train=int(np.isin(images.train_labels, self.labels).sum()),
            num_test=int(np.isin(images.test_labels, self.labels).sum()),
        )

    def decode(self, located: Located, writer: cache.Writer) -> None:
        whole = self.images.locate(located.source)
        check_same(located, whole.fingerprint, where=self.title)
        images = self.images.load(whole, cache_dir=default_cache_dir())
        for part in ("train", "test"):
            pixels, labels = getattr(images, f"{part}_images"), getattr(images, f"{part}_labels")
            chosen = np.flatnonzero(np.isin(labels, self.labels))
            writer.array(f"{part}_images", pixels[chosen].shape)[:] = pixels[chosen]
            numbered = np.argmax(labels[chosen, None] == self.labels, axis=1)
            writer.array(f"{part}_labels", numbered.shape, dtype=np.int64)[:] = numbered


experiment = Experiment(
    task=Classification(
        model=TorchvisionModel("resnet18", small_images="on"),
        data=SomeClasses(Cifar10(otherwise=Digits()), labels=(0, 1, 2, 3, 4, 5)),
    ),
    space={"lr": loguniform(1e-4, 3e-3)},
    fixed={"batch_size": 64, "optimizer": "adamw", "lr_schedule": "cosine", "augment": ("crop", "flip")},
    goal=Maximize("val_accuracy"),
    trials=8,
    policy=Asha(max_epochs=27),
    per_trial=PerTrial(gpus=1),
    quick={"trials": 2, "asha.max_epochs": 3, "train_samples": 1500, "val_samples": 500},
)
