"""Ray itself: starting it, what it has to give, and where it needs guarding."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.job_config import JobConfig
from ray.tune.execution import tune_controller
from ray.tune.execution.class_cache import _ActorClassCache

from hpo.engine.failures import KilledForMemory
from hpo.engine.tokens import check_admission
from hpo.errors import ExperimentError, HpoError
from hpo.per_trial import UNITS, PerTrial

_log = logging.getLogger(__name__)
_DEATH_INFO_MS = "RAY_timeout_ms_task_wait_for_death_info"
"""How long Ray asks why it lost touch with a process: 1 s by itself, too short to learn that the node is gone."""
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    _DEATH_INFO_MS: "30000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_DELIM": ".",
    "TUNE_WARN_THRESHOLD_S": "5",
}
_NO_CODE = ("__pycache__", "node_modules", "site-packages")
MOST_FILES = 2000


def tell_ray(*, slots: int | None = None, address: str | None = None) -> None:
    """Set the environment that Ray reads; what a user has set stays.

    A Ray of the run's own needs no token: it listens on loopback, and would leave one in the user's home. A cluster,
    at `address`, is used with its token.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled" if address is None else "token")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Tune's last words are of files that nothing here writes, and of trials whose failures the study knows.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if slots is not None:
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(slots, 1))


def guard_against_memory_monitor() -> None:
    """Let Tune treat a process that the memory monitor killed as one that died.

    Ray 2.60 raises OutOfMemoryError for it, which is neither of the two errors that Tune's actor manager knows,
    and so ends the whole `fit()`. Calling this twice changes nothing.
    """
    original = RayActorManager._actor_task_failed
    if getattr(original, "guarded", False):
        return

    def task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            kind = KilledForMemory if isinstance(exception, OutOfMemoryError) else RayActorError
            exception = kind(error_msg=f"{type(exception).__name__}: {exception}")
        original(self, tracked_actor_task=tracked_actor_task, exception=exception)

    task_failed.guarded = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = task_failed


class _PlainActors:
    """Stands for Tune's cache of actor classes, which gives each of them environment variables."""

    def __init__(self) -> None:
        self.get = functools.cache(ray.remote)  # each exports the class once more


def take_waiting_processes() -> None:
    """Have Tune's actors live in processes that Ray has started ahead, where the driver brings no code along.

    Such a process has the driver's environment already, but Ray starts another one, which takes a second, for an actor
    that names variables of its own, as Tune's do. Calling this twice changes nothing.
    """
    brings_code = bool(ray.get_runtime_context().runtime_env)
    tune_controller._ActorClassCache = _ActorClassCache if brings_code else _PlainActors


