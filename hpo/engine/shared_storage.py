"""Whether all nodes see one and the same results: each reads what the driver wrote, and the driver what each wrote."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from hpo.engine.findings import Seen
from hpo.engine.nodes import Node, answers
from hpo.errors import StoreError
from hpo.storage import is_url, refused, storage_at

REMEDY = (
    "name a folder by --results that all nodes mount at the same path (NFS), or a bucket: --results s3://bucket/folder"
)
LEAST_FREE_GB = 10
"""Less free space than this is a warning."""
WITHIN_S = 60.0
STALE_S = 3.0


@dataclass(frozen=True)
class Mark:
    """The files by which driver and nodes recognise a folder.

    Attributes:
        results: Folder of the store, absolute, or its URI.
        token: Random text, which the files hold and their names contain.
    """

    results: str
    token: str

    def file(self, writer: str) -> str:
        """Name of the file that somebody writes under the results."""
        return f".preflight-{self.token}-{writer}"


def check_storage(results: str, nodes: Sequence[Node]) -> None:
    """Return where every node that trials can be placed on reads and writes the results that this process does.

    One node alone is not asked: it is the one that this process runs on.

    Args:
        results: As `absolute` gives it.
        nodes: All that are alive.

    Raises:
        StoreError: Some do not, and are named; or this process itself cannot write there.
    """
    if len(nodes) < 2:
        return
    nodes = [node for node in nodes if node.runs_trials]
    with marked(results, nodes) as mark:
        look = ray.remote(max_retries=0)(storage)
        seen = answers(
            {node.name: look.options(**node.here).remote(mark, node.node_id) for node in nodes}, within_s=WITHIN_S
        )
        seen = came_back(mark, nodes, seen)
    wrong = [f"{node}: {what.problem}" for node, what in seen.items() if what.problem]
    if wrong:
        raise StoreError(
            f"{len(wrong)} of {len(nodes)} nodes do not see the results\n  " + "\n  ".join(wrong),
            where=results,
            remedy=REMEDY,
        )


@contextlib.contextmanager
def marked(results: str, nodes: Sequence[Node]) -> Iterator[Mark]:
    """A mark that this process has made, and that is gone with all that nodes wrote beside it when the context ends.

    Raises:
        StoreError: Nothing can be written there.
    """
    mark, place = Mark(results, secrets.token_hex(8)), storage_at(results)
    made = not is_url(results) and not Path(results).exists()
    try:
        place.write(mark.file("driver"), mark.token.encode())
    except OSError as error:
        problem, remedy = f"the driver cannot write there: {_reason(results, error)}", "name another place by --results"
        raise StoreError(problem, where=results, remedy=remedy) from error
    try:
        yield mark
    finally:
        for writer in ("driver", *(node.node_id for node in nodes)):
            with contextlib.suppress(OSError):
                place.delete(mark.file(writer))
        if made:
            with contextlib.suppress(OSError):
                Path(results).rmdir()


def storage(mark: Mark, writer: str) -> Seen:
    """What a node sees of the results; it writes a file there, and never makes the folder."""
    folder = None if is_url(mark.results) else Path(mark.results)
    if folder is not None and not folder.is_dir():
        return Seen(problem=f"there is no folder {folder}", short="no folder")
    try:
        text = _read_soon(mark, "driver")
    except FileNotFoundError:
        words = f"{mark.results} is another place than the driver's: what the driver wrote is not in it"
        return Seen(problem=words, short="another place")
    except OSError as error:
        return Seen(problem=f"{mark.results} cannot be read: {_reason(mark.results, error)}", short="cannot read")
    if text != mark.token:
        return Seen(problem=f"{mark.results} does not give back what the driver wrote", short="other content")
    try:
        storage_at(mark.results).write(mark.file(writer), mark.token.encode())
    except OSError as error:
        words = f"{mark.results} cannot be written to: {_reason(mark.results, error)}"
        return Seen(problem=words, short="cannot write")
    return _free(folder) if folder is not None else Seen()


def came_back(mark: Mark, nodes: Sequence[Node], seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """The same, less the nodes whose file cannot be read here."""
    return {node.name: seen[node.name] if seen[node.name].problem else _back(mark, node, seen) for node in nodes}


def _back(mark: Mark, node: Node, seen: Mapping[str, Seen]) -> Seen:
    try:
        same = _read_soon(mark, node.node_id) == mark.token
    except OSError as error:
        words = f"the driver cannot read what the node wrote: {_reason(mark.results, error)}"
        return Seen(problem=words, short="not seen")
    return seen[node.name] if same else Seen(problem="the driver reads something else than the node wrote")


def _read_soon(mark: Mark, writer: str) -> str:
    """What the writer's file holds; NFS remembers for a while that it was not there, so it is looked for again."""
    until = time.monotonic() + STALE_S
    while True:
        try:
            return storage_at(mark.results).read(mark.file(writer)).decode(errors="replace")
        except FileNotFoundError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _free(folder: Path) -> Seen:
    free_gb = shutil.disk_usage(folder).free / 1e9
    shown = f"{free_gb:.3g} GB free"
    scarce = free_gb < LEAST_FREE_GB
    return Seen(shown=shown, warning=f"{shown} under {folder}, fewer than {LEAST_FREE_GB}" if scarce else "")


def absolute(results: Path | str) -> str:
    """The store's place as every node has to find it: an absolute path, or a URL as it is.

    Raises:
        StoreError: It is a URL of no kind that is known.
    """
    return str(results) if is_url(results) else str(Path(results).expanduser().resolve())


def _reason(results: str, error: OSError) -> str:
    """What the place says, without the words around it."""
    if is_url(results):
        return refused(results, error).problem
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())
