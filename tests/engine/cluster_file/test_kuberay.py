"""Kubernetes files of KubeRay."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import yaml

from hpo.engine.cluster_file import Report
from tests.engine.cluster_file.conftest import CLUSTERS, changed, errors, notes

Checked = Callable[..., Report]
TEXT = (CLUSTERS / "kuberay.yaml").read_text().replace("registry.example.com", "registry.of.mine")
POLICY, JOB, CLUSTER = yaml.safe_load_all(TEXT)
WORKER = "spec__workerGroupSpecs__0__"


def with_cluster(**change: Any) -> str:
    return f"{yaml.safe_dump(POLICY)}---\n{changed(CLUSTER, **change)}"


def with_job(**change: Any) -> str:
    return f"{yaml.safe_dump(POLICY)}---\n{changed(JOB, **change)}"


def test_kuberay_yaml_filled_in_is_accepted(checked: Checked) -> None:
    report = checked(TEXT)
    assert (errors(report), notes(report), report.kind, report.costs) == ([], [], "KubeRay file", None)


def test_kuberay_yaml_as_it_is_asks_for_the_image(checked: Checked) -> None:
    found = errors(checked((CLUSTERS / "kuberay.yaml").read_text()))
    assert len(found) == 6
    assert all(re.search(r"image: registry\.example\.com/hpo:0\.1\.0 is an example", each) for each in found)


def test_job_and_cluster_are_the_same_and_of_the_tested_ray() -> None:
    assert JOB["spec"]["rayClusterSpec"] == CLUSTER["spec"]
    assert CLUSTER["spec"]["rayVersion"] == version("ray")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (with_cluster(spec__rayversion="2"), r"RayCluster hpo\.spec\.rayversion: .* nobody\n  did you mean rayVersion"),
        (with_cluster(specs=1), r"RayCluster hpo\.specs: this name is read by nobody"),
        (with_cluster(spec__rayVersion="2.9.0"), r"rayVersion: 2\.9\.0, but here it is "),
        (with_cluster(spec__authOptions=...), r"authOptions\.mode: Ray starts without token authentication"),
        (with_cluster(spec__authOptions__mod="token"), r"authOptions\.mod: .*\n  did you mean mode"),
        (with_cluster(spec__autoscalerOptions=...), "idleTimeoutSeconds: not given: a pod that is idle for one minute"),
        (with_cluster(spec__autoscalerOptions__idleTimeout=1), "did you mean idleTimeoutSeconds"),
        (with_cluster(spec__headGroupSpec__enableIngress=True), "the dashboard and its jobs API are shown outside"),
        (with_cluster(spec__headGroupSpec__serviceType="LoadBalancer"), "LoadBalancer opens Ray's ports outside"),
        (with_cluster(spec__headGroupSpec__replicas=1), r"headGroupSpec\.replicas: this name is read by nobody"),
        (with_cluster(spec__workerGroupSpecs=[]), "workerGroupSpecs: there is no group of workers"),
        (with_cluster(**{f"{WORKER}replica": 1}), "did you mean replicas"),
        (with_cluster(**{f"{WORKER}maxReplicas": ...}), "maxReplicas: not given: there is no limit"),
        (with_cluster(**{f"{WORKER}minReplicas": 2}), "minReplicas 2, replicas 0, maxReplicas 4 do not rise"),
        (with_cluster(**{f"{WORKER}rayStartParams": {"num-cpus": 4}}), "rayStartParams.num-cpus: 4 is not text"),
        (with_cluster(**{f"{WORKER}template": {}}), "containers: there is none"),
        (with_cluster(**{f"{WORKER}template__spec__containers__0__image": "x:latest"}), "x:latest may change under a"),
        (with_cluster(**{f"{WORKER}template__spec__containers__0__image": "x"}), "image: x may change under a study"),
        (
            with_cluster(**{f"{WORKER}template__spec__containers__0__image": "other:1"}),
            r"head and workers have different images: other:1, registry\.of\.mine/hpo:0\.1\.0",
        ),
        (
            with_cluster(**{f"{WORKER}template__spec__containers__0__resources__limits__cpu": ...}),
            "limits.cpu: not given: Ray would count the whole node's",
        ),
        (
            with_cluster(**{f"{WORKER}template__spec__containers__0__resources__requests": {"nvidia.com/gpu": 2}}),
            r"limits and requests differ in nvidia\.com/gpu",
        ),
        (with_job(spec__shutdownAfterJobFinishes=...), "the cluster stays, and is paid for, when the job has ended"),
        (with_job(spec__entrypoint=...), r"RayJob hpo-study\.spec\.entrypoint: not given"),
        (with_job(spec__rayClusterSpec=...), r"rayClusterSpec: not given"),
        (with_job(spec__ttlSeconds=1), "did you mean ttlSecondsAfterFinished"),
        (yaml.safe_dump(CLUSTER), "no NetworkPolicy: every pod of the cluster reaches Ray's ports"),
    ],
)
def test_says(checked: Checked, text: str, says: str) -> None:
    found = "\n".join(errors(checked(text)))
    assert re.search(says, found), found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (with_cluster(spec__enableInTreeAutoscaling=False), "pods are neither added for waiting trials nor given back"),
        (with_cluster(spec__headGroupSpec__rayStartParams={}), "the head may run trials"),
        (with_cluster(kind="RayService"), "RayService is not checked"),
    ],
)
def test_notes(checked: Checked, text: str, says: str) -> None:
    report = checked(text)
    assert errors(report) == []
    assert re.search(says, "\n".join(notes(report)))


def test_a_job_on_a_cluster_that_stands_needs_none_of_its_own(checked: Checked) -> None:
    job = {"entrypoint": "x", "clusterSelector": {"ray.io/cluster": "hpo"}}
    assert errors(checked(with_job(spec=job))) == []