@dataclass(frozen=True)
class Resources:
    """What one trial gets on this cluster: so much for each of its workers."""

    cpus: float
    gpus: float
    workers: int = 1
    strategy: str = "pack"

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPU core{'s' if self.cpus > 1 else ''}"
        if self.gpus:
            each += f" and {self.gpus:g} {'of a GPU' if self.gpus < 1 else 'GPU' if self.gpus == 1 else 'GPUs'}"
        return each if self.workers == 1 else f"{self.workers} workers with {each} each"

    @property
    def gpus_in_all(self) -> float:
        """GPUs of all workers."""
        return self.gpus * self.workers

    def bundles(self) -> list[dict[str, float]]:
        """What Ray reserves: for several workers a bundle each, and none for the actor that starts them."""
        each = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        return [each] if self.workers == 1 else [{}, *(dict(each) for _ in range(self.workers))]

    @property
    def device(self) -> str:
        """Where a trial's tensors live."""
        return "cuda" if self.gpus else "cpu"

    @property
    def num_threads(self) -> int:
        """Intra-op threads that the trial's cores bear."""
        return max(1, int(self.cpus))

    @property
    def trials_per_gpu(self) -> int:
        """Trials that share one GPU; 0 where none has one."""
        return int(1 / self.gpus + 1e-9) if self.gpus else 0

    def sharing(self, trials_per_gpu: int) -> Resources:
        """The same with so many trials on each GPU."""
        return replace(self, gpus=_counted(1 / trials_per_gpu))

    def slots(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Trials that fit at once on nodes with these resources; a worker is never spread over several."""
        return sum(self._on_node(node) for node in nodes) // self.workers

    def _on_node(self, node: Mapping[str, float]) -> int:
        fits = [node.get("CPU", 0) / self.cpus]
        if self.gpus:
            # Shares of a GPU do not add up across GPUs: three trials of 0.4 are two on one GPU and one on the next.
            gpus = node.get("GPU", 0)
            fits.append(gpus * self.trials_per_gpu if self.gpus < 1 else gpus / self.gpus)
        return int(min(fits) + 1e-9)


def _counted(quantity: float) -> float:
    """Rounded down as Ray counts, which itself rounds to the nearest: six trials of 0.1667 are no GPU any more."""
    return math.floor(quantity * UNITS + 1e-6) / UNITS if quantity < 1 else quantity


def nodes_alive() -> list[Mapping[str, float]]:
    """Resources of each node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def local_cpus() -> int:
    """CPU cores that the process may use: in a container fewer than the machine has."""
    return int(ray_utils.get_num_cpus())


def local_gpus() -> int:
    """GPUs of this machine that the process may see."""
    manager: Any = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    return len(visible) if visible is not None else int(manager.get_current_node_num_accelerators())


def shortage(wanted: Resources) -> str:
    """What a trial needs, and what is free of what the cluster has."""
    have, free = ray.cluster_resources(), ray.available_resources()
    units = {"CPU": "CPU cores", "GPU": "GPUs"} if wanted.gpus else {"CPU": "CPU cores"}
    free_of = " and ".join(f"{free.get(name, 0):g} of {have.get(name, 0):g} {unit}" for name, unit in units.items())
    num_nodes = len(nodes_alive())
    return f"each needs {wanted}; free are {free_of}, on {num_nodes} node{'s' if num_nodes > 1 else ''}"


def resources_on(per_trial: PerTrial, nodes: Sequence[Mapping[str, float]]) -> Resources:
    """What a trial gets on these nodes, given by their resources.

    Raises:
        ExperimentError: Not even one trial fits.
    """
    cpus, gpus = (max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU"))
    wanted = Resources(
        cpus=_counted(per_trial.cpus),
        gpus=_counted(per_trial.gpus) if gpus else 0.0,
        workers=per_trial.workers,
        strategy=per_trial.strategy,
    )
    for name, want, have in (("gpus", wanted.gpus, gpus), ("cpus", wanted.cpus, cpus)):
        if want > have:
            raise ExperimentError(
                f"{want:g} is more than the {have:g} that there are",
                where=f"per_trial.{name}",
                remedy=f"lower it with --set per_trial.{name}={int(have)}, or run on a larger machine"
                if have >= 1
                else "no node has any: start some, or say with HPO_MAY_START which may come (docs/clusters.md)",
            )
    if not wanted.slots(nodes):
        fit = replace(wanted, workers=1).slots(nodes)
        raise ExperimentError(
            f"{wanted.workers} do not fit: there is room for {fit} at once, with {replace(wanted, workers=1)} each",
            where="per_trial.workers",
            remedy=f"--set per_trial.workers={fit}, or run on more machines"
            if fit
            else "no node has the cores and the GPUs of a worker both: lower per_trial.cpus or per_trial.gpus",
        )
    return wanted


@contextlib.contextmanager
def shipped(experiment_file: Path) -> Iterator[str]:
    """A copy of the code beside the experiment file, fit to be the working folder of every node."""
    with tempfile.TemporaryDirectory(prefix="hpo-code-") as folder:
        code = Path(folder) / "code"
        code.mkdir()
        for path in _code_beside(experiment_file):
            target = code / path.relative_to(experiment_file.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        yield str(code)


def _code_beside(experiment_file: Path) -> Iterator[Path]:
    """Python files beside the experiment file and below, environments and hidden folders left out."""
    num_files = 0
    for folder, inner, names in os.walk(experiment_file.parent):
        inner[:] = [name for name in inner if _may_hold_code(Path(folder) / name)]
        found = [Path(folder) / name for name in names if name.endswith(".py")]
        num_files += len(found)
        if num_files > MOST_FILES:
            raise ExperimentError(
                f"there are more than {MOST_FILES} Python files beside it and below",
                where=str(experiment_file),
                remedy="put it into a folder of its own: every worker gets what lies beside it",
            )
        yield from found


def _may_hold_code(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in _NO_CODE
    return not hidden and not (folder / "pyvenv.cfg").exists()


@contextlib.contextmanager
def _quiet_raylet() -> Iterator[None]:
    """Log what Ray prints of its own processes: a worker that dies is a trial's failure, and told as one."""
    printing = ray_worker.print_to_stdstream

    def log(data: Mapping[str, Any], **_: Any) -> None:
        for line in data.get("lines", ()):
            _log.info("%s: %s", data.get("pid"), line)

    ray_worker.print_to_stdstream = log
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = printing


def _runtime_env(working_dir: str) -> dict[str, Any]:
    """What Ray brings to every node: the code, and our variables, since no node knows the driver's."""
    # A job's own working folder may lie elsewhere than beside the experiment file: the driver's words go first.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    return {
        "working_dir": working_dir,
        "env_vars": {k: v for k, v in os.environ.items() if k.startswith("HPO_") or k == _DEATH_INFO_MS},
    }


@contextlib.contextmanager
def _lean_agents() -> Iterator[None]:
    """Have Ray start its agents without what only its dashboard needs, as it does where that is not installed."""
    asking = ray_utils.get_dashboard_dependency_error
    ray_utils.get_dashboard_dependency_error = lambda: ImportError("not asked for")
    try:
        yield
    finally:
        ray_utils.get_dashboard_dependency_error = asking


@contextlib.contextmanager
def connected(
    *,
    address: str | None,
    cpus: int | None,
    gpus: int | None,
    code: str,
    dashboard: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Ray for the time of a run: a local one that ends with it, or the cluster at `address`.

    A Ray that this process is connected to already is used as it is.

    Args:
        address: Of the cluster; None: a Ray of this process's own.
        cpus: Of a Ray of its own; all by default.
        gpus: Of a Ray of its own; all by default.
        code: Folder that a cluster's nodes get as their working folder; a Ray of its own sees it where it is.
        dashboard: Have Ray's dashboard.
        metadata: What it says of the job.

    Raises:
        HpoError: There is no cluster at the address, or it does not let this process in.
    """
    tell_ray(address=address)
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Not None: that would follow $RAY_ADDRESS, or join whatever was started on this machine last.
        options |= {"address": "local", "num_cpus": cpus or local_cpus(), "num_gpus": gpus}
        options |= {"include_dashboard": dashboard, "configure_logging": False}
    else:
        check_admission(address)
        options |= {"address": address, "runtime_env": _runtime_env(code)}
    try:
        job = JobConfig(metadata=dict(metadata or {}))
        with contextlib.nullcontext() if dashboard or address is not None else _lean_agents():
            ray.init(job_config=job, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise
        raise HpoError(
            f"no Ray cluster answers ({error})",
            where=f"--address {address}",
            remedy="start one with `ray up` or `ray start --head`, or leave --address out to use this machine",
        ) from error
    try:
        with _quiet_raylet():
            yield
    finally:
        ray.shutdown()
