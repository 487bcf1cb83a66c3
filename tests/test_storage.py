"""Whole objects under names: one contract, kept by a folder and by a bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import CheckpointError, StoreError
from hpo.storage import (
    LocalStorage,
    Storage,
    brought,
    cache_folder,
    checked,
    digest_of,
    is_there,
    is_url,
    join,
    parted,
    persistently,
    refused,
    storage_at,
)
from tests.buckets import Buckets


class StorageContract:
    """What every storage keeps to; a subclass gives one that is empty."""

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        raise NotImplementedError

    def test_what_was_written_is_read(self, storage: Storage) -> None:
        storage.write("a/b/c.txt", b"first")
        storage.write("a/b/c.txt", b"second")
        assert storage.read("a/b/c.txt") == b"second"
        stored = storage.stat("a/b/c.txt")
        assert stored is not None
        assert (stored.name, stored.size) == ("a/b/c.txt", 6)
        assert stored.changed_ns > 1_600_000_000 * 10**9

    @pytest.mark.parametrize("size", [0, 1, 9_000_000])
    def test_any_size_goes_up_and_comes_down(self, storage: Storage, tmp_path: Path, size: int) -> None:
        data = os.urandom(size)
        (tmp_path / "up").write_bytes(data)
        assert storage.upload(tmp_path / "up", "x/y") == size
        storage.download("x/y", tmp_path / "new" / "down")
        assert (tmp_path / "new" / "down").read_bytes() == data
        stored = storage.stat("x/y")
        assert stored is not None
        assert (tmp_path / "new" / "down").stat().st_mtime_ns == stored.changed_ns
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["down"]

    def test_all_below_a_folder_are_listed_and_no_others(self, storage: Storage) -> None:
        for name in ("a/1", "a/b/2", "ab/3", "4"):
            storage.write(name, b"x")
        assert [stored.name for stored in storage.below("a")] == ["a/1", "a/b/2"]
        assert [stored.name for stored in storage.below()] == ["4", "a/1", "a/b/2", "ab/3"]
        assert storage.below("nowhere") == []

    def test_what_is_not_there(self, storage: Storage, tmp_path: Path) -> None:
        storage.write("a/1", b"x")
        assert storage.stat("a/2") is None
        assert storage.stat("a") is None or isinstance(storage, LocalStorage)
        with pytest.raises(FileNotFoundError):
            storage.read("a/2")
        with pytest.raises(FileNotFoundError):
            storage.download("a/2", tmp_path / "down")
        with pytest.raises(FileNotFoundError):
            storage.upload(tmp_path / "none", "a/2")
        assert not (tmp_path / "down").exists()
        assert storage.stat("a/2") is None

    def test_what_was_deleted_is_gone_and_may_be_deleted_again(self, storage: Storage) -> None:
        storage.write("a/1", b"x")
        storage.delete("a/1")
        storage.delete("a/1")
        assert storage.below() == []


class TestAFolder(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:  # type: ignore[override]
        return storage_at(str(tmp_path / "storage"))

    def test_what_is_being_written_is_not_listed(self, storage: Storage, tmp_path: Path) -> None:
        storage.write("a/1", b"x")
        (tmp_path / "storage" / "a" / ".1.abcd.tmp").write_bytes(b"half")
        assert [stored.name for stored in storage.below()] == ["a/1"]


class TestABucket(StorageContract):
    @pytest.fixture
    def storage(self, buckets: Buckets) -> Storage:  # type: ignore[override]
        return storage_at(buckets.new())

    def test_folders_left_empty_are_not_listed(self, storage: Storage) -> None:
        storage.write("a/b/1", b"x")
        storage.delete("a/b/1")
        assert storage.below("a") == []

    def test_half_an_upload_is_nothing(self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken:
            def __getattr__(self, name: str) -> Any:
                raise OSError("told to break")

        with pytest.raises(TypeError):
            storage.write("a", Broken())  # type: ignore[arg-type]
        stored = storage.stat("a")
        assert stored is None or stored.size == 0

    @pytest.mark.parametrize("size", [6 * 2**20, 24 * 2**20])
    def test_a_refused_upload_leaves_nothing(
        self, storage: Storage, buckets: Buckets, tmp_path: Path, size: int
    ) -> None:
        (tmp_path / "up").write_bytes(bytes(size))
        with buckets.refusing_large_uploads(), pytest.raises(OSError, match="ACCESS_DENIED"):
            storage.upload(tmp_path / "up", "x")
        assert storage.stat("x") is None
        assert storage.upload(tmp_path / "up", "x") == size

    def test_an_endpoint_may_be_named_by_the_environment(
        self,
        buckets: Buckets,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        url = buckets.new()
        storage_at(url).write("x", b"1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{url.partition('endpoint_override=')[2].partition('&')[0]}")
        assert storage_at(url.partition("?")[0]).read("x") == b"1"


class TestAddresses:
    @pytest.mark.parametrize(
        ("place", "found"),
        [("s3://b/p", True), ("gs://b", True), ("abfs://c@a/p", True), ("results", False), ("/a/b://c", False)],
    )
    def test_a_url_is_told_from_a_folder(self, place: str, found: object) -> None:
        assert is_url(place) is found

    def test_another_scheme_is_refused(self) -> None:
        with pytest.raises(StoreError, match=r"(?s)http:// is no kind of storage that hpo knows.*s3://"):
            is_url("http://example.com/x")

    def test_a_url_that_became_a_path_is_refused(self) -> None:
        with pytest.raises(StoreError, match=r"(?s)s3:/bucket/x: is a URL that has lost a slash.*not as a Path"):
            is_url(Path("s3://bucket/x"))

    def test_credentials_in_a_url_are_refused_and_not_shown(self) -> None:
        with pytest.raises(StoreError, match="the URL holds credentials") as caught:
            storage_at("s3://key:secret@bucket/prefix")
        assert "secret@" not in str(caught.value)

    def test_a_malformed_url_is_refused(self) -> None:
        with pytest.raises(StoreError, match=r"is no URL that can be used: .*nonsense"):
            storage_at("s3://bucket/prefix?nonsense=1")

    @given(
        st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), min_size=1, max_size=4),
        st.sampled_from(["", "?scheme=http"]),
    )
    def test_names_are_joined_before_the_query(self, parts: list[str], end: str) -> None:
        assert join(f"s3://b/p/{end}", "/".join(parts)) == f"s3://b/p/{'/'.join(parts)}{end}"
        assert join("folder", "/".join(parts)) == f"folder/{'/'.join(parts)}"

    def test_one_url_in_two_spellings_is_one_place(self) -> None:
        assert digest_of("s3://b/p/") == digest_of("s3://b/p") != digest_of("s3://b/q")

    def test_an_object_is_found_by_its_url(self, buckets: Buckets) -> None:
        url = join(buckets.new(), "some/object")
        storage, name = parted(url)
        assert not is_there(url)
        storage.write(name, b"x")
        assert is_there(url)

    def test_escapes_mean_in_an_object_what_they_mean_in_a_store(self, buckets: Buckets) -> None:
        store = buckets.new().replace("studies/store", "my%20studies")
        storage_at(store).write("some/object", b"x")
        storage, name = parted(join(store, "some/object"))
        assert name.endswith("my studies/some/object")
        assert storage.read(name) == b"x"

    def test_the_cache_is_where_the_environment_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HPO_CACHE", "/somewhere")
        assert cache_folder() == Path("/somewhere")
        monkeypatch.delenv("HPO_CACHE")
        assert cache_folder() == Path.home() / ".cache" / "hpo"


class TestChecking:
    def test_a_bucket_that_takes_objects_is_left_as_it_was(self, buckets: Buckets) -> None:
        assert checked(buckets.new()).below() == []

    def test_no_such_bucket(self, buckets: Buckets) -> None:
        with pytest.raises(StoreError, match=r"(?s)there is no such bucket.*make the bucket, or correct the URL"):
            checked(buckets.url("nowhere/prefix"))

    def test_nothing_answers(self, buckets: Buckets) -> None:
        url = buckets.new()
        nothing = pytest.raises(StoreError, match=r"(?s)nothing answers .*AWS_ENDPOINT_URL")
        with buckets.away(), nothing, brought(join(url, "x.pt"), patience_s=0):
            pass
        assert checked(url)

    @pytest.mark.parametrize(
        "said",
        [
            "When initiating multiple part upload: AWS Error ACCESS_DENIED during CreateMultipartUpload operation",
            "AWS Error UNKNOWN (HTTP status 403) during HeadObject operation: No response body.",
            "google::cloud::Status(PERMISSION_DENIED: no)",
        ],
    )
    def test_no_permission(self, said: str) -> None:
        with pytest.raises(StoreError, match=r"(?s)s3://b: access is refused .*AWS_ACCESS_KEY_ID"):
            raise refused("s3://b", OSError(said))

    def test_anything_else_is_told_as_it_was_said(self) -> None:
        with pytest.raises(StoreError, match=r"(?s)s3://b: odd.*look at the storage"):
            raise refused("s3://b", OSError("odd"))


class TestPatience:
    def test_what_refuses_for_a_while_is_asked_again(self) -> None:
        answers: list[Any] = [OSError("no"), OSError("no"), 7]

        def ask() -> int:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return int(answer)

        assert persistently(ask, patience_s=10, first_pause_s=0.001) == 7

    def test_the_last_refusal_is_raised(self) -> None:
        def refuse() -> None:
            raise OSError("no")

        with pytest.raises(OSError, match="no"):
            persistently(refuse, patience_s=0.01, first_pause_s=0.001)

    def test_what_is_not_there_is_not_asked_for_again(self) -> None:
        asked = []

        def ask() -> None:
            asked.append(1)
            raise FileNotFoundError

        with pytest.raises(FileNotFoundError):
            persistently(ask, patience_s=100)
        assert asked == [1]


class TestBringing:
    def test_a_local_file_is_itself(self, tmp_path: Path) -> None:
        (tmp_path / "x.pt").touch()
        with brought(str(tmp_path / "x.pt")) as path:
            assert path == tmp_path / "x.pt"

    def test_a_remote_one_is_here_while_it_is_needed(self, buckets: Buckets) -> None:
        url = join(buckets.new(), "checkpoints/x.pt")
        storage, name = parted(url)
        storage.write(name, b"state")
        with brought(url) as path:
            assert path.read_bytes() == b"state"
            assert path.name == "x.pt"
        assert not path.parent.exists()

    def test_one_that_is_not_there_is_an_error_of_the_checkpoint(self, buckets: Buckets, tmp_path: Path) -> None:
        for place in (buckets.new(), str(tmp_path)):
            with pytest.raises(CheckpointError, match="there is no such checkpoint"), brought(join(place, "x.pt")):
                pass
