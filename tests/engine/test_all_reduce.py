"""The all-reduce between nodes, here between processes of one machine; Ray is started in `test_preflight`."""

from __future__ import annotations

import socket
from threading import Thread

import pytest

from hpo.engine.all_reduce import Ranks, reduce
from hpo.engine.findings import Seen

pytestmark = pytest.mark.integration


def test_three_ranks_on_two_nodes() -> None:
    seen = _met(["127.0.0.1", "127.0.0.2"])
    assert [(what.problem, what.shown[-4:]) for what in seen] == [("", "GB/s")] * 2


def test_a_node_that_has_not_the_address_that_it_is_known_by() -> None:
    with socket.create_server(("", 0)) as listening:
        port = listening.getsockname()[1]
        seen = reduce(Ranks(0, 1, 1, "gloo", "127.0.0.1", port, "203.0.113.9", limit_s=300), listening)
    assert "203.0.113.9" in seen.problem or "address" in seen.problem


def _met(addresses: list[str]) -> list[Seen]:
    """What each node sees; the first has two ranks."""
    listening = socket.create_server(("", 0))
    port = listening.getsockname()[1]
    seen: dict[int, Seen] = {}

    def node(index: int) -> None:
        first, num = (0, 2) if index == 0 else (2, 1)
        ranks = Ranks(first, num, 3, "gloo", addresses[0], port, addresses[index], limit_s=300)
        seen[index] = reduce(ranks, listening if index == 0 else None)

    threads = [Thread(target=node, args=(index,)) for index in range(len(addresses))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [seen[index] for index in range(len(addresses))]
