from __future__ import annotations

import pytest

from hpo.training.data import cifar10


@pytest.fixture(autouse=True)
def _no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded: a port that nobody listens on stands for the server."""
    monkeypatch.setattr(cifar10, "_URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
