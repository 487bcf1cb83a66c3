"""What a node is asked before a run: each look is a function that runs there and says what it saw."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray

import hpo
from hpo.engine.all_reduce import Ranks, reduce
from hpo.engine.findings import Seen
from hpo.engine.shared_storage import Mark, storage
from hpo.errors import HpoError
from hpo.experiment_file import ExperimentFile, load
from hpo.protocols import Dataset

PACKAGES = ("ray", "torch", "torchvision", "numpy", "pyarrow", "hpo")
LEAST_FREE_GB = {"/dev/shm": 1, "/tmp": 10}  # noqa: S108 - where Ray keeps objects and sessions
"""Less free space than this is a warning."""
LEAST_OPEN_FILES = 8192
FREE_GPU_FRACTION = 0.9
"""A GPU with less of its memory free is in use."""
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_NOWHERE = "http://127.0.0.1:9"  # the port of `discard`, where nobody listens


@dataclass(frozen=True)
class Errand:
    """What a node has to know to look.

    Attributes:
        file: The experiment's file on the driver's machine.
        data_dir: Folder that the user names, absolute.
        folder: The driver's working folder, which relative paths in a task mean.
        hpo_data: `$HPO_DATA` of the driver.
        num_gpus: GPUs that Ray counts on the node.
    """

    file: str
    data_dir: str | None = None
    folder: str = ""
    hpo_data: str | None = None
    num_gpus: int = 0


def look(name: str, errand: Errand) -> Seen:
    """What the look of that name sees; an error is something seen."""
    try:
        return LOOKS[name](errand)
    except HpoError as error:
        return Seen(problem=" ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this node's finding
        return Seen(problem=" ".join(f"{type(error).__name__}: {error}".split()))


# --- The same everywhere ---------------------------------------------------------------------------------------


def python() -> Seen:
    """Python's version."""
    return Seen({"Python": platform.python_version()})


