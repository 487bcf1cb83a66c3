"""The all-reduce between nodes, here of one process."""

from __future__ import annotations

import socket

import pytest

from hpo.training import all_reduce_probe
from hpo.training.all_reduce_probe import Rank


def test_a_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(all_reduce_probe.NUM_VALUES, "gloo", 100)
    listening = socket.create_server(("", 0))
    port = listening.getsockname()[1]
    outcome = all_reduce_probe.reduce(
        Rank(0, 1, "gloo", "127.0.0.1", port, "127.0.0.1", limit_s=30, listening=listening.detach())
    )
    assert outcome.error == ""
    assert outcome.gb_per_s == 0


def test_nobody_at_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    outcome = all_reduce_probe.reduce(Rank(1, 2, "gloo", "127.0.0.1", port, "127.0.0.1", limit_s=2))
    assert str(port) in outcome.error
