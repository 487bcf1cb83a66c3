"""Jobs, and who is let in, on a cluster of one node that asks for a token."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.engine.jobs import AmbiguousJob, Job, Jobs, UnknownJob, chosen, new_job_id
from hpo.engine.tunnels import Unreachable
from hpo.errors import HpoError
from hpo.results import Store


@dataclass(frozen=True)
class Locked:
    """A cluster on loopback that asks for a token."""

    url: str
    gcs: str
    token: str
    agent: str


def _free_ports(num: int) -> list[int]:
    probes = [socket.socket() for _ in range(num)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _end(folder: str) -> None:
    """Kill the processes of the Ray whose files lie there."""
    ours = [
        process for process in psutil.process_iter(["cmdline"]) if folder in " ".join(process.info["cmdline"] or ())
    ]
    for process in ours:
        process.kill()
    psutil.wait_procs(ours, timeout=10)


@pytest.fixture(scope="module")
def locked(ray_cluster: None) -> Iterator[Locked]:
    """It begins after the Ray of other tests: a process keeps the way of authentication that it had first."""
    token = secrets.token_hex(32)
    gcs, board, agent = _free_ports(3)
    with tempfile.TemporaryDirectory(prefix="hpo-", ignore_cleanup_errors=True) as folder:  # Ray wants a short path
        environment = {
            "HOME": folder,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
        }
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1"]
        words += [f"--port={gcs}", f"--dashboard-port={board}", f"--dashboard-agent-listen-port={agent}"]
        words += ["--dashboard-host=127.0.0.1", "--num-cpus=2", "--num-gpus=0", "--object-store-memory=80000000"]
        words += ["--disable-usage-stats", f"--temp-dir={folder}/ray"]
        try:
            started = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert started.returncode == 0, started.stdout + started.stderr
            yield Locked(f"http://127.0.0.1:{board}", f"127.0.0.1:{gcs}", token, f"http://127.0.0.1:{agent}")
        finally:
            _end(f"{folder}/ray")


@pytest.fixture
def with_token(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> Locked:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", locked.token)
    return locked


@pytest.fixture
def study(tmp_path: Path) -> Path:
    here = Path(__file__).parent
    shutil.copy(here / "toy.py", tmp_path)
    shutil.copy(here.parent / "cluster" / "study.py", tmp_path / "few.py")
    return tmp_path / "few.py"


def _status(url: str, *, token: str | None = None, data: bytes | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as answer:  # noqa: S310
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.integration
class TestLocked:
    @pytest.mark.parametrize("path", ["/api/version", "/nodes?view=summary", "/api/jobs/", "/api/v0/actors"])
    def test_the_dashboard_lets_nobody_in_without_the_token(self, locked: Locked, path: str) -> None:
        assert _status(locked.url + path) == 401
        assert _status(locked.url + path, token="wrong") == 403  # noqa: S106
        assert _status(locked.url + path, token=locked.token) == 200

    def test_nobody_submits_a_job_without_the_token(self, locked: Locked) -> None:
        job = json.dumps({"entrypoint": "touch /tmp/broken-in"}).encode()
        for url in (f"{locked.url}/api/jobs/", f"{locked.agent}/api/job_agent/jobs/"):
            assert _status(url, data=job) == 401
            assert _status(url, data=job, token="wrong") == 403  # noqa: S106

    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            ({"RAY_AUTH_TOKEN": "wrong"}, "refuses this machine's token"),
            ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "the token cannot be read"),
            ({}, "this machine has none"),
            ({"RAY_AUTH_MODE": "disabled"}, "the cluster wants a token.*unset RAY_AUTH_MODE"),
        ],
    )
    def test_a_driver_is_told_why_it_is_refused(
        self, variables: dict[str, str], said: str, locked: Locked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with pytest.raises(HpoError, match=f"(?s)--address {locked.gcs}: .*{said}|{said}"):
            _admit(locked.gcs, variables, tmp_path)

    def test_a_driver_with_the_token_is_let_in(self, locked: Locked, tmp_path: Path) -> None:
        _admit(locked.gcs, {"RAY_AUTH_TOKEN": locked.token}, tmp_path)

    def test_jobs_are_refused_with_another_token(self, locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(HpoError, match=r"(?s)x\.yaml: the cluster refuses this machine's token.*auth_token"):
            Jobs(locked.url, where="x.yaml")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(HpoError, match=r"(?s)x\.yaml: the cluster wants a token.*RAY_AUTH_MODE"):
            Jobs(locked.url, where="x.yaml")


def _admit(gcs: str, variables: dict[str, str], home: Path) -> None:
    """`check_admission` in a process of its own: it changes the settings of the Ray in a process."""
    code = (
        "import sys, pickle\nfrom hpo.engine.tokens import check_admission\nfrom hpo.errors import HpoError\n"
        "try: check_admission(sys.argv[1])\n"
        "except HpoError as error: sys.stdout.buffer.write(pickle.dumps(error))"
    )
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], **variables}
    words = [sys.executable, "-c", code, gcs]
    done = subprocess.run(words, env=environment, capture_output=True, timeout=60, check=True)
    if done.stdout:
        raise _unpickled(done.stdout)


def _unpickled(data: bytes) -> HpoError:
    import pickle

    error = pickle.loads(data)  # noqa: S301 - written by the line above
    assert isinstance(error, HpoError)
    return error


@pytest.mark.integration
class TestJobs:
    def test_a_study_from_afar(self, with_token: Locked, study: Path, tmp_path: Path) -> None:
        results = tmp_path / "results"
        jobs = Jobs(with_token.url, where="x.yaml")
        job = jobs.submit(
            study,
            ["--trials", "3", "--set", "sleep_s=0", "--results", str(results)],
            experiment="few",
            facts={"results": str(results)},
        )
        assert not job.ended
        said: list[str] = []
        ended = jobs.follow(job.id, said.append, shown=[0])
        log = "".join(said)
        assert (ended.state, ended.exit_code) == ("SUCCEEDED", 0), log
        run = Store(results).find_run("few")
        assert run["state"] == "finished"
        assert f"run {run['run_id']} begins" in log
        assert ended.facts.items() >= {"job_name": "few", "run": run["run_id"], "results": str(results)}.items()
        for name in ("few", job.id, run["run_id"], run["run_id"][:12], None):
            assert jobs.find(name).id == job.id
        again: list[str] = []
        jobs.follow(job.id, again.append, shown=[len(log) - 10])
        assert "".join(again) == log[-10:]
        assert not jobs.stop(job.id)

    def test_a_failure_is_told(self, with_token: Locked, study: Path) -> None:
        jobs = Jobs(with_token.url, where="x.yaml")
        job = jobs.submit(study, ["--set", "nothing=1"], experiment="few", facts={})
        said: list[str] = []
        ended = jobs.follow(job.id, said.append, shown=[0])
        assert (ended.state, ended.exit_code) == ("FAILED", 2)
        assert "nothing" in "".join(said)

    def test_stopping_saves_the_steps_in_progress(self, with_token: Locked, study: Path, tmp_path: Path) -> None:
        results = tmp_path / "results"
        jobs = Jobs(with_token.url, where="x.yaml")
        words = ["--trials", "500", "--set", "sleep_s=0.1", "--results", str(results)]
        job = jobs.submit(study, words, experiment="few", facts={})
        while not (results / "runs").exists() or not Store(results).sql("SELECT 1 FROM reports").num_rows:
            assert not jobs.get(job.id).ended
            time.sleep(0.2)
        assert jobs.stop(job.id)
        said: list[str] = []
        assert jobs.follow(job.id, said.append, shown=[0]).state == "STOPPED"
        assert "interrupted; go on with" in "".join(said)
        assert Store(results).find_run("few")["state"] == "interrupted"

    def test_no_such_job(self, with_token: Locked) -> None:
        jobs = Jobs(with_token.url, where="x.yaml")
        with pytest.raises(UnknownJob, match=r"(?s)x\.yaml: there is no job nothing\n"):
            jobs.find("nothing")
        with pytest.raises(UnknownJob, match=r"(?s)x\.yaml: .*nothing does not exist.*hpo jobs"):
            jobs.get("nothing")


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")  # which Ray's client would ask instead
    said = r"(?s)http://127\.0\.0\.1:1: its dashboard does not answer.*at address: http://127\.0\.0\.1:1\.\).*--cluster"
    with pytest.raises(Unreachable, match=said):
        Jobs("http://127.0.0.1:1", where="http://127.0.0.1:1")


def test_what_a_job_is_called() -> None:
    one, other = new_job_id("few"), new_job_id("few")
    assert one.startswith("few-")
    assert one != other
    job = Job(one, "RUNNING", {"job_name": "few", "run": "20261121-105503-ab12"})
    names = (one, "20261121-105503-ab12", "few", one[:-3], "20261121", "fe w", "105503", "many")
    assert [job.likeness(name) for name in names] == [3, 3, 2, 1, 1, 0, 0, 0]
    assert Job(one, "PENDING").likeness("few") == 1  # as long as it is told nothing of the experiment


def _job(name: str, number: int, state: str = "RUNNING", *, run: str | None = None) -> Job:
    facts = {"job_name": name} | ({} if run is None else {"run": run})
    return Job(f"{name}-20261121-10550{number}-ab12", state, facts)


class TestChosen:
    """Of jobs in the order newest first."""

    def test_another_experiment_whose_name_begins_so_is_not_meant(self) -> None:
        jobs = [_job("digits_large", 2), _job("digits", 1)]
        assert chosen(jobs, "digits") is jobs[1]
        assert chosen(jobs, "digits", running=True) is jobs[1]
        assert chosen(jobs, "digits_l") is jobs[0]
        assert chosen([jobs[0], _job("digits", 1, "FAILED")], "digits", running=True) != jobs[0]

    def test_an_id_or_a_run_comes_before_an_experiment_of_that_name(self) -> None:
        jobs = [_job("r-1", 2), _job("digits", 1, run="r-1")]
        assert chosen(jobs, "r-1") is jobs[1]
        assert chosen(jobs, jobs[0].id) is jobs[0]

    def test_the_newest_of_an_experiment_or_a_run_is_meant(self) -> None:
        jobs = [_job("digits", 2, "PENDING", run="r-1"), _job("digits", 1, "FAILED", run="r-1")]
        assert all(chosen(jobs, name) is jobs[0] for name in ("digits", "r-1", "r-", "digits-"))

    def test_what_runs_is_stopped(self) -> None:
        jobs = [_job("digits", 2, "FAILED"), _job("digits", 1)]
        assert chosen(jobs, "digits") is jobs[0]
        assert chosen(jobs, "digits", running=True) is jobs[1]
        assert chosen(jobs, "digits-2026", running=True) is jobs[1]
        assert chosen(jobs[:1], "digits", running=True) is jobs[0]  # whoever stops it is told that it has ended

    def test_a_beginning_that_means_several(self) -> None:
        jobs = [_job("digits", 2), _job("digits_large", 1)]
        said = r"digi: it may be any of digits_large-20261121-105501-ab12, digits-20261121-105502-ab12\n  name one of"
        with pytest.raises(AmbiguousJob, match=said):
            chosen(jobs, "digi")

    def test_several_of_one_name_are_running(self) -> None:
        jobs = [_job("digits", 2), _job("digits", 1)]
        assert chosen(jobs, "digits") is jobs[0]
        with pytest.raises(AmbiguousJob, match="digits: it may be any of"):
            chosen(jobs, "digits", running=True)

    @given(names=st.lists(st.sampled_from(["a", "ab", "a-b", "b"]), min_size=1, max_size=9), running=st.booleans())
    def test_nobody_else_is_meant(self, *, names: list[str], running: bool) -> None:
        jobs = [_job(name, number) for number, name in enumerate(names)]
        for job, name in zip(jobs, names, strict=True):
            assert chosen(jobs, job.id, running=running) is job
            if not running or names.count(name) == 1:
                assert chosen(jobs, name, running=running) is jobs[names.index(name)]

    def test_nothing_is_called_so(self) -> None:
        assert chosen([_job("digits", 1)], "many") is None
        assert chosen([], "many") is None
