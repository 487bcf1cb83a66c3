from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts, finished, why_not

LONG = "HPO_LONG_TESTS"
_REPOSITORY = Path(__file__).resolve().parents[2]
SHOWN = sorted({_REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()})
"""What hosts see of this machine."""
ENVIRONMENT = (
    f"export PATH={Path(sys.prefix) / 'bin'}:$PATH PYTHONPATH={_REPOSITORY} PYTHONDONTWRITEBYTECODE=1 "
    "OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 RAY_prestart_worker_first_driver=0\n"
)
"""What each login there begins with, and so has Ray see."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the hosts to those who may make them, and what takes minutes to those who ask for it."""
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    reason = why_not() if any(item.get_closest_marker("cluster") for item in ours) else ""
    for item in ours:
        marker = item.get_closest_marker("cluster")
        if marker is None:
            continue
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif marker.kwargs.get("long") and LONG not in os.environ:
            item.add_marker(pytest.mark.skip(reason=f"takes minutes: set {LONG}=1"))


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """Three hosts that see this repository, its Python, and one shared folder."""
    # Not below pytest's own folder: Ray's sockets have to lie in short paths, and /tmp is each host's own.
    with tempfile.TemporaryDirectory(prefix="hpo-hosts-", dir="/var/tmp") as folder:
        shared = Path(folder) / "shared"
        shared.mkdir()
        with Hosts(3, Path(folder), shared=shared, shown=SHOWN, environment=ENVIRONMENT) as made:
            yield made


@dataclass(frozen=True)
class Laptop:
    """Somebody's own machine: a home with the cluster's token, a folder with an experiment.

    Attributes:
        home: The home.
        token: The token of the clusters of this test run.
        more: What its commands see beyond the usual.
    """

    home: Path
    token: str
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def study(self) -> Path:
        """The experiment's file."""
        return self.home / "experiments" / "study.py"

    @property
    def environment(self) -> Mapping[str, str]:
        """What its commands see."""
        return {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
            "RAY_TMPDIR": str(self.home),
            "TMPDIR": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HPO_CACHE": str(self.home / "cache"),
            **self.more,
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command there, running."""
        return subprocess.Popen(
            words,
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, within_s: float = 180.0) -> str:
        """What a command prints there."""
        return finished(self.start(*words), within_s=within_s)


@pytest.fixture(scope="session")
def laptop(hosts: Hosts) -> Laptop:
    return furnished(hosts.folder / "laptop")


def furnished(home: Path, **more: str) -> Laptop:
    """A laptop with a new token, an experiment, and an environment beyond the usual."""
    made = Laptop(home, secrets.token_hex(32), more)
    made.study.parent.mkdir(parents=True)
    here = Path(__file__).parent
    shutil.copy(here / "study.py", made.study)
    shutil.copy(here.parent / "engine" / "toy.py", made.study.with_name("toy.py"))
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(made.token)
    (home / ".ray" / "auth_token").chmod(0o600)
    return made
