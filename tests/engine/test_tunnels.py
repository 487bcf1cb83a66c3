"""Ways to the dashboard of a cluster; through SSH to machines of one's own with a server that `ssh` starts."""

from __future__ import annotations

import getpass
import http.server
import os
import shlex
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hpo.engine import tunnels
from hpo.engine.cluster_file import ClusterFileError
from hpo.engine.tunnels import Unreachable, dashboard

_SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "a cache"))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A dashboard on the loopback of the head."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the dashboard")

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        monkeypatch.setattr(tunnels, "_DASHBOARD_PORT", server.server_port)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield
        server.shutdown()
        serving.join()


@pytest.fixture
def sshd() -> Iterator[str]:
    """The server; as root it wants a folder, which the service's own start makes."""
    room = Path("/run/sshd")
    made = os.geteuid() == 0 and not room.exists()
    if made:
        room.mkdir(mode=0o755)
    yield str(_SSHD)
    if made:
        room.rmdir()


@pytest.fixture
def head(sshd: str, tmp_path: Path) -> Path:
    """The YAML of a cluster whose head is this machine, with keys of its own."""
    for key in ("host_key", "key"):
        _new_key(tmp_path / key)
    (tmp_path / "sshd_config").write_text(
        f"HostKey {tmp_path}/host_key\nAuthorizedKeysFile {tmp_path}/key.pub\nStrictModes no\nUsePAM no\n"
    )
    proxy = shlex.join([sshd, "-i", "-f", str(tmp_path / "sshd_config"), "-E", str(tmp_path / "sshd.log")])
    return _cluster(tmp_path, ssh_private_key=str(tmp_path / "key"), ssh_proxy_command=proxy)


def _new_key(path: Path) -> None:
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL)


def _cluster(folder: Path, **auth: str) -> Path:
    file = folder / "x.yaml"
    provider = {"type": "local", "head_ip": "head.invalid", "worker_ips": []}
    file.write_text(yaml.safe_dump({"provider": provider, "auth": {"ssh_user": getpass.getuser(), **auth}}))
    return file


def _read(cluster: Path) -> str:
    with dashboard(str(cluster)) as url, urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        return str(answer.read().decode())


@pytest.mark.integration
@pytest.mark.skipif(_SSHD is None, reason="needs sshd: apt-get install openssh-server")
@pytest.mark.usefixtures("page")
def test_machines_of_ones_own_need_no_notes_of_rays(head: Path) -> None:
    assert _read(head) == "the dashboard"


@pytest.mark.integration
@pytest.mark.skipif(_SSHD is None, reason="needs sshd: apt-get install openssh-server")
@pytest.mark.usefixtures("page")
def test_another_machine_that_answers_as_the_head_is_refused(head: Path, tmp_path: Path) -> None:
    assert _read(head) == "the dashboard"
    _new_key(tmp_path / "host_key")
    with pytest.raises(Unreachable, match=r"(?s)x\.yaml: no tunnel to its head: .*verification failed"):
        _read(head)


def test_a_head_that_lets_nobody_in(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path, ssh_private_key="/no/key", ssh_proxy_command="false")
    login = f"ssh -i /no/key {getpass.getuser()}@head.invalid"
    with pytest.raises(Unreachable, match=rf"(?s)x\.yaml: no tunnel to its head: .*\n  see that `{login}` gets in"):
        _read(cluster)


@pytest.mark.integration
def test_a_cloud_is_asked_as_ray_does(tmp_path: Path) -> None:
    broken = tmp_path / "x.yaml"
    broken.write_text("cluster_name: x\nprovider: {type: x}\n")
    said = r"x\.yaml: no tunnel to its head: [^\n]*x[^\n]*\n  see that `ray attach` gets in.*--no-restart"
    with pytest.raises(Unreachable, match=said):
        dashboard(str(broken)).__enter__()


def test_a_file_that_starts_no_cluster(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("cluster_name: x\n")
    with pytest.raises(ClusterFileError, match=r"x\.yaml: it starts no cluster that is known here"):
        dashboard(str(tmp_path / "x.yaml")).__enter__()


def test_without_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Unreachable, match=r"x\.yaml: there is no ssh on this machine\n  install"):
        dashboard(str(_cluster(tmp_path))).__enter__()


def test_the_url_of_a_dashboard_needs_no_tunnel() -> None:
    with dashboard("http://127.0.0.1:8265") as url:
        assert url == "http://127.0.0.1:8265"
