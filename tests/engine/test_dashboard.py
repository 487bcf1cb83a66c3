"""What Ray's dashboard shows of a run, asked of a real one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo.engine.dashboard import (
    STUDY_PAGE,
    check_dashboard_installed,
    dashboard_url,
    job_metadata,
    process_name,
    tell_job,
    trial_name,
)
from hpo.engine.gauges import METRICS
from hpo.errors import ExperimentError
from hpo.results import RunPaths

BODY = """
from hpo import *
from tests.engine.toy import Toy

experiment = Experiment(
    task=Toy(), space={"x": uniform(0.0, 1.0)}, fixed={"sleep_s": 0.2, "memory_mb": 100.0}, goal=Maximize("score"),
    trials=500, policy=NoStopping(4), per_trial=PerTrial(gpus=0.5, cpus=0.5),
)
"""
PATIENCE_S = 60.0


def test_names() -> None:
    assert trial_name("cifar_lr_dropout", 17) == "cifar_lr_dropout · trial 17"
    assert process_name("cifar_lr_dropout", 0) == "cifar_lr_dropout · trial 0 and later ones"


def test_metadata_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_GRAFANA_HOST", raising=False)
    monkeypatch.delenv("RAY_GRAFANA_IFRAME_HOST", raising=False)
    paths = RunPaths(Path("/my results"), "cifar", "r1")
    assert job_metadata(paths) == {
        "job_name": "cifar",
        "run": "r1",
        "results": "/my results",
        "best": "hpo best r1 --results '/my results'",
        "curves": "hpo tensorboard r1 --results '/my results'",
    }
    assert job_metadata(RunPaths(Path("/cache"), "cifar", "r1", "s3://bucket/hpo/"))["results"] == "s3://bucket/hpo/"
    monkeypatch.setenv("RAY_GRAFANA_HOST", "http://inside:3000/")
    assert job_metadata(paths)["page"] == f"http://inside:3000/d/{STUDY_PAGE}?var-run=r1"
    monkeypatch.setenv("RAY_GRAFANA_IFRAME_HOST", "https://outside")  # what browsers are to use
    assert job_metadata(paths)["page"] == f"https://outside/d/{STUDY_PAGE}?var-run=r1"


def test_a_ray_without_what_the_dashboard_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    check_dashboard_installed()
    monkeypatch.setitem(sys.modules, "ray.dashboard.optional_deps", None)
    with pytest.raises(ExperimentError, match=r"--dashboard: .*not installed(?s:.*)pip install 'hpo\[cluster\]'"):
        check_dashboard_installed()


def test_nobody_is_told_where_there_is_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert not tell_job({"state": "running"})


@pytest.mark.integration
def test_a_submitted_job_is_told(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.ray_constants import KV_NAMESPACE_JOB
    from ray.dashboard.modules.job.common import JobInfo, JobInfoStorageClient, JobStatus
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    assert dashboard_url() == ""
    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id="job-1").encode()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "job-1"}}))
    assert not tell_job({"state": "running"})  # Ray knows no such job
    info = JobInfo(status=JobStatus.RUNNING, entrypoint="python", metadata={"job_name": "mine", "state": "opening"})
    _internal_kv_put(key, json.dumps(info.to_json()).encode(), namespace=KV_NAMESPACE_JOB)
    assert tell_job({"state": "running", "run": "r1", "job_name": "cifar"})
    told = JobInfo.from_json(json.loads(_internal_kv_get(key, namespace=KV_NAMESPACE_JOB)))
    assert told.metadata == {"job_name": "mine", "state": "running", "run": "r1"}
    assert (told.status, told.entrypoint) == (JobStatus.RUNNING, "python")


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the dashboard of a run answers, on two GPUs that are make-believe; the run is stopped at the end."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "toy_study.py").write_text(BODY)
    words = ["toy_study.py", "--dashboard", "--gpus", "2", "--cpus", "2", "--results", "results"]
    with (folder / "out.txt").open("w") as out:
        run = subprocess.Popen(
            [sys.executable, "-m", "hpo.run", *words],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "RAY_metrics_report_interval_ms": "1000",
                "RAY_GRAFANA_HOST": "http://grafana:3000",
            },
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield until(lambda: re.search(r"Ray's dashboard: (\S+)", (folder / "out.txt").read_text()), run).group(1)
    finally:
        run.send_signal(signal.SIGINT)
        assert run.wait(PATIENCE_S) == 130


def until(ask: Callable[[], Any], run: subprocess.Popen[bytes] | None = None) -> Any:
    """The first answer that says yes."""
    latest = time.monotonic() + PATIENCE_S
    while not (answer := ask()):
        assert time.monotonic() < latest, "nothing came"
        assert run is None or run.poll() is None, "the run ended"
        time.sleep(0.2)
    return answer


def asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - of the dashboard
        return json.loads(answer.read())


@pytest.mark.integration
class TestTheDashboardOfARun:
    def test_names_steps_after_their_trial_also_in_a_process_that_is_kept(self, dashboard: str) -> None:
        def trials_by_process() -> dict[str, set[str]]:
            tasks = asked(f"{dashboard}/api/v0/tasks?detail=1&limit=10000")["data"]["result"]["result"]
            named: dict[str, set[str]] = {}
            for task in tasks:
                if re.fullmatch(r"toy_study · trial \d+", task["name"]):
                    named.setdefault(task["actor_id"], set()).add(task["name"])
            return named

        assert until(lambda: (named := trials_by_process()) and max(map(len, named.values())) >= 3)

    def test_says_which_trials_a_process_trains(self, dashboard: str) -> None:
        def names() -> list[str]:
            actors = asked(f"{dashboard}/logical/actors")["data"]["actors"].values()
            return [actor["reprName"] for actor in actors if actor["state"] == "ALIVE"]

        assert set(until(names)) <= {process_name("toy_study", first) for first in range(64)}

    def test_says_which_run_the_job_is(self, dashboard: str) -> None:
        (job,) = asked(f"{dashboard}/api/jobs/")
        run = job["metadata"]["run"]
        assert job["metadata"]["job_name"] == "toy_study"
        assert job["metadata"]["page"] == f"http://grafana:3000/d/{STUDY_PAGE}?var-run={run}"

    def test_serves_every_gauge(self, dashboard: str) -> None:
        (node,) = asked(f"{dashboard}/api/v0/nodes?detail=1")["data"]["result"]["result"]
        ports = asked(f"{dashboard}/nodes?view=summary")["data"]["summary"][0]["raylet"]["metricsExportPort"]
        address = f"http://{node['node_ip']}:{ports}/metrics"

        def served() -> dict[str, str]:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return dict(re.findall(r"^(ray_hpo_\w+)\{(.*)\} ", answer.read().decode(), re.MULTILINE))

        wanted = {metric.served_as for metric in METRICS}
        found = until(lambda: wanted <= set(answer := served()) and answer)
        for metric in METRICS:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', found[metric.served_as]))
            assert labels["experiment"] == "toy_study"
            assert {"run", *metric.labels} <= set(labels)
