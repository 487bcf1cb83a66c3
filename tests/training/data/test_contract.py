from __future__ import annotations

from pathlib import Path

import pytest

from hpo.training.data import Cifar10, Digits, ImageData, ImageFolder
from tests.training.data import tiny
from tests.training.data.contract import ImageDataContract


class TestDigits(ImageDataContract):
    @pytest.fixture
    def data(self, place: Path) -> ImageData:
        return Digits()


class TestFallenBack(ImageDataContract):
    @pytest.fixture
    def data(self, place: Path) -> ImageData:
        return Cifar10(otherwise=Digits())


class TestCifar10Folders(ImageDataContract):
    @pytest.fixture
    def data(self, place: Path) -> ImageData:
        tiny.class_folders(place, suffix=".jpg")
        return Cifar10()


class TestCifar10Archive(ImageDataContract):
    @pytest.fixture
    def data(self, place: Path, tmp_path: Path) -> ImageData:
        place.mkdir()
        tiny.archive(tiny.class_folders(tmp_path / "images"), place / "cifar10.tar.xz")
        return Cifar10()


class TestCifar10PythonBatches(ImageDataContract):
    @pytest.fixture
    def data(self, place: Path) -> ImageData:
        tiny.python_batches(place)
        return Cifar10()


class TestCifar10PythonArchive(ImageDataContract):
    @pytest.fixture
    def data(self, place: Path, tmp_path: Path) -> ImageData:
        place.mkdir()
        folder, _ = tiny.python_batches(tmp_path / "batches")
        tiny.archive(folder.parent, place / "cifar-10-python.tar.gz")
        return Cifar10()


class TestImageFolder(ImageDataContract):
    @pytest.fixture
    def data(self, place: Path) -> ImageData:
        return ImageFolder(tiny.class_folders(place, classes=("cat", "dog"), side=12))


class TestImageFolderWithoutTest(ImageDataContract):
    @pytest.fixture
    def data(self, place: Path) -> ImageData:
        return ImageFolder(tiny.class_folders(place, classes=("cat", "dog"), parts=("",)), size=16)
