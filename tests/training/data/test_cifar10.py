from __future__ import annotations

import hashlib
import http.server
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hpo.errors import DataError, ExperimentError
from hpo.training.data import Cifar10, Digits, ImageFolder, cifar10
from tests.training.data import tiny


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return tiny.class_folders(tmp_path / "data", num=2)


# --- where it looks ---


@pytest.mark.parametrize("inside", ["", "cifar10-jpeg", "CIFAR10_images"])
def test_class_folders_here_or_in_a_sub_folder(tmp_path: Path, inside: str) -> None:
    tiny.class_folders(tmp_path / inside)
    located = Cifar10().locate(tmp_path)
    assert (located.dataset, located.kind, located.source) == ("cifar10", "folder", tmp_path / inside)
    assert located.classes == tiny.CIFAR_CLASSES
    assert (located.num_train, located.num_test, located.image_shape) == (30, 30, (32, 32, 3))
    assert located.fell_back is None


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("inside", ["", "./", "some/folder/"])
def test_archives_hold_what_the_folders_hold(
    folders: Path, tmp_path: Path, cache_dir: Path, suffix: str, inside: str
) -> None:
    place = tmp_path / "archives"
    place.mkdir()
    tiny.archive(folders, place / f"my-cifar10-jpeg.{suffix}", inside=inside)
    located = Cifar10().locate(place)
    assert (located.kind, located.num_train, located.num_test) == ("archive", 20, 20)
    packed = Cifar10().load(located, cache_dir=cache_dir)
    plain = Cifar10().load(Cifar10().locate(folders), cache_dir=cache_dir)
    np.testing.assert_array_equal(packed.train_images, plain.train_images)
    np.testing.assert_array_equal(packed.test_images, plain.test_images)
    np.testing.assert_array_equal(packed.train_labels, plain.train_labels)


def test_the_archive_itself_may_be_named(folders: Path, tmp_path: Path) -> None:
    path = tiny.archive(folders, tmp_path / "cifar10.tar")
    assert Cifar10().locate(path).source == path


