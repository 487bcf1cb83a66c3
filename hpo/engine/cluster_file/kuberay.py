"""Rules for Kubernetes files of KubeRay: RayCluster and RayJob. No cluster and no kubectl is needed.

The API server drops a field that it does not know without a word, so their names are checked here: those of the custom
resources of KubeRay 1.5 to 1.7 (ray-operator/apis/ray/v1), not those of Kubernetes' own pod template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from hpo.engine.cluster_file.finding import Finding, mapping, sequence, unknown_names

_DOCUMENT = {"apiVersion", "kind", "metadata", "spec"}
_JOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "deletionStrategy",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "managedBy",
    "metadata",
    "preRunningDeadlineSeconds",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
_CLUSTER = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "headServiceAnnotations",
    "managedBy",
    "networkPolicy",
    "rayVersion",
    "suspend",
    "upgradeStrategy",
    "workerGroupSpecs",
}
_AUTH = {"mode", "secretName", "enableK8sTokenAuth"}
_AUTOSCALER = {
    "env",
    "envFrom",
    "idleTimeoutSeconds",
    "image",
    "imagePullPolicy",
    "resources",
    "securityContext",
    "upscalingMode",
    "version",
    "volumeMounts",
}
_GROUP = {"labels", "rayStartParams", "resources", "template"}
_HEAD = _GROUP | {"enableIngress", "headService", "serviceType"}
_WORKER = _GROUP | {
    "groupName",
    "idleTimeoutSeconds",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "replicas",
    "scaleStrategy",
    "suspend",
}
_EXAMPLE = "registry.example.com"
_GPU = "nvidia.com/gpu"


def is_kuberay(documents: list[Any]) -> bool:
    """Whether one of the documents is KubeRay's."""
    return any(str(mapping(each).get("apiVersion", "")).startswith("ray.io/") for each in documents)


def rules(documents: list[Any]) -> Iterator[Finding]:
    """What is wrong with the RayClusters and RayJobs among the documents, and with what surrounds them."""
    for document in map(mapping, documents):
        where = f"{document.get('kind')} {mapping(document.get('metadata')).get('name')}"
        if not str(document.get("apiVersion", "")).startswith("ray.io/"):
            continue
        yield from unknown_names(document, _DOCUMENT, where=where)
        spec = mapping(document.get("spec"))
        if document.get("kind") == "RayJob":
            yield from _job(spec, where)
        elif document.get("kind") == "RayCluster":
            yield from _cluster(spec, f"{where}.spec")
        else:
            yield Finding(where, f"{document.get('kind')} is not checked", "RayCluster and RayJob are", serious=False)
    if not any(mapping(each).get("kind") == "NetworkPolicy" for each in documents):
        problem = "no NetworkPolicy: every pod of the cluster reaches Ray's ports"
        yield Finding("file", problem, "add one that lets only the pods of the namespace and the operator in")


def _job(spec: Mapping[str, Any], where: str) -> Iterator[Finding]:
    yield from unknown_names(spec, _JOB, where=f"{where}.spec")
    if not spec.get("entrypoint"):
        yield Finding(f"{where}.spec.entrypoint", "not given", "name the command: python -m hpo.run FILE …")
    if spec.get("clusterSelector"):
        return
    if not mapping(spec.get("rayClusterSpec")):
        yield Finding(f"{where}.spec.rayClusterSpec", "not given", "say what cluster the job runs on")
        return
    if spec.get("shutdownAfterJobFinishes") is not True:
        problem = "the cluster stays, and is paid for, when the job has ended"
        yield Finding(f"{where}.spec.shutdownAfterJobFinishes", problem, "write true")
    yield from _cluster(mapping(spec["rayClusterSpec"]), f"{where}.spec.rayClusterSpec")


def _cluster(spec: Mapping[str, Any], where: str) -> Iterator[Finding]:
    yield from unknown_names(spec, _CLUSTER, where=where)
    yield from _access(spec, where)
    yield from _scaling(spec, where)
    if str(spec.get("rayVersion")) != version("ray"):
        problem = f"{spec.get('rayVersion')}, but here it is {version('ray')}"
        yield Finding(f"{where}.rayVersion", problem, "name the version that the image holds and you have tested")
    head = mapping(spec.get("headGroupSpec"))
    yield from unknown_names(head, _HEAD, where=f"{where}.headGroupSpec")
    if mapping(head.get("rayStartParams")).get("num-cpus") != "0":
        problem = "the head may run trials"
        yield Finding(f"{where}.headGroupSpec.rayStartParams", problem, 'write num-cpus: "0"', serious=False)
    groups = {"headGroupSpec": head}
    for index, group in enumerate(map(mapping, sequence(spec.get("workerGroupSpecs")))):
        place = f"workerGroupSpecs[{index}]"
        groups[place] = group
        yield from unknown_names(group, _WORKER, where=f"{where}.{place}")
        yield from _replicas(group, f"{where}.{place}")
    if len(groups) == 1:
        yield Finding(f"{where}.workerGroupSpecs", "there is no group of workers", "add one")
    images = set()
    for place, group in groups.items():
        yield from _pod(group, f"{where}.{place}")
        images |= {mapping(each).get("image") for each in _containers(group)[:1]}
        yield from _before(group, f"{where}.{place}")
    if len(images) > 1:
        names = ", ".join(sorted(map(str, images)))
        yield Finding(where, f"head and workers have different images: {names}", "give all nodes the same packages")


