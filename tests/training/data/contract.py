"""What every data set of images must do; see `hpo.training.data.images.ImageData`."""

from __future__ import annotations

import json
import pickle
import shutil
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpo.declared import described
from hpo.errors import DataError
from hpo.training.data import ImageData, Images, Located

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class ImageDataContract(ABC):
    """Inherit, and give a data set and the place where it lies."""

    @pytest.fixture
    @abstractmethod
    def data(self, place: Path) -> ImageData:
        """A data set, which is found in `place`."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "place"

    @pytest.fixture
    def cache_dir(self, tmp_path: Path) -> Path:
        return tmp_path / "cache"

    @pytest.fixture
    def located(self, data: ImageData, place: Path) -> Located:
        data.check()
        return data.locate(place)

    @pytest.fixture
    def images(self, data: ImageData, located: Located, cache_dir: Path) -> Images:
        return data.load(located, cache_dir=cache_dir)

    def test_is_located_twice_alike(self, data: ImageData, located: Located, place: Path) -> None:
        assert data.locate(place) == located

    def test_located_survives_json(self, located: Located) -> None:
        assert Located.from_json(json.loads(json.dumps(located.as_json()))) == located

    def test_declaration_travels_and_describes_itself(self, data: ImageData) -> None:
        assert pickle.loads(pickle.dumps(data)) == data  # noqa: S301
        json.dumps(described(data))

    def test_loads_what_was_announced(self, located: Located, images: Images) -> None:
        assert images.classes == located.classes
        assert images.train_images.shape == (located.num_train, *located.image_shape)
        assert images.test_images.shape == (located.num_test, *located.image_shape)
        assert images.train_labels.shape == (located.num_train,)
        assert images.test_labels.shape == (located.num_test,)
        assert images.train_images.dtype == images.test_images.dtype == np.uint8
        assert images.train_labels.dtype == images.test_labels.dtype == np.int64

    def test_every_class_has_images_in_every_part(self, images: Images) -> None:
        labels = range(len(images.classes))
        assert set(images.train_labels.tolist()) == set(labels)
        assert set(images.test_labels.tolist()) in (set(labels), set())

    def test_statistics_are_of_the_train_part(self, images: Images) -> None:
        scaled = images.train_images.astype(np.float64) / 255
        np.testing.assert_allclose(images.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(images.std, scaled.std(axis=(0, 1, 2)), rtol=1e-6)
        assert images.mean.dtype == images.std.dtype == np.float32

    def test_arrays_are_read_only(self, images: Images) -> None:
        for name in ARRAYS:
            assert not getattr(images, name).flags.writeable

    def test_decodes_alike_again(self, data: ImageData, located: Located, images: Images, cache_dir: Path) -> None:
        before = {name: np.array(getattr(images, name)) for name in ARRAYS}
        shutil.rmtree(cache_dir)
        again = data.load(located, cache_dir=cache_dir)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(again, name), before[name])

    def test_many_load_at_once(self, data: ImageData, located: Located, cache_dir: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            loaded = list(pool.map(lambda _: data.load(located, cache_dir=cache_dir), range(4)))
        assert len({float(images.mean[0]) for images in loaded}) == 1
        assert len([path for path in cache_dir.iterdir() if not path.name.startswith(".")]) == 1

    def test_another_source_on_this_node_is_refused(self, data: ImageData, located: Located, cache_dir: Path) -> None:
        other = replace(located, fingerprint="0123456789abcdef")
        with pytest.raises(DataError, match=rf"{located.fingerprint} here, but 0123456789abcdef where the run"):
            data.load(other, cache_dir=cache_dir)

    def test_filled_cache_needs_no_source(
        self, data: ImageData, located: Located, images: Images, cache_dir: Path, place: Path
    ) -> None:
        shutil.rmtree(place, ignore_errors=True)
        assert len(data.load(located, cache_dir=cache_dir).train_labels) == located.num_train
