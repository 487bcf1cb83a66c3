"""Ray itself: starting it, what it has to give, and where it needs guarding."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.utils import get_num_cpus
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from hpo.errors import ExperimentError, HpoError
from hpo.per_trial import UNITS, PerTrial

_log = logging.getLogger(__name__)
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # a local cluster on loopback; else a token is left in the user's home
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
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


class KilledForMemory(RayActorError):  # type: ignore[misc]  # noqa: N818
    """Ray's memory monitor killed the trial's process."""


def tell_ray(*, slots: int | None = None) -> None:
    """Set the environment that Ray reads; what a user has set stays."""
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


@dataclass(frozen=True)
class Resources:
    """What one trial gets on this cluster."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        cores = f"{self.cpus:g} CPU core{'s' if self.cpus > 1 else ''}"
        if not self.gpus:
            return cores
        return f"{cores} and {self.gpus:g} {'of a GPU' if self.gpus < 1 else 'GPU' if self.gpus == 1 else 'GPUs'}"

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
        """Trials that fit at once on nodes with these resources; a trial is never spread over several."""
        return sum(self._on_node(node) for node in nodes)

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
    return int(get_num_cpus())


def local_gpus() -> int:
    """GPUs of this machine that the process may see."""
    manager: Any = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    return len(visible) if visible is not None else int(manager.get_current_node_num_accelerators())


def resources_on(per_trial: PerTrial, *, cpus: float, gpus: float) -> Resources:
    """What a trial gets where the largest machine has so much.

    Raises:
        ExperimentError: Not even one trial fits.
    """
    wanted = Resources(cpus=_counted(per_trial.cpus), gpus=_counted(per_trial.gpus) if gpus else 0.0)
    for name, want, have in (("gpus", wanted.gpus, gpus), ("cpus", wanted.cpus, cpus)):
        if want > have:
            raise ExperimentError(
                f"{want:g} is more than the {have:g} that there are",
                where=f"per_trial.{name}",
                remedy=f"lower it with --set per_trial.{name}={max(1, int(have))}, or run on a larger machine",
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


@contextlib.contextmanager
def connected(
    *, address: str | None, cpus: int | None, gpus: int | None, working_dir: str, dashboard: bool = False
) -> Iterator[None]:
    """Ray for the time of a run: a local one that ends with it, or the cluster at `address`.

    A Ray that this process is connected to already is used as it is.

    Raises:
        HpoError: There is no cluster at the address.
    """
    tell_ray()
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
        options |= {"address": address}
    try:
        ray.init(runtime_env={"working_dir": working_dir}, **options)
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
