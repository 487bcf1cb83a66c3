"""Whether a folder is recognised as the driver's; Ray is started in `test_preflight`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpo.engine.findings import Seen
from hpo.engine.nodes import Node
from hpo.engine.shared_storage import Mark, absolute, came_back, check_storage, marked, storage
from hpo.errors import StoreError
from hpo.storage import storage_at
from tests.buckets import Buckets

NODE = Node("0a1b", "worker (192.0.2.7)", "192.0.2.7", num_cpus=1)


def test_what_both_write_is_seen_and_then_gone(tmp_path: Path) -> None:
    with marked(str(tmp_path), [NODE]) as mark:
        seen = {NODE.name: storage(mark, NODE.node_id)}
        assert len(list(tmp_path.iterdir())) == 2
        assert came_back(mark, [NODE], seen) == seen
    assert not seen[NODE.name].problem
    assert seen[NODE.name].shown.endswith("GB free")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_it_goes_with_it(tmp_path: Path) -> None:
    with marked(str(tmp_path / "results"), [NODE]) as mark:
        assert not storage(mark, NODE.node_id).problem
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_the_folder_does_not_make_it(tmp_path: Path) -> None:
    seen = storage(Mark(str(tmp_path / "results"), "token"), "0a1b")
    assert seen.problem == f"there is no folder {tmp_path / 'results'}"
    assert not (tmp_path / "results").exists()


def test_another_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.engine.shared_storage.STALE_S", 0.0)
    assert "is another place than the driver's" in storage(Mark(str(tmp_path), "token"), "0a1b").problem
    (tmp_path / Mark("", "token").file("driver")).write_text("something else")
    assert "does not give back what the driver wrote" in storage(Mark(str(tmp_path), "token"), "0a1b").problem


def test_a_node_that_wrote_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.engine.shared_storage.STALE_S", 0.0)
    with marked(str(tmp_path), [NODE]) as mark:
        seen = {NODE.name: storage(mark, NODE.node_id)}
        (tmp_path / mark.file(NODE.node_id)).unlink()
        said = came_back(mark, [NODE], seen)[NODE.name]
    assert said.problem == "the driver cannot read what the node wrote: No such file or directory"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match=r"(?s)file/results: the driver cannot write there: .*\n  name another place"),
        marked(str(tmp_path / "file" / "results"), []),
    ):
        pass


def test_a_bucket(buckets: Buckets) -> None:
    url = buckets.new()
    with marked(url, [NODE]) as mark:
        seen = {NODE.name: storage(mark, NODE.node_id)}
        assert came_back(mark, [NODE], seen) == {NODE.name: Seen()}
    assert storage_at(url).below() == []


def test_a_bucket_that_is_not_there(buckets: Buckets) -> None:
    url = buckets.url("nowhere/prefix")
    with pytest.raises(StoreError, match="the driver cannot write there: there is no such bucket"), marked(url, []):
        pass


def test_one_node_alone_is_not_asked(tmp_path: Path) -> None:
    check_storage(str(tmp_path / "results"), [NODE])
    assert not (tmp_path / "results").exists()


def test_places_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(Path("results")) == os.fspath(tmp_path.resolve() / "results")
    assert absolute("s3://bucket/folder") == "s3://bucket/folder"
    with pytest.raises(StoreError, match=r"hdfs:// is no kind of storage"):
        absolute("hdfs://x/y")
