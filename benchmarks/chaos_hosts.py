"""Ray on three pretended hosts, whose disks can be filled and whose bucket can refuse."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pyarrow import fs

from tests.cluster.clusters import PORT, give_token, until
from tests.cluster.hosts import Hosts, finished

REPOSITORY = Path(__file__).resolve().parents[1]
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
CACHE = "/root/cache"
VOLUME_MB = 96
_SMALL = "--num-gpus=0 --object-store-memory=80000000"
_NOTICED = (  # as clusters/local.yaml has it
    "RAY_health_check_initial_delay_ms=2000 RAY_health_check_period_ms=1000 "
    "RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=3"
)


class Volume:
    """A small file system of its own; made by `mounted`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextmanager
    def mounted(cls, path: Path) -> Iterator[Volume]:
        """One that is gone with the context, and with it all that it held."""
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={VOLUME_MB}m", "none", str(path)], check=True)
        try:
            yield cls(path)
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)

    @contextmanager
    def full(self) -> Iterator[None]:
        """No byte can be written as long as the context lasts."""
        ballast = self.path / "ballast"
        try:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(2**12))
            yield
        finally:
            ballast.unlink()


class Bucket:
    """S3 (moto's server) for all hosts; made by `served`."""

    def __init__(self, host: str) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of each request
        self._app, self._handler = DomainDispatcherApplication(create_backend_app), MotoRequestHandler
        self._host, self._port, self._slow_down = host, 0, False
        self._begin()

    @classmethod
    @contextmanager
    def served(cls, host: str) -> Iterator[Bucket]:
        """A server at an address of this machine, for as long as the context lasts."""
        os.environ.update(KEYS)
        bucket = cls(host)
        try:
            yield bucket
        finally:
            bucket._end()

    def new(self) -> str:
        """The URL of a store in a new bucket."""
        name, at = f"bucket-{secrets.token_hex(4)}", f"endpoint_override={self._host}:{self._port}&scheme=http"
        filesystem, path = fs.FileSystem.from_uri(f"s3://{name}?{at}&allow_bucket_creation=true")
        filesystem.create_dir(path)
        return f"s3://{name}/store?{at}"

    @contextmanager
    def refusing(self, *, silent: bool) -> Iterator[None]:
        """As long as the context lasts nothing listens, or each request is told to come more slowly (503)."""
        self._slow_down = not silent
        if silent:
            self._end()
        try:
            yield
        finally:
            self._slow_down = False
            if silent:
                self._begin()

    def _begin(self) -> None:
        from werkzeug.serving import make_server

        self._server = make_server(self._host, self._port, self._answer, threaded=True, request_handler=self._handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _end(self) -> None:
        self._server.shutdown()
        self._thread.join()  # which closes the socket

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if self._slow_down:
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"]
        return self._app(environ, start)


class Cluster:
    """A head that trains nothing, and two hosts with a core each, which come back by themselves; made by `up`.

    Attributes:
        hosts: The three, the head first.
        store: The shared folder for stores.
        checkpoints: The shared folder for checkpoints, on a disk of its own.
        bucket: S3.
    """

    workers = (1, 2)

    def __init__(self, hosts: Hosts, store: Volume, checkpoints: Volume, bucket: Bucket) -> None:
        self.hosts, self.store, self.checkpoints, self.bucket = hosts, store, checkpoints, bucket
        self._token = secrets.token_hex(32)
        self._joining: dict[int, subprocess.Popen[str]] = {}

    @classmethod
    @contextmanager
    def up(cls) -> Iterator[Cluster]:
        """One that is gone with the context."""
        variables = {**KEYS, "HPO_CACHE": CACHE, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        variables |= {"PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
        variables |= {"RAY_prestart_worker_first_driver": "0", "PATH": f"{Path(sys.prefix) / 'bin'}:$PATH"}
        environment = "".join(f"export {name}={value}\n" for name, value in variables.items())
        shown = sorted({REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()})
        with contextlib.ExitStack() as ends:
            # Not in /tmp, which is each host's own.
            folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="hpo-chaos-", dir="/var/tmp")))
            shared = folder / "shared"
            shared.mkdir()
            store = ends.enter_context(Volume.mounted(shared / "store"))
            checkpoints = ends.enter_context(Volume.mounted(shared / "checkpoints"))
            hosts = ends.enter_context(Hosts(3, folder, shared=shared, shown=shown, environment=environment))
            gateway = f"{hosts.ip(0).rpartition('.')[0]}.1"
            bucket = ends.enter_context(Bucket.served(gateway))
            cluster = cls(hosts, store, checkpoints, bucket)
            cluster.begin()
            yield cluster

    def begin(self) -> None:
        """Have Ray anew on all hosts."""
        hosts = self.hosts
        for host in range(hosts.number):
            hosts.power_off(host)
            hosts.power_on(host)
            give_token(hosts, host, self._token)
        self._joining.clear()
        start = f"ray start --head --port={PORT} --num-cpus=0 {_SMALL} --include-dashboard=false"
        hosts.run(0, f"ulimit -c 0; {_NOTICED} {start}")
        self.tend()
        for process in self._joining.values():
            finished(process, within_s=120)

    def tend(self) -> None:
        """Have Ray started again where it is not, without waiting for it."""
        for host in self.workers:
            under_way = host in self._joining and self._joining[host].poll() is None
            if not under_way and not self.processes(host, "raylet"):
                self.restart(host)

    def restart(self, host: int) -> None:
        """Have Ray ended on a host, and started again, without waiting for it."""
        start = f"ray start --address={self.hosts.ip(0)}:{PORT} --num-cpus=1 {_SMALL}"
        self._joining[host] = self.hosts.start(host, f"ray stop --force; ulimit -c 0; {start}")

    def processes(self, host: int, word: str) -> list[psutil.Process]:
        """A host's processes whose title has the word: `raylet`, `trial`, `rank`, or `hpo.run` for a driver."""
        network = Path(f"/run/netns/{self.hosts.name(host)}").stat().st_ino
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if Path(f"/proc/{process.pid}/ns/net").stat().st_ino == network and _is_one(process, word):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def cache(self) -> Path:
        """The head's `HPO_CACHE`, as this machine sees it."""
        return self.hosts.folder / self.hosts.name(0) / CACHE.lstrip("/")

    def await_nodes(self) -> None:
        """Return when both hosts have Ray."""

        def there() -> bool:
            self.tend()
            return all(
                self.processes(host, "raylet") and (host not in self._joining or self._joining[host].poll() is not None)
                for host in self.workers
            )

        until(there, within_s=120, what="Ray on both hosts")
        time.sleep(1.0)


def _is_one(process: psutil.Process, word: str) -> bool:
    title = process.cmdline()
    if word == "raylet":
        return bool(title) and Path(title[0]).name == "raylet"
    if word == "hpo.run":
        return word in title and Path(title[0]).name.startswith("python")
    return bool(title) and title[0].startswith("ray::") and word in title[0].lower()
