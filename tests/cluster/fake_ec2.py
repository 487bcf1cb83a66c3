"""EC2 without a cloud: moto answers its API, and what is launched there becomes a pretended host.

Ray on the laptop and on the head launches, finds and ends machines by the API; this module sees to it that a machine
runs for as long as its instance does.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Hosts

REGION = "us-west-2"
_FIRST = 4  # the last number of the first address that a subnet of AWS has to give


class FakeEc2(Hosts):
    """Machines that run when the API has launched them; the first is a cluster's head. None runs at the beginning.

    Args:
        number: At most so many at a time.
        keys: Folder on this machine where Ray keeps the private keys that it makes; instances let these in.
        others: As for `Hosts`.
    """

    letter, network = "i", 0

    def __init__(
        self, number: int, folder: Path, *, keys: Path, shared: Path, shown: Sequence[Path], environment: str = ""
    ) -> None:
        super().__init__(number, folder, shared=shared, shown=shown, environment=environment)
        self._keys = keys
        self._launched: dict[int, str] = {}
        self._ends = contextlib.ExitStack()
        self._failure: BaseException | None = None

    def ip(self, host: int) -> str:
        """Its address, which is also what the API gives it."""
        return f"{self._subnet}.{_FIRST + host}"

    def __enter__(self) -> FakeEc2:
        super().__enter__()
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()
        super().__exit__()
        if self._failure is not None:
            raise self._failure

    def _open(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer  # seconds that other tests need not spend

        for host in range(self.number):
            self._end(host)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of each request
        server = ThreadedMotoServer(ip_address=f"{self._subnet}.1", port=0, verbose=False)
        server.start()
        self._ends.callback(server.stop)
        self.endpoint = ":".join(map(str, server.get_host_and_port()))
        self._environment += "".join(f"export {name}={value}\n" for name, value in self.account.items())
        self.ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=f"http://{self.endpoint}")
        self.vpc = self._network()
        # A thread for as long as all of it lasts: a machine ends with the thread that began it.
        over = threading.Event()
        follower = threading.Thread(target=self._follow, args=[over])
        follower.start()
        self._ends.callback(follower.join)
        self._ends.callback(over.set)

    @property
    def account(self) -> Mapping[str, str]:
        """What programs have to see to use this account, on a laptop as on the machines."""
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        return {**dict.fromkeys(names, "test"), "AWS_ENDPOINT_URL": f"http://{self.endpoint}", "AWS_REGION": REGION}

    def instances(self, state: str = "running") -> list[dict[str, Any]]:
        """Those in this state, as the API describes them."""
        found = self.ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": [state]}])
        return [instance for reservation in found["Reservations"] for instance in reservation["Instances"]]

    def host_of(self, instance: Mapping[str, Any]) -> int:
        """The machine that it is."""
        return int(instance["PrivateIpAddress"].rpartition(".")[2]) - _FIRST

    def reclaim(self, instance: Mapping[str, Any]) -> None:
        """Take a spot instance away: its processes end while its network still answers, and then its power goes."""
        with contextlib.suppress(RuntimeError):  # the shell that does it ends, too
            self.run(self.host_of(instance), "kill -KILL -1")
        self.ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])

    def _network(self) -> str:
        """The only subnet of the account, which is the hosts' own."""
        for subnet in self.ec2.describe_subnets()["Subnets"]:
            self.ec2.delete_subnet(SubnetId=subnet["SubnetId"])
        network = f"{self._subnet}.0/24"
        vpc = self.ec2.create_vpc(CidrBlock=network)["Vpc"]["VpcId"]
        self.ec2.create_subnet(VpcId=vpc, CidrBlock=network, AvailabilityZone=f"{REGION}a")
        return str(vpc)

    def _follow(self, over: threading.Event) -> None:
        try:
            while not over.wait(0.5):
                self._catch_up()
        except BaseException as error:  # noqa: BLE001 - told by whoever waits for the thread
            self._failure = error

    def _catch_up(self) -> None:
        wanted = {self.host_of(instance): instance for instance in self.instances()}
        for host, launched in list(self._launched.items()):
            if host not in wanted or wanted[host]["InstanceId"] != launched:
                self._end(host)
                del self._launched[host]
        for host in wanted.keys() - self._launched.keys():
            self.power_on(host)
            self._launched[host] = wanted[host]["InstanceId"]

    def _end(self, host: int) -> None:
        """Power off, and nothing is left on the disk."""
        self.power_off(host)
        shutil.rmtree(self.folder / self.name(host), ignore_errors=True)

    def _furnish(self, files: Path) -> None:
        """As a machine is that begins, with the account's keys let in."""
        super()._furnish(files)
        for key in self._keys.glob("*.pem"):
            public = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=True).stdout
            with (files / "root/.ssh/authorized_keys").open("a") as file:
                file.write(public)
