from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpo.errors import DataError, ExperimentError
from hpo.training.data import ImageFolder
from hpo.training.data.class_images import ClassFolders
from hpo.training.data.listing import Layout
from tests.training.data import tiny

CLASSES = ("cat", "dog")


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tiny.class_folders(tmp_path / "photos", classes=CLASSES, side=12)


def test_both_parts(photos: Path, cache_dir: Path) -> None:
    located = ImageFolder(photos).locate(None)
    assert (located.dataset, located.kind, located.classes) == ("folder:photos", "folder", CLASSES)
    assert (located.num_train, located.num_test, located.image_shape) == (6, 6, (12, 12, 3))
    images = ImageFolder(photos).load(located, cache_dir=cache_dir)
    np.testing.assert_array_equal(images.train_images[0], tiny.pixels(0, height=12, width=12))
    np.testing.assert_array_equal(images.test_images[0], tiny.pixels(1000, height=12, width=12))
    assert images.train_labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_no_test_part(tmp_path: Path, cache_dir: Path) -> None:
    root = tiny.class_folders(tmp_path / "flat", classes=CLASSES, parts=("",))
    (root / "README.md").write_text("what is in here")
    located = ImageFolder(root).locate(None)
    assert (located.num_train, located.num_test) == (6, 0)
    assert ImageFolder(root).load(located, cache_dir=cache_dir).test_images.shape == (0, 32, 32, 3)


def test_relative_to_the_current_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    located = ImageFolder("photos").locate(Path("/nowhere"))
    monkeypatch.chdir("/")
    assert located.source == photos


def test_brought_to_one_size(photos: Path, cache_dir: Path) -> None:
    Image.fromarray(np.full((40, 20, 3), 200, np.uint8)).save(photos / "train" / "cat" / "9.png")
    data = ImageFolder(photos, size=10)
    located = data.locate(None)
    assert located.image_shape == (10, 10, 3)
    images = data.load(located, cache_dir=cache_dir)
    assert images.train_images.shape == (7, 10, 10, 3)
    assert (images.train_images[3] == 200).all()


def test_fingerprint_knows_the_size(photos: Path) -> None:
    assert len({ImageFolder(photos, size=size).locate(None).fingerprint for size in (None, 8, 12)}) == 3


def test_image_of_an_odd_size(photos: Path, cache_dir: Path) -> None:
    (photos / "train" / "dog" / "0001.png").write_bytes(tiny.encoded(tiny.pixels(0, height=9, width=12)))
    with pytest.raises(
        DataError, match=r"dog/0001.png: the image is 9 x 12 pixels, but .*train/cat/0000.png is 12 x 12\n.*size=64"
    ):
        ImageFolder(photos).load(ImageFolder(photos).locate(None), cache_dir=cache_dir)


def test_hidden_files_are_no_images(photos: Path) -> None:
    before = ImageFolder(photos).locate(None)
    (photos / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (photos / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (photos / "train" / ".cache").mkdir()
    assert ImageFolder(photos).locate(None) == before


def test_other_files_are_named(photos: Path) -> None:
    (photos / "train" / "cat" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"cat/notes.txt: a class folder holds image files only \(.jpg"):
        ImageFolder(photos).locate(None)


def test_empty_file(photos: Path) -> None:
    (photos / "train" / "cat" / "0000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/0000.png: the image is damaged: the file is empty"):
        ImageFolder(photos).locate(None)


def test_dead_link(photos: Path) -> None:
    (photos / "train" / "cat" / "0009.png").symlink_to(photos / "gone.png")
    with pytest.raises(DataError, match=r"cat/0009.png: the image cannot be found"):
        ImageFolder(photos).locate(None)


def test_first_image_damaged(photos: Path) -> None:
    (photos / "train" / "cat" / "0000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/0000.png: the image is damaged"):
        ImageFolder(photos).locate(None)


def test_class_in_one_part_only(photos: Path) -> None:
    shutil.copytree(photos / "test" / "cat", photos / "test" / "owl")
    with pytest.raises(DataError, match=r"test/owl: 'owl' is not one of the 2 classes that the train part has"):
        ImageFolder(photos).locate(None)


def test_empty_class(photos: Path) -> None:
    (photos / "train" / "owl").mkdir()
    with pytest.raises(DataError, match=r"train/owl: class 'owl' has no images in the train part"):
        ImageFolder(photos).locate(None)


def test_too_few_classes(photos: Path) -> None:
    shutil.rmtree(photos / "train")
    with pytest.raises(DataError, match=r"photos/train: 0 class folders, but at least 2 are needed"):
        ImageFolder(photos).locate(None)


def test_validation_part(photos: Path) -> None:
    (photos / "val").mkdir()
    with pytest.raises(DataError, match=r"photos/val: a validation part of its own is not read.*train_ratio"):
        ImageFolder(photos).locate(None)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: there is no such folder"):
        ImageFolder(tmp_path / "gone").locate(None)


def test_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: the folder cannot be read: No such file"):
        ClassFolders(tmp_path / "gone", layout=Layout()).fingerprint()


def test_folder_that_is_not_on_this_node(photos: Path, cache_dir: Path) -> None:
    located = ImageFolder(photos).locate(None)
    shutil.rmtree(photos)
    with pytest.raises(DataError, match="photos: the folder is not on this node"):
        ImageFolder(photos).load(located, cache_dir=cache_dir)


@pytest.mark.parametrize("size", [0, -3, 1.5, True])
def test_size_is_a_positive_integer(size: object) -> None:
    with pytest.raises(ExperimentError, match=f"size: {size!r} is not an integer of at least 1"):
        ImageFolder("x", size=size).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["", None, 3])
def test_path_is_a_path(path: object) -> None:
    with pytest.raises(ExperimentError, match=f"path: {path!r} is not a path"):
        ImageFolder(path).check()  # type: ignore[arg-type]
