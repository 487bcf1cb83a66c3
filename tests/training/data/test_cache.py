from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpo.errors import DataError
from hpo.training.data import Digits, Located, cache, default_cache_dir


@pytest.fixture
def located() -> Located:
    return Digits().locate(None)


def _entry(cache_dir: Path) -> Path:
    (entry,) = (path for path in cache_dir.iterdir() if path.is_dir())
    return entry


def test_entry_is_named_by_data_set_and_fingerprint(located: Located, tmp_path: Path) -> None:
    Digits().load(located, cache_dir=tmp_path)
    assert _entry(tmp_path).name == f"digits-{located.fingerprint}"
    entry = cache.Entry(tmp_path, dataset="folder:my photos/x", fingerprint="ab")
    assert entry.open() is None


def test_decoded_once(located: Located, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Digits().load(located, cache_dir=tmp_path)
    monkeypatch.setattr(Digits, "decode", None)
    second = Digits().load(located, cache_dir=tmp_path)
    assert isinstance(second.train_images, np.memmap)
    np.testing.assert_array_equal(first.train_images, second.train_images)


@pytest.mark.parametrize("name", ["meta.json", "train_images.npy", "test_labels.npy"])
@pytest.mark.parametrize("keep", [None, 0, 100])
def test_a_damaged_entry_is_made_anew(located: Located, tmp_path: Path, name: str, keep: int | None) -> None:
    before = np.array(Digits().load(located, cache_dir=tmp_path).train_images)
    path = _entry(tmp_path) / name
    whole = path.read_bytes()
    path.unlink() if keep is None else path.write_bytes(whole[:keep])
    np.testing.assert_array_equal(Digits().load(located, cache_dir=tmp_path).train_images, before)
    assert path.read_bytes() == whole


def test_an_entry_of_another_format_is_made_anew(
    located: Located, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Digits().load(located, cache_dir=tmp_path)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert cache.Entry(tmp_path, dataset="digits", fingerprint=located.fingerprint).open() is None
    Digits().load(located, cache_dir=tmp_path)
    assert f'"format": {cache.FORMAT}' in (_entry(tmp_path) / "meta.json").read_text()


def test_what_a_killed_process_left_is_removed(located: Located, tmp_path: Path) -> None:
    leftover = tmp_path / f".digits-{located.fingerprint}.new"
    leftover.mkdir()
    (leftover / "train_images.npy").write_bytes(b"half")
    Digits().load(located, cache_dir=tmp_path)
    assert not leftover.exists()


def test_a_cache_that_cannot_be_written(located: Located, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"file/cache: decoded images cannot be written here: Not a dir.*\n.*HPO_CACHE"):
        Digits().load(located, cache_dir=tmp_path / "file" / "cache")


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_CACHE", "/fast/disk")
    assert default_cache_dir() == Path("/fast/disk")
    monkeypatch.delenv("HPO_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "hpo"


def test_a_constant_channel_has_deviation_one() -> None:
    images = np.zeros((5, 4, 4, 2), np.uint8)
    images[..., 1] = np.random.default_rng(0).integers(0, 256, (5, 4, 4))
    mean, std = cache.channel_statistics(images)
    assert (mean[0], std[0]) == (0, 1)
    np.testing.assert_allclose(std[1], (images[..., 1] / 255).std(), rtol=1e-6)
