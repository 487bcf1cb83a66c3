"""The files of checkpoints: in a folder and in a bucket alike, and without waiting for the bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo.engine.checkpoint_files import BucketFiles, CheckpointFiles, LocalFiles, files_of
from hpo.engine.checkpoint_writer import CheckpointWriter
from hpo.engine.worker import Printer
from hpo.results import RunPaths
from hpo.storage import is_there, parted, storage_at
from tests.buckets import Buckets
from tests.engine.toy import ToySnapshot


def put(paths: RunPaths, trial: int, step: int, state: bytes = b"state") -> str:
    """A checkpoint is written; its name in the journal."""
    path = paths.checkpoint(trial, 1, step)
    storage_at(paths.url or str(paths.root)).write(paths.name(path), state)
    return paths.recorded(paths.target(path))


class FilesContract:
    """What a driver counts on, wherever checkpoints lie."""

    @pytest.fixture
    def paths(self, tmp_path: Path) -> RunPaths:
        raise NotImplementedError

    @pytest.fixture
    def files(self, paths: RunPaths) -> Iterator[CheckpointFiles]:
        files = files_of(paths, holds=lambda: True)
        yield files
        files.close()

    def test_a_file_is_known_after_another_look(self, files: CheckpointFiles, paths: RunPaths) -> None:
        name = put(paths, 0, 1)
        assert files.size("checkpoints/trial-00000/attempt-01-step-0002.pt") is None
        files.look_again().result(30)
        assert files.size(name) == 5
        assert is_there(files.located(name))
        assert files.recorded(files.located(name)) == name

    def test_a_file_is_known_soon_by_itself(self, files: CheckpointFiles, paths: RunPaths) -> None:
        files.size("nothing")
        name = put(paths, 0, 1)
        until = time.monotonic() + 30
        while files.size(name) is None:
            assert time.monotonic() < until
            time.sleep(0.01)

    def test_what_was_deleted_is_gone(self, files: CheckpointFiles, paths: RunPaths) -> None:
        name = put(paths, 0, 1)
        files.look_again().result(30)
        files.delete(name)
        files.delete("checkpoints/never-there.pt")
        files.close()
        assert files.size(name) is None
        assert not is_there(files.located(name))

    def test_strays_are_deleted_and_what_is_wanted_stays(self, files: CheckpointFiles, paths: RunPaths) -> None:
        wanted, stray = put(paths, 0, 1), put(paths, 1, 1)
        files.delete_strays({wanted})
        assert is_there(files.located(wanted))
        assert not is_there(files.located(stray))


class TestInAFolder(FilesContract):
    @pytest.fixture
    def paths(self, tmp_path: Path) -> RunPaths:
        return RunPaths(tmp_path, "e", "r")

    def test_it_is_asked_itself(self, paths: RunPaths) -> None:
        assert isinstance(files_of(paths, holds=lambda: True), LocalFiles)


class TestInABucket(FilesContract):
    @pytest.fixture
    def paths(self, tmp_path: Path, buckets: Buckets) -> RunPaths:
        return RunPaths(tmp_path, "e", "r", buckets.new())

    def test_what_processes_left_on_this_machine_is_a_stray(self, files: CheckpointFiles, paths: RunPaths) -> None:
        half = paths.checkpoint(0, 1, 1)
        half.parent.mkdir(parents=True)
        half.with_name(f".{half.name}.abcd.tmp").write_text("half")
        files.delete_strays(set())
        assert not list(half.parent.iterdir())

    def test_an_empty_one_is_none_and_a_stray(self, files: CheckpointFiles, paths: RunPaths) -> None:
        name = put(paths, 0, 1, b"")
        files.look_again().result(30)
        assert files.size(name) is None
        files.delete_strays(set())
        assert not is_there(files.located(name))

    def test_nothing_is_deleted_when_the_run_is_another_drivers(self, paths: RunPaths) -> None:
        name = put(paths, 0, 1)
        files = files_of(paths, holds=lambda: False)
        files.delete(name)
        files.delete_strays(set())
        files.close()
        assert is_there(files.located(name))

    def test_while_the_bucket_refuses_nothing_is_known_and_nothing_raised(
        self, paths: RunPaths, buckets: Buckets
    ) -> None:
        name = put(paths, 0, 1)
        files = BucketFiles(paths, holds=lambda: True)
        with buckets.away():
            assert files.size(name) is None
            files.delete(name)
            files.delete(name)
            files.close()
        assert is_there(files.located(name))


class TestWriting:
    @pytest.fixture
    def write(self, tmp_path: Path, buckets: Buckets) -> Callable[..., tuple[str, Path, str]]:
        paths = RunPaths(tmp_path, "e", "r", buckets.new())

        def write(**how: bool) -> tuple[str, Path, str]:
            writer = CheckpointWriter(Printer().apart)
            path, log = paths.checkpoint(0, 1, 1), paths.log(0, attempt=1)
            log.parent.mkdir(parents=True)
            log.write_text("printed")
            target = paths.target(path)
            writer.begin(ToySnapshot("state", **how), trial=0, attempt=1, step=1, path=path, log=log, target=target)
            writer.publish(log, target=paths.target(log))
            writer.wait()
            [written] = writer.news()
            writer.close()
            assert written.path == target
            assert parted(paths.target(log))[0].read(parted(paths.target(log))[1]) == b"printed"
            return target, path, written.error

        return write

    def test_a_whole_file_moves_to_the_bucket(self, write: Callable[..., tuple[str, Path, str]]) -> None:
        target, path, error = write()
        assert error == ""
        assert is_there(target)
        assert not path.parent.exists()

    def test_a_full_disk_leaves_nothing(self, write: Callable[..., tuple[str, Path, str]]) -> None:
        target, path, error = write(fails=True)
        assert "No space left on device" in error
        assert not is_there(target)
        assert not path.parent.exists()

    def test_a_bucket_that_goes_on_refusing_is_an_error_of_the_checkpoint(
        self, tmp_path: Path, buckets: Buckets, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hpo.engine.checkpoint_writer.UPLOAD_PATIENCE_S", 0.0)
        paths = RunPaths(tmp_path, "e", "r", buckets.url("no-such-bucket/store"))
        path, log = paths.checkpoint(0, 1, 1), paths.log(0)
        log.parent.mkdir(parents=True)
        writer = CheckpointWriter(Printer().apart)
        about = {"trial": 0, "attempt": 1, "step": 1}
        writer.begin(ToySnapshot("state"), **about, path=path, log=log, target=paths.target(path))
        writer.publish(log, target=paths.target(log))
        writer.close()
        [written] = writer.news()
        assert "NO_SUCH_BUCKET" in written.error
        assert not path.parent.exists()
