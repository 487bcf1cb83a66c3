from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpo.training.data import Digits, Images


@pytest.fixture
def digits(tmp_path: Path) -> Images:
    return Digits().load(Digits().locate(None), cache_dir=tmp_path)


def test_every_image_is_there(digits: Images) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    both = np.concatenate([digits.train_images, digits.test_images])[..., 0]
    expected = (bunch.images * 255 / 16).round().astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, expected))
    assert both.max() == 255


def test_a_fifth_of_each_class_is_the_test_part(digits: Images) -> None:
    train, test = np.bincount(digits.train_labels), np.bincount(digits.test_labels)
    assert (test == np.ceil((train + test) / 5)).all()


def test_parts_share_no_image(digits: Images) -> None:
    assert not set(map(bytes, digits.train_images)) & set(map(bytes, digits.test_images))