def _access(spec: Mapping[str, Any], where: str) -> Iterator[Finding]:
    auth, head = mapping(spec.get("authOptions")), mapping(spec.get("headGroupSpec"))
    yield from unknown_names(auth, _AUTH, where=f"{where}.authOptions")
    if auth.get("mode") != "token":
        problem = "Ray starts without token authentication: its jobs API runs anyone's code"
        yield Finding(f"{where}.authOptions.mode", problem, "write authOptions: {mode: token} (KubeRay 1.5.1 or later)")
    if head.get("enableIngress"):
        problem = "the dashboard and its jobs API are shown outside of the cluster"
        yield Finding(f"{where}.headGroupSpec.enableIngress", problem, "leave it out; use kubectl port-forward")
    kinds = (head.get("serviceType"), mapping(mapping(head.get("headService")).get("spec")).get("type"))
    for kind in kinds:
        if kind not in {None, "ClusterIP"}:
            problem = f"{kind} opens Ray's ports outside of the cluster"
            yield Finding(f"{where}.headGroupSpec.serviceType", problem, "write ClusterIP; use kubectl port-forward")


def _scaling(spec: Mapping[str, Any], where: str) -> Iterator[Finding]:
    options = mapping(spec.get("autoscalerOptions"))
    yield from unknown_names(options, _AUTOSCALER, where=f"{where}.autoscalerOptions")
    if not spec.get("enableInTreeAutoscaling"):
        problem = "pods are neither added for waiting trials nor given back"
        yield Finding(f"{where}.enableInTreeAutoscaling", problem, "write true", serious=False)
    elif "idleTimeoutSeconds" not in options:
        problem = "not given: a pod that is idle for one minute is given back"
        remedy = "name the seconds, more than the longest gap between two trials"
        yield Finding(f"{where}.autoscalerOptions.idleTimeoutSeconds", problem, remedy)


def _replicas(group: Mapping[str, Any], where: str) -> Iterator[Finding]:
    low, high = group.get("minReplicas") or 0, group.get("maxReplicas")
    now = group.get("replicas", low)
    if high is None:
        yield Finding(f"{where}.maxReplicas", "not given: there is no limit", "name the most pods you will pay for")
    elif not 0 <= low <= now <= high:
        problem = f"minReplicas {low}, replicas {now}, maxReplicas {high} do not rise"
        yield Finding(f"{where}.replicas", problem, "let minReplicas <= replicas <= maxReplicas")


def _containers(group: Mapping[str, Any]) -> list[Any]:
    return sequence(mapping(mapping(group.get("template")).get("spec")).get("containers"))


def _before(group: Mapping[str, Any], where: str) -> Iterator[Finding]:
    """Containers that run before Ray's."""
    for index, each in enumerate(sequence(mapping(mapping(group.get("template")).get("spec")).get("initContainers"))):
        if _EXAMPLE in (image := str(mapping(each).get("image"))):
            place = f"{where}.template.spec.initContainers[{index}].image"
            yield Finding(place, f"{image} is an example", "name the image that you have pushed")


def _pod(group: Mapping[str, Any], where: str) -> Iterator[Finding]:
    for name, value in mapping(group.get("rayStartParams")).items():
        if not isinstance(value, str):
            problem = f"{value!r} is not text, which KubeRay demands"
            yield Finding(f"{where}.rayStartParams.{name}", problem, f'write "{value}"')
    containers = _containers(group)
    if not containers:
        yield Finding(f"{where}.template.spec.containers", "there is none", "name one with Ray's image")
        return
    ray = mapping(containers[0])
    image, place = str(ray.get("image") or ""), f"{where}.template.spec.containers[0]"
    if not image or _EXAMPLE in image:
        yield Finding(f"{place}.image", f"{image or 'none'} is an example", "name the image that you have pushed")
    elif not re.search(r"(@sha256:|:(?!latest$|nightly)[\w.-]+$)", image):
        yield Finding(f"{place}.image", f"{image} may change under a study", "name a tag that stays, or a digest")
    resources = mapping(ray.get("resources"))
    limits, requests = mapping(resources.get("limits")), mapping(resources.get("requests"))
    for name in ("cpu", "memory"):
        if name not in limits:
            yield Finding(f"{place}.resources.limits.{name}", "not given: Ray would count the whole node's", "name it")
    if _GPU in {*limits, *requests} and limits.get(_GPU) != requests.get(_GPU, limits.get(_GPU)):
        yield Finding(f"{place}.resources", f"limits and requests differ in {_GPU}", "Kubernetes wants them equal")
