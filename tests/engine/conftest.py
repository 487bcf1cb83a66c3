from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, started once for all tests that need it."""
    import ray

    from hpo.engine.cluster import tell_ray

    tell_ray()
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    ray.init(
        num_cpus=6,  # for two trials at a time: a run begins while the last one's processes still end
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.CRITICAL,
    )
    yield
    ray.shutdown()
