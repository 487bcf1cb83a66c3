"""Hosts on one Linux machine: namespaces for network, processes and files, and an SSH server in each.

A host has an address, a home, a /tmp and a shared memory of its own, and sees no other host's processes: Ray cannot
tell it from a machine. Its cable can be pulled and its power cut.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_COMMANDS = ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
_OURS = re.compile(r"(hpo(\d+)[a-z])\d+")
_UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--uts", "--ipc")
_SSHD = """\
Port 22
HostKey /run/sshd/host_key
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys
StrictModes no
MaxStartups 100
MaxSessions 100
UseDNS no
"""


def why_not() -> str:
    """Why there can be no hosts on this machine; nothing where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "pretended hosts need Linux and root"
    if missing := [command for command in _COMMANDS if shutil.which(command) is None]:
        return f"missing {', '.join(missing)}: apt-get install iproute2 openssh-server openssh-client rsync util-linux"
    tried = subprocess.run(
        [*_UNSHARE, "--net", "sh", "-c", "mount -t tmpfs none /mnt && ip link add x type bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces may be made here: {tried.stderr.strip()}" if tried.returncode else ""


class Hosts:
    """So many hosts, the first of which is meant to be a cluster's head.

    Args:
        number: How many.
        folder: For their files.
        shared: A folder that they all see and may write to, at the same path: it stands for NFS.
        shown: Folders of this machine that they see.
        environment: Shell lines that every login executes.
    """

    letter, network = "n", 64
    """Part of their names and of their addresses; another kind of hosts has others, to live beside these."""

    def __init__(
        self, number: int, folder: Path, *, shared: Path, shown: Sequence[Path], environment: str = ""
    ) -> None:
        self.number, self.folder, self.shared, self.shown = number, folder, shared, shown
        self._environment = environment
        self._name = f"hpo{os.getpid()}{self.letter}"
        self._subnet = f"10.{self.network + os.getpid() % 128}.{os.getpid() // 128 % 256}"
        self._powered: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def key(self) -> Path:
        """The private key that opens all of them."""
        return self.folder / "key"

    def ip(self, host: int) -> str:
        """Its address."""
        return f"{self._subnet}.{10 + host}"

    def name(self, host: int) -> str:
        """Its host name."""
        return f"{self._name}{host}"

    def __enter__(self) -> Hosts:
        _sweep()
        for key in ("key", "host_key"):
            _sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key)
        bridge = f"{self._name}b"
        try:
            _sh("ip", "link", "add", bridge, "type", "bridge")
            _sh("ip", "address", "add", f"{self._subnet}.1/24", "dev", bridge)
            _sh("ip", "link", "set", bridge, "up")
            for host in range(self.number):
                self._wire(host, bridge)
                self.power_on(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in list(self._powered):
            self.power_off(host)
        for host in range(self.number):
            _sh("ip", "link", "delete", f"{self.name(host)}v", check=False)
            _sh("ip", "netns", "delete", self.name(host), check=False)
        _sh("ip", "link", "delete", f"{self._name}b", check=False)

    def power_on(self, host: int) -> None:
        """Start it; it has its files of before, and none of its processes."""
        if host in self._powered:
            return
        self.join(host)
        files = self.folder / self.name(host)
        self._furnish(files)
        folders = [files, self.shared, *self.shown]
        words = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/run/netns/{self.name(host)}", *_UNSHARE]
        words += ["bash", str(Path(__file__).with_name("host.sh")), self.name(host), *map(str, folders)]
        with (files / "sshd.log").open("ab") as log:
            self._powered[host] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 30
        while time.monotonic() < until and self._powered[host].poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((self.ip(host), 22), timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"host {host} does not start: {(files / 'sshd.log').read_text()}")

    def power_off(self, host: int) -> None:
        """End all of its processes at once; nobody is told, since a kernel that is off closes no connections."""
        if host not in self._powered:
            return
        self.cut(host)
        process = self._powered.pop(host)
        process.kill()  # and with it, by --kill-child, the first process of the host, and with that all others
        process.wait()
        listed = ["ip", "netns", "pids", self.name(host)]
        while subprocess.run(listed, capture_output=True, check=True).stdout:  # else one might still meet its sshd
            time.sleep(0.02)

    def cut(self, host: int) -> None:
        """Pull its network cable."""
        _sh("ip", "link", "set", f"{self.name(host)}v", "down")

    def join(self, host: int) -> None:
        """Plug its network cable."""
        _sh("ip", "link", "set", f"{self.name(host)}v", "up")

    def start(self, host: int, command: str) -> subprocess.Popen[str]:
        """The command, running there in a login shell, its output in one pipe."""
        words = ["ssh", "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        words += ["-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=5", f"root@{self.ip(host)}"]
        return subprocess.Popen(
            [*words, f"bash --login -c {shlex.quote(command)}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, host: int, command: str, *, within_s: float = 120.0) -> str:
        """What the command prints there.

        Raises:
            RuntimeError: It fails.
            subprocess.TimeoutExpired: It takes longer.
        """
        return finished(self.start(host, command), within_s=within_s)

    def _wire(self, host: int, bridge: str) -> None:
        name, cable = self.name(host), f"{self.name(host)}v"
        _sh("ip", "netns", "add", name)
        _sh("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _sh("ip", "link", "set", cable, "master", bridge, "up")
        _sh("ip", "-n", name, "address", "add", f"{self.ip(host)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _sh("ip", "-n", name, "link", "set", device, "up")
        # Ray finds its own address by the route to a far one: without any it would be 127.0.0.1.
        _sh("ip", "-n", name, "route", "add", "default", "via", f"{self._subnet}.1")

    def _furnish(self, files: Path) -> None:
        for inner in ("tmp", "root/.ssh"):
            (files / inner).mkdir(parents=True, exist_ok=True)
        (files / "tmp").chmod(0o1777)
        (files / "root").chmod(0o700)
        shutil.copy(self.folder / "key.pub", files / "root/.ssh/authorized_keys")
        shutil.copy(self.folder / "host_key", files / "host_key")
        (files / "sshd_config").write_text(_SSHD)
        names = [f"{self.ip(host)} {self.name(host)}" for host in range(self.number)]
        (files / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")
        (files / "root/.bashrc").write_text(self._environment)
        (files / "root/.profile").write_text(". ~/.bashrc\n")


def finished(process: subprocess.Popen[str], *, within_s: float) -> str:
    """All that the process printed, at its end.

    Raises:
        RuntimeError: It fails.
        subprocess.TimeoutExpired: It takes longer, and is ended.
    """
    try:
        said, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        raise RuntimeError(f"{process.args} takes longer than {within_s} s: {said[-3000:]}") from None
    if process.returncode:
        raise RuntimeError(f"{process.args} ends with {process.returncode}: {said[-5000:]}")
    return said


def _sweep() -> None:
    """Take down what a killed test run of this user has left."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if (ours := _OURS.fullmatch(name)) and not Path(f"/proc/{ours[2]}").exists():
            _sh("ip", "link", "delete", f"{name}v", check=False)
            _sh("ip", "netns", "delete", name, check=False)
            _sh("ip", "link", "delete", f"{ours[1]}b", check=False)


def _sh(*words: object, check: bool = True) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
