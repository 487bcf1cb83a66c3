"""Hosts that go off, lose their network or come along, and a driver that is killed, in the middle of a study."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.chaos import Ledger
from hpo.engine.study import LOST_NODE, Study
from hpo.experiment_file import load
from hpo.results import RunPaths, Store, read_entries
from tests.cluster.clusters import by_hand, start_worker, until
from tests.cluster.conftest import Laptop
from tests.cluster.hosts import Hosts

pytestmark = [pytest.mark.cluster, pytest.mark.integration]
_DIGITS = Path(__file__).parents[2] / "benchmarks" / "chaos_study.py"
_TRIALS = 2000  # more than it will come to


@pytest.fixture
def cluster(hosts: Hosts, laptop: Laptop) -> Iterator[None]:
    with by_hand(hosts, laptop.token):
        yield


class Driven:
    """A study whose driver is on the head, its code and its results on the hosts' shared folder."""

    def __init__(self, hosts: Hosts, laptop: Laptop, study: str, options: str) -> None:
        self.hosts, self.name = hosts, study.removesuffix(".py")
        self.folder = hosts.shared / f"{self.name}{options.replace(' ', '')}"
        shutil.copytree(laptop.study.parent, self.folder)
        shutil.copy(_DIGITS, self.folder)
        self.results, self._log = self.folder / "results", self.folder / "driver.log"
        self.ledger = Ledger(self.results)
        run = f"python -m hpo.run {study} --address auto --results {self.results} {options} --trials"
        self._command = f"cd {self.folder} && exec {run} {{}} >> {self._log} 2>&1"

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Its driver lives for as long as the context lasts, and is killed then."""
        self._driver = self.hosts.start(0, self._command.format(_TRIALS))
        try:
            yield
        finally:
            self.hosts.run(0, "pkill -KILL -f '[p]ython -m hpo.run' || true")
            self._driver.communicate(timeout=60)

    def trains(self, num: int = 6) -> None:
        """Return after so many further reports."""
        before = self.ledger.show()
        self._wait(lambda: self.ledger.show() >= before + num, "further reports")

    def trains_on(self, host: int) -> None:
        """Return when the host trains: after a further report of its own."""
        before = self._reports_of(host)
        self._wait(lambda: self._reports_of(host) > before, f"a report of host {host}")

    def loses(self, num: int) -> None:
        """Return when so many attempts, since the beginning, have failed for the loss of their host."""
        self._wait(lambda: self._causes.count(LOST_NODE) >= num, f"{num} losses")

    def _wait(self, true: Callable[[], bool], what: str) -> None:
        until(lambda: true() or self._ended, within_s=180, what=what)
        assert not self._ended, self._log.read_text()

    @property
    def _ended(self) -> bool:
        return self._driver.poll() is not None

    def _reports_of(self, host: int) -> int:
        """So many reports were trained there."""
        nodes = Store(self.results).sql("SELECT node FROM reports").column("node").to_pylist()
        return nodes.count(self.hosts.name(host))

    @property
    def _causes(self) -> list[str]:
        failed = Store(self.results).sql("SELECT detail->>'cause' AS cause FROM events WHERE kind = 'failed'")
        return failed.column("cause").to_pylist()

    def end(self) -> None:
        """Train what was begun, and a few trials more, to the end."""
        self.ledger.check()
        begun = Store(self.results).sql("SELECT * FROM trials").num_rows
        self.hosts.run(0, self._command.format(begun + 6), within_s=400)
        self.ledger.check()

    def check(self) -> None:
        """Nothing that a reader was shown is lost, and a replay of the journal decides as the drivers did."""
        assert not self.ledger.lost
        store = Store(self.results)
        run = store.find_run(self.name)
        assert run["state"] == "finished"
        assert store.sql("SELECT trial, step FROM reports GROUP BY ALL HAVING count(*) > 1").num_rows == 0
        entries = read_entries(RunPaths(self.results, self.name, run["run_id"]))
        experiment = load(self.folder / f"{self.name}.py").experiment
        Study(experiment, lambda *_, **__: None).replay(entries)  # raises at a wrong decision


@pytest.mark.parametrize(
    "study", ["study.py", pytest.param("chaos_study.py", marks=pytest.mark.cluster(long=True))], ids=["toy", "digits"]
)
def test_trials_of_one_process(study: str, cluster: None, hosts: Hosts, laptop: Laptop) -> None:
    driven = Driven(hosts, laptop, study, "")
    with driven.going_on():
        driven.trains_on(1)
        hosts.power_off(1)
        driven.loses(1)
        driven.trains()
        hosts.power_on(1)
        start_worker(hosts, 1)  # a node that is added: it is another one than that which went off
        driven.trains_on(1)
        driven.trains_on(2)
        hosts.cut(2)
        driven.loses(2)
        driven.trains()
        hosts.join(2)
        driven.trains()
    driven.end()
    driven.check()


@pytest.mark.cluster(long=True)
@pytest.mark.parametrize("options", ["--set per_trial.workers=3"])
def test_trials_over_all_hosts(options: str, cluster: None, hosts: Hosts, laptop: Laptop) -> None:
    driven = Driven(hosts, laptop, "chaos_study.py", options)
    with driven.going_on():
        driven.trains()
        hosts.power_off(1)
        driven.loses(1)
        hosts.power_on(1)
        start_worker(hosts, 1)
        driven.trains()
        hosts.cut(2)
        driven.loses(2)
        hosts.join(2)
        start_worker(hosts, 2)
        driven.trains()
    driven.end()
    driven.check()
