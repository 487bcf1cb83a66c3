"""What Ray's dashboard shows of a run: its address, the names of trials, the metadata of the job."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray._private.ray_constants import KV_NAMESPACE_JOB
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.utils import get_dashboard_dependency_error
from ray.experimental import internal_kv

from hpo.errors import ExperimentError
from hpo.results import RunPaths

STUDY_PAGE = "hpo-study"
"""Grafana's identifier of the page of a study."""
_JOB = "_ray_internal_job_info_"


def check_dashboard_installed() -> None:
    """Raise ExperimentError where Ray was installed without what its dashboard needs."""
    if missing := get_dashboard_dependency_error():
        raise ExperimentError(
            f"Ray's dashboard needs packages that are not installed ({missing})",
            where="--dashboard",
            remedy="pip install 'hpo[cluster]', or leave --dashboard out",
        )


def dashboard_url() -> str:
    """Where the dashboard of the Ray that this process is connected to answers; empty where there is none."""
    address = ray_worker.get_dashboard_url() if ray.is_initialized() else None
    return f"http://{address}" if address else ""


def trial_name(experiment: str, trial: int) -> str:
    """What a trial is called in lists of tasks and processes."""
    return f"{experiment} · trial {trial}"


def process_name(experiment: str, first: int) -> str:
    """What the process is called that trains trial `first` and those after it.

    It is the name in the dashboard's list of actors, which Ray asks for once, when the process begins.
    """
    return f"{trial_name(experiment, first)} and later ones"


def name_steps(actor: Any, name: str) -> None:
    """Have all further `train` calls of an actor's handle named so, and its process while they last.

    The name of a call is the only one of an actor's that can change while it lives.
    """
    vars(actor).pop("train", None)
    actor.train = actor.train.options(name=name)


def job_metadata(paths: RunPaths) -> dict[str, str]:
    """What the dashboard's list of jobs says of a run: `job_name` is a column, the rest is behind it."""
    results = paths.url or str(paths.root.resolve())
    said = {
        "job_name": paths.experiment,
        "run": paths.run_id,
        "results": results,
        "best": f"hpo best {paths.run_id} --results {shlex.quote(results)}",
        "curves": f"hpo tensorboard {paths.run_id} --results {shlex.quote(results)}",
    }
    if grafana := os.environ.get("RAY_GRAFANA_IFRAME_HOST") or os.environ.get("RAY_GRAFANA_HOST"):
        said["page"] = f"{grafana.rstrip('/')}/d/{STUDY_PAGE}?var-run={paths.run_id}"
    return said


def tell_job(metadata: Mapping[str, str]) -> bool:
    """Whether this driver was submitted as a job; its metadata then hold these, too, under the name that it was given.

    A driver that connected by itself has the metadata that it connected with, for good.
    """
    submitted = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) or "{}")
    job = submitted.get("metadata", {}).get("job_submission_id")
    if job is None or not ray.is_initialized():
        return False
    key = f"{_JOB}{job}".encode()
    stored = internal_kv._internal_kv_get(key, namespace=KV_NAMESPACE_JOB)
    if stored is None:
        return False
    info = json.loads(stored)
    before = info.get("metadata") or {}
    info["metadata"] = {**before, **metadata, "job_name": before.get("job_name") or metadata.get("job_name", job)}
    internal_kv._internal_kv_put(key, json.dumps(info).encode(), overwrite=True, namespace=KV_NAMESPACE_JOB)
    return True
