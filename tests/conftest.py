from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.buckets import buckets  # noqa: F401

settings.register_profile(
    "ci", deadline=None, max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before any Ray begins, whose processes inherit it: what moto takes, and what is nobody's account.
os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="us-east-1")  # noqa: S106


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads a user's data or leaves files in a user's cache."""
    monkeypatch.delenv("HPO_DATA", raising=False)
    monkeypatch.setenv("HPO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, started once for all tests that need it."""
    import ray

    from hpo.engine.cluster import tell_ray

    tell_ray()
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    ray.init(
        address="local",  # not what happens to run on this machine
        num_cpus=6,  # for two trials at a time: a run begins while the last one's processes still end
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.CRITICAL,
    )
    yield
    ray.shutdown()