def packages() -> Seen:
    """Versions of the packages that decide what a trial does."""
    return Seen({name: _version(name) for name in PACKAGES})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def code() -> Seen:
    """A digest of this package's own source, which may differ where its version does not."""
    folder = Path(hpo.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return Seen({"hpo's code": digest.hexdigest()[:12]})


def experiment(errand: Errand) -> Seen:
    """The experiment's digest, from the code that was brought here."""
    return Seen({"digest": _experiment(errand).digest})


def _experiment(errand: Errand) -> ExperimentFile:
    file = Path(errand.file)
    brought = ray.get_runtime_context().runtime_env.get("working_dir")
    return load(Path.cwd() / file.name if brought else file)


# --- Data ------------------------------------------------------------------------------------------------------


def data(errand: Errand) -> Seen:
    """Name and fingerprint of the data that a trial would find here: where the driver found it, else in its own place.

    Nothing is downloaded, as a trial does not download: the driver has done it, or has fallen back.
    """
    task = _experiment(errand).experiment.task
    environment = dict.fromkeys(_PROXIES, _NOWHERE) | {"no_proxy": "", "NO_PROXY": ""}
    if errand.hpo_data and Path(errand.hpo_data).exists():
        environment["HPO_DATA"] = errand.hpo_data
    given = Path(errand.data_dir) if errand.data_dir else None
    folder = errand.folder if Path(errand.folder).is_dir() else "."
    with contextlib.chdir(folder), _environment(environment):
        return described(task.locate(given if given and given.exists() else None))


def described(dataset: Dataset) -> Seen:
    """The data set as something seen."""
    facts = {"data set": dataset.name, "fingerprint": dataset.fingerprint}
    return Seen(facts, shown=dataset.name, problem=dataset.fell_back or "", short="fell back")


@contextlib.contextmanager
def _environment(changed: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- The machine -----------------------------------------------------------------------------------------------


def limits() -> Seen:
    """Whether shared memory, open files and temporary files leave room."""
    warnings = [
        f"{free_gb:.2g} GB are free in {folder}, fewer than {least}"
        for folder, least in LEAST_FREE_GB.items()
        if Path(folder).is_dir() and (free_gb := shutil.disk_usage(folder).free / 1e9) < least
    ]
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= open_files < LEAST_OPEN_FILES:
        warnings.append(f"a process may open {open_files} files, fewer than {LEAST_OPEN_FILES}")
    return Seen(warning="; ".join(warnings), short="little room" if warnings else "")


_QUERY = "index,uuid,name,memory.total,memory.free"


def gpus(errand: Errand) -> Seen:
    """Whether the GPUs that Ray counts are there, and free."""
    if not errand.num_gpus:
        return Seen(shown="none", nothing=True)
    try:
        cards = _nvidia_smi(f"--query-gpu={_QUERY}")
        used = _nvidia_smi("--query-compute-apps=gpu_uuid,pid,process_name,used_memory")
    except FileNotFoundError:
        words = f"Ray counts {errand.num_gpus} GPUs, but there is no nvidia-smi to look at them with"
        return Seen(problem=words, short="no nvidia-smi")
    except subprocess.CalledProcessError as error:
        return Seen(problem=f"nvidia-smi fails: {' '.join((error.stdout + error.stderr).split())}", short="nvidia-smi")
    return judged_gpus(errand.num_gpus, cards, used, visible=os.environ.get("CUDA_VISIBLE_DEVICES"))


def _nvidia_smi(query: str) -> str:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def judged_gpus(num_gpus: int, cards: str, used: str, *, visible: str | None = None) -> Seen:
    """What two answers of nvidia-smi say of the GPUs that Ray counts.

    Args:
        num_gpus: So many are counted.
        cards: A line for each GPU: index, uuid, name, MiB in all, MiB free.
        used: A line for each process on one: uuid, pid, name, MiB.
        visible: `CUDA_VISIBLE_DEVICES` of Ray's processes: indices, or beginnings of uuids.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in cards.splitlines() if line.strip()]
    there = len(rows)
    if visible is not None:
        wanted = [word.strip() for word in visible.split(",") if word.strip()]
        if any(word.startswith("MIG-") for word in wanted):
            there = len(wanted)  # parts of GPUs: nvidia-smi lists the whole ones
        else:
            rows = [row for row in rows if any(row[0] == word or row[1].startswith(word) for word in wanted)]
            there = len(rows)
    if there < num_gpus:
        return Seen(problem=f"Ray counts {num_gpus} GPUs, but {there} are visible", short=f"{there} of {num_gpus}")
    busy = []
    for index, uuid, _, total, free in rows:
        on_it = [_process(line) for line in used.splitlines() if line.startswith(uuid)]
        share = _share(free, total)
        if on_it or share < FREE_GPU_FRACTION:
            by = f", and {', '.join(on_it)} on it" if on_it else ""
            busy.append(f"GPU {index} has {share:.0%} of its memory free{by}")
    if busy:
        return Seen(problem="; ".join(busy), short=f"{len(busy)} in use")
    return Seen(shown=str(there))


def _process(line: str) -> str:
    _, pid, rest = line.split(",", 2)
    return f"{rest.rpartition(',')[0].strip()} (pid {pid.strip()})"


def _share(part: str, whole: str) -> float:
    try:
        return float(part) / float(whole)
    except ValueError:  # "[N/A]": memory that it shares with the host
        return 1.0


LOOKS: Mapping[str, Callable[[Errand], Seen]] = {
    "python": lambda _: python(),
    "packages": lambda _: packages(),
    "code": lambda _: code(),
    "experiment": experiment,
    "data": data,
    "gpus": gpus,
    "limits": lambda _: limits(),
}


# --- The process on a node -------------------------------------------------------------------------------------


class Probe:
    """A process on a node that looks, tells the time, and takes part in all-reduces; its methods may run at once."""

    def __init__(self) -> None:
        self._listening: dict[int, socket.socket] = {}

    def look(self, name: str, errand: Errand) -> Seen:
        """What the look of that name sees here."""
        return look(name, errand)

    def storage(self, mark: Mark, writer: str) -> Seen:
        """What is seen of the results here."""
        return storage(mark, writer)

    def time(self) -> float:
        """Seconds since 1970 by this node's clock."""
        return time.time()

    def port(self) -> int:
        """A port where this node's first rank will listen: it is held until then."""
        listening = socket.create_server(("", 0), backlog=1024)
        number = int(listening.getsockname()[1])
        self._listening[number] = listening
        return number

    def reduce(self, ranks: Ranks) -> Seen:
        """Whether the node's ranks got the right sums."""
        return reduce(ranks, self._listening.pop(ranks.port, None) if ranks.first == 0 else None)
