"""The disks that can be filled, and the bucket that can refuse; the hosts have tests of their own."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from benchmarks.chaos_hosts import Bucket, Volume
from hpo.storage import storage_at
from tests.cluster.hosts import why_not


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    if reason := why_not():
        pytest.skip(reason)
    with Volume.mounted(tmp_path / "disk") as made:
        yield made


def test_a_full_disk_takes_no_byte_and_has_room_again(volume: Volume) -> None:
    file = volume.path / "a"
    file.write_bytes(b"before")
    with volume.full():
        with pytest.raises(OSError, match="No space left"):
            (volume.path / "b").write_bytes(b"more")
        assert file.read_bytes() == b"before"
    (volume.path / "b").write_bytes(bytes(2**20))


@pytest.mark.integration
def test_a_bucket_refuses_in_two_ways_and_has_what_it_had() -> None:
    with Bucket.served("127.0.0.1") as bucket:
        url = bucket.new()
        storage_at(url).write("a", b"kept")
        server = "http://" + parse_qs(urlsplit(url).query)["endpoint_override"][0]
        with bucket.refusing(silent=True), pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(server)
        with bucket.refusing(silent=False), pytest.raises(urllib.error.HTTPError, match="503") as refused:
            urllib.request.urlopen(server)
        refused.value.close()
        assert storage_at(url).read("a") == b"kept"
        assert bucket.new() != url