@pytest.mark.parametrize("form", ["place", "folder", "archive"])
def test_python_batches(tmp_path: Path, cache_dir: Path, form: str) -> None:
    folder, images = tiny.python_batches(tmp_path / "here")
    place = folder if form == "folder" else folder.parent
    if form == "archive":
        place = tmp_path / "packed"
        place.mkdir()
        tiny.archive(folder.parent, place / "cifar-10-python.tar.gz")
    located = Cifar10().locate(place)
    assert (located.kind, located.num_train, located.num_test) == ("python", 100, 20)
    loaded = Cifar10().load(located, cache_dir=cache_dir)
    np.testing.assert_array_equal(loaded.train_images, images)
    assert loaded.train_labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_environment_then_data_and_nowhere_else(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Cifar10().locate(None).source == folders
    other = tiny.class_folders(tmp_path / "other", num=1)
    monkeypatch.setenv("HPO_DATA", str(other))
    assert Cifar10().locate(None).source == other
    assert Cifar10().locate(folders).source == folders
    monkeypatch.setenv("HPO_DATA", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="empty: CIFAR-10 is not here"):
        Cifar10().locate(None)


def test_what_is_not_cifar10_is_passed_over(tmp_path: Path) -> None:
    tiny.class_folders(tmp_path, classes=("left", "right"))
    tiny.archive(tmp_path / "test", tmp_path / "photos.tar")
    assert Cifar10(otherwise=Digits()).locate(tmp_path).dataset == "digits"


def test_a_second_survey_reads_no_archive(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    path = tiny.archive(folders, tmp_path / "cifar10.tar.gz")
    first = Cifar10().locate(path)
    Cifar10().load(first, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(tarfile, "open", None)
    assert Cifar10().locate(path) == first


def test_a_place_that_cannot_be_looked_into() -> None:
    with pytest.raises(DataError, match="xxx: the folder cannot be looked into: File name too long"):
        Cifar10(otherwise=Digits()).locate(Path("x" * 300))


# --- falling back ---


def test_nowhere_and_not_to_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: CIFAR-10 is not here, and cannot be downloaded") as raised:
        Cifar10().locate(tmp_path / "nothing")
    for word in ("train,test", "tar.xz", "cifar-10-batches-py", "--data-dir", "HPO_DATA", "otherwise=Digits"):
        assert word in raised.value.remedy
    assert not (tmp_path / "nothing").exists()


def test_fall_back_is_one_loud_line(tmp_path: Path) -> None:
    located = Cifar10(otherwise=Digits()).locate(tmp_path)
    assert located.dataset == "digits"
    assert located.fell_back is not None
    assert f"CIFAR-10 is neither in {tmp_path} nor to be downloaded (" in located.fell_back
    assert located.fell_back.endswith("): using scikit-learn's digits instead")
    assert "\n" not in located.fell_back


def test_fall_back_on_a_folder(tmp_path: Path, cache_dir: Path) -> None:
    own = tiny.class_folders(tmp_path / "own", classes=("a", "b"))
    data = Cifar10(otherwise=ImageFolder(own))
    located = data.locate(tmp_path / "nothing")
    assert (located.dataset, located.fell_back is None) == ("folder:own", False)
    assert data.load(located, cache_dir=cache_dir).classes == ("a", "b")


def test_otherwise_must_be_data() -> None:
    with pytest.raises(ExperimentError, match="otherwise: 'digits' is not a data set of images"):
        Cifar10(otherwise="digits").check()  # type: ignore[arg-type]
    with pytest.raises(ExperimentError, match="size: 0 is not an integer"):
        Cifar10(otherwise=ImageFolder("x", size=0)).check()


# --- damage is never a reason to fall back ---

eager = Cifar10(otherwise=Digits())


def test_empty_class(folders: Path) -> None:
    for image in (folders / "test" / "frog").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"test/frog: class 'frog' has no images in the test part"):
        eager.locate(folders)


def test_missing_class_and_missing_part(folders: Path) -> None:
    shutil.rmtree(folders / "train" / "ship")
    with pytest.raises(DataError, match=r"train/ship: class 'ship' has no images in the train part"):
        eager.locate(folders)
    shutil.rmtree(folders / "test")
    shutil.copytree(folders / "train" / "cat", folders / "train" / "ship")
    with pytest.raises(DataError, match=r"test/airplane: class 'airplane' has no images in the test part"):
        eager.locate(folders)


def test_class_too_many(folders: Path) -> None:
    (folders / "train" / "unicorn").mkdir()
    with pytest.raises(DataError, match=r"train/unicorn: 'unicorn' is not one of the 10 classes that the data set has"):
        eager.locate(folders)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_cut_off_archive(folders: Path, tmp_path: Path, suffix: str, share: float) -> None:
    path = tiny.archive(folders, tmp_path / f"cifar10.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=rf"cifar10.{suffix}: the archive is cut off or damaged after "):
        eager.locate(tmp_path / path.name)


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz"])
def test_archive_with_changed_bytes(folders: Path, tmp_path: Path, suffix: str) -> None:
    path = tiny.archive(folders, tmp_path / f"cifar10.{suffix}")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(DataError, match="the archive is cut off or damaged after "):
        eager.locate(path)


def test_archive_that_ends_between_two_files(folders: Path, tmp_path: Path) -> None:
    path = tiny.archive(folders, tmp_path / "cifar10.tar")
    with tarfile.open(path) as file:
        boundary = next(member.offset for member in file if member.name == "train/truck/0001.png")
    path.write_bytes(path.read_bytes()[:boundary])
    with pytest.raises(DataError, match=r"cut off or damaged after train/truck/0000.png: its end is missing"):
        eager.locate(path)


def test_empty_class_in_an_archive(folders: Path, tmp_path: Path) -> None:
    for image in (folders / "test" / "frog").iterdir():
        image.unlink()
    path = tiny.archive(folders, tmp_path / "cifar10.tar.xz")
    with pytest.raises(DataError, match=r"cifar10.tar.xz: test/frog: class 'frog' has no images"):
        eager.locate(path)


def test_damaged_image(folders: Path, cache_dir: Path) -> None:
    image = folders / "train" / "cat" / "0001.png"
    image.write_bytes(image.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"train/cat/0001.png: the image is damaged: .*"):
        eager.load(eager.locate(folders), cache_dir=cache_dir)
    assert not [path for path in cache_dir.iterdir() if path.is_dir()]


def test_damaged_image_in_an_archive(folders: Path, tmp_path: Path, cache_dir: Path) -> None:
    (folders / "train" / "cat" / "0001.png").write_bytes(b"no image")
    located = eager.locate(tiny.archive(folders, tmp_path / "cifar10.tar"))
    with pytest.raises(DataError, match=r"cifar10.tar: train/cat/0001.png: the image is damaged"):
        eager.load(located, cache_dir=cache_dir)


def test_image_of_another_size(folders: Path, cache_dir: Path) -> None:
    (folders / "train" / "cat" / "0001.png").write_bytes(tiny.encoded(tiny.pixels(0, height=30)))
    with pytest.raises(DataError, match=r"0001.png: the image is 30 x 32 pixels, but they must be 32 x 32"):
        eager.load(eager.locate(folders), cache_dir=cache_dir)


def test_source_that_is_gone(folders: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    located = Cifar10().locate(folders)
    moved = folders.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="CIFAR-10 is not on this node"):
        Cifar10().load(located, cache_dir=cache_dir)
    monkeypatch.setenv("HPO_DATA", str(moved))
    assert len(Cifar10().load(located, cache_dir=cache_dir).train_labels) == 20


def test_source_that_changed(folders: Path, cache_dir: Path) -> None:
    located = Cifar10().locate(folders)
    (folders / "train" / "cat" / "0002.png").write_bytes(tiny.encoded(tiny.pixels(7)))
    now = Cifar10().locate(folders).fingerprint
    with pytest.raises(DataError, match=f"its fingerprint is {now} here, but {located.fingerprint} where"):
        Cifar10().load(located, cache_dir=cache_dir)


def test_fingerprint_does_not_depend_on_the_place(folders: Path, tmp_path: Path) -> None:
    before = Cifar10().locate(folders)
    after = Cifar10().locate(folders.rename(tmp_path / "elsewhere"))
    assert replace(after, source=before.source) == before


# --- downloading ---


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What is put into this folder can be downloaded; torchvision expects the sums of what is there."""
    root = tmp_path / "server"
    root.mkdir()
    handler = partial(_Silent, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/cifar-10-python.tar.gz"
        monkeypatch.setattr(cifar10, "_URL", url)
        monkeypatch.setattr("torchvision.datasets.CIFAR10.url", url)
        yield root
        running.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


def _expect(monkeypatch: pytest.MonkeyPatch, folder: Path, packed: Path) -> None:
    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    kind = "torchvision.datasets.CIFAR10"
    names = [f"data_batch_{number}" for number in range(1, 6)]
    monkeypatch.setattr(f"{kind}.tgz_md5", md5(packed))
    monkeypatch.setattr(f"{kind}.train_list", [[name, md5(folder / name)] for name in names])
    monkeypatch.setattr(f"{kind}.test_list", [["test_batch", md5(folder / "test_batch")]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(f"{kind}.meta", meta)


def test_download(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = tiny.python_batches(tmp_path / "batches")
    _expect(monkeypatch, folder, tiny.archive(folder.parent, server / "cifar-10-python.tar.gz"))
    place = tmp_path / "place"
    located = Cifar10().locate(place)
    assert (located.kind, located.source, located.num_train) == ("python", place / "cifar-10-batches-py", 100)
    assert [path.name for path in place.iterdir()] == ["cifar-10-batches-py"]
    assert Cifar10().locate(place) == located


def test_download_of_something_else(server: Path, tmp_path: Path) -> None:
    folder, _ = tiny.python_batches(tmp_path / "batches")
    tiny.archive(folder.parent, server / "cifar-10-python.tar.gz")
    place = tmp_path / "place"
    with pytest.raises(DataError, match=r"cannot be downloaded to here \(File not found or corrupted"):
        Cifar10().locate(place)
    assert not list(place.iterdir())


def test_server_without_the_file(server: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be downloaded to here \(.*not found"):
        Cifar10().locate(tmp_path / "place")


# --- the real images ---


def test_the_real_archive(repository: Path, cache_dir: Path) -> None:
    path = repository.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the repository")
    located = Cifar10().locate(path.parent)
    assert (located.num_train, located.num_test, located.classes) == (50_000, 10_000, tiny.CIFAR_CLASSES)
