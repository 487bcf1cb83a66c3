"""The way to a cluster's dashboard, which listens on the loopback of the head: a tunnel through SSH."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.engine.cluster_file import read_launcher_file
from hpo.engine.cluster_file.finding import mapping
from hpo.errors import HpoError
from hpo.storage import cache_folder

_TUNNEL_S = 90.0
_DASHBOARD_PORT = 8265


class Unreachable(HpoError):  # noqa: N818 - reads as what it says
    """The cluster does not answer, now; it may do so later."""


@contextlib.contextmanager
def dashboard(cluster: str) -> Iterator[str]:
    """The URL of a cluster's dashboard for as long as the context lasts.

    Args:
        cluster: The URL itself, or the YAML of a cluster that `ray up` started: then a tunnel through SSH to its head
            is made.

    Raises:
        Unreachable: There is no way to the head.
        ClusterFileError: The YAML cannot be read.
    """
    if "://" in cluster:
        yield cluster
        return
    file, port = Path(cluster), _free_port()
    way = _way(file, read_launcher_file(file), port)
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C is for the one who follows a job, who still has words to say through the tunnel.
        tunnel = subprocess.Popen(
            way.words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True, cwd=file.parent
        )
        try:
            if not _opened(tunnel, port):
                said.seek(0)
                heard = said.read().decode(errors="replace").strip()[-600:]
                heard = heard.rpartition("The exception is: ")[2]  # before it Ray guesses at other reasons
                raise Unreachable(f"no tunnel to its head: {heard}", where=cluster, remedy=way.remedy)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(tunnel.pid, signal.SIGTERM)
            tunnel.wait()


@dataclass(frozen=True)
class _Way:
    """The command that makes a tunnel for as long as it runs, and what to do where it fails."""

    words: list[str]
    remedy: str


def _way(file: Path, config: Mapping[str, Any], port: int) -> _Way:
    """As `ray dashboard` goes; to machines of one's own by SSH itself.

    Those Ray finds only from the machine that `ray up` ran on, by a file in /tmp that goes when it is started anew.
    """
    if shutil.which("ssh") is None:
        raise Unreachable("there is no ssh on this machine", where=str(file), remedy="install OpenSSH's client")
    provider, auth = mapping(config.get("provider")), mapping(config.get("auth"))
    if provider.get("type") == "local" and provider.get("head_ip"):
        login = _login(provider, auth)
        words = ["ssh", "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{_DASHBOARD_PORT}", *_options(auth), *login]
        remedy = f"see that `{shlex.join(['ssh', *login])}` gets in, and Ray runs there (`ray up` ends what runs)"
        return _Way(words, remedy)
    words = [sys.executable, "-m", "ray.scripts.scripts", "dashboard", file.name]
    return _Way(
        [*words, "--port", str(port), "--remote-port", str(_DASHBOARD_PORT)],
        "see that `ray attach` gets in; where it does not run, `ray up` starts it (--no-restart: and ends nothing)",
    )


def _login(provider: Mapping[str, Any], auth: Mapping[str, Any]) -> list[str]:
    key = auth.get("ssh_private_key")
    user = f"{auth['ssh_user']}@" if auth.get("ssh_user") else ""
    head = f"{user}{provider.get('external_head_ip') or provider['head_ip']}"
    return ["-i", str(Path(str(key)).expanduser()), head] if key else [head]


def _options(auth: Mapping[str, Any]) -> list[str]:
    """Of an SSH that asks nothing; unlike Ray's, it remembers the head's key and refuses another."""
    options = {
        "BatchMode": "yes",
        "ControlPath": "none",
        "ExitOnForwardFailure": "yes",
        "ConnectTimeout": "20",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "StrictHostKeyChecking": "accept-new",
        "UserKnownHostsFile": f'"{_known_hosts()}" ~/.ssh/known_hosts',
    }
    if auth.get("ssh_private_key"):
        options["IdentitiesOnly"] = "yes"
    if auth.get("ssh_proxy_command"):
        options["ProxyCommand"] = str(auth["ssh_proxy_command"])
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _known_hosts() -> Path:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "known_hosts"


def _opened(tunnel: subprocess.Popen[bytes], port: int) -> bool:
    until = time.monotonic() + _TUNNEL_S
    while tunnel.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
        time.sleep(0.1)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
