"""Whole files or none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from hpo.files import sync_folder, write_atomically


def test_a_file_appears_whole_and_its_size_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def write(file: BinaryIO) -> None:
        file.write(b"first")
        assert not path.exists()
        file.write(b" second")

    assert write_atomically(path, write) == 12
    assert path.read_bytes() == b"first second"
    assert write_atomically(path, lambda file: file.write(b"new")) == 3
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("a", b"new")]


def test_what_breaks_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def breaks(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyError("on the way")

    with pytest.raises(KeyError, match="on the way"):
        write_atomically(path, breaks)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("a", b"old")]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    synced: list[bool] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(path.exists())
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", noted)
    write_atomically(path, lambda file: file.write(b"content"))
    assert synced == [False, True]  # the file, then its folder


def test_a_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "a", lambda file: file.write(b""))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sync_folder(tmp_path / "nowhere")
