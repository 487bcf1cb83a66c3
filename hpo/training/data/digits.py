"""1,797 handwritten digits that come with scikit-learn: always there, and trained on in a second."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpo.training.data import cache
from hpo.training.data.images import ImageData, Located
from hpo.training.data.sources import check_same, digest

_CLASSES = tuple("0123456789")
_FINGERPRINT = "3607f85458f813d1"
_NUM_TRAIN, _NUM_TEST = 1433, 364


@dataclass(frozen=True)
class Digits(ImageData):
    """scikit-learn's digits, 8 x 8 pixels of one channel; every fifth of each class is the test part.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """

    @property
    def title(self) -> str:
        return "scikit-learn's digits"

    def locate(self, data_dir: Path | None) -> Located:
        # The fingerprint is known, for importing scikit-learn takes longer than many a study on these images.
        return Located(
            dataset="digits",
            kind="embedded",
            source=None,
            classes=_CLASSES,
            fingerprint=_FINGERPRINT,
            num_train=_NUM_TRAIN,
            num_test=_NUM_TEST,
            image_shape=(8, 8, 1),
        )

    def decode(self, located: Located, writer: cache.Writer) -> None:
        shades, labels = _embedded()
        pixels = (shades * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8, 1)
        check_same(located, digest(pixels.tobytes(), labels.tobytes()), where="scikit-learn's digits")
        in_test = _every_fifth_of_its_class(labels)
        for part, chosen in (("train", ~in_test), ("test", in_test)):
            writer.array(f"{part}_images", pixels[chosen].shape)[:] = pixels[chosen]
            writer.array(f"{part}_labels", labels[chosen].shape, dtype=np.int64)[:] = labels[chosen]


def _embedded() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N, 64) shades from 0 to 16 and (N,) labels, from scikit-learn's own file.

    Importing scikit-learn for it takes a second and a half; many a study on these images takes less.
    """
    package = importlib.util.find_spec("sklearn")
    file = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package and package.origin else None
    if file is not None and file.is_file():
        rows = np.loadtxt(file, delimiter=",")
        return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.data, bunch.target.astype(np.int64)


def _every_fifth_of_its_class(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    chosen = np.zeros(len(labels), np.bool_)
    for label in range(len(_CLASSES)):
        chosen[np.flatnonzero(labels == label)[::5]] = True
    return chosen
