"""What an error that Ray passes on says of the attempt that it ended."""

from __future__ import annotations

from ray.exceptions import RayActorError, RayTaskError

from hpo.engine.checkpoint_writer import Written
from hpo.engine.study import LOST_NODE
from hpo.engine.worker import AttemptFailed


class KilledForMemory(RayActorError):  # type: ignore[misc]  # noqa: N818
    """Ray's memory monitor killed the trial's process."""


def written_before(error: BaseException | None) -> tuple[Written, ...]:
    """The checkpoints that a process wrote before its step raised this."""
    original = error.cause if isinstance(error, RayTaskError) else error
    return original.written if isinstance(original, AttemptFailed) else ()


_SIGNS_OF_A_LOST_NODE = ("node has died", "node was terminated", "NodeDiedError", "ObjectLostError")


def explain(error: BaseException | None) -> tuple[str, str, str]:
    """Cause in one word, message and traceback of an attempt's error as Ray gives it."""
    original = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(original, AttemptFailed):
        return original.cause, original.message, original.trace
    if isinstance(error, KilledForMemory) or "running low on memory" in str(error):
        message = "Ray ended the trial's process because the node ran low on memory"
        return "out_of_memory", message, str(error)
    if isinstance(error, RayActorError):
        lost = error.preempted or any(sign in str(error) for sign in _SIGNS_OF_A_LOST_NODE)
        message = "the node of the trial was lost" if lost else "the trial's process died"
        return LOST_NODE if lost else "killed", message, str(error)
    return "error", f"{type(error).__name__}: {error}", str(error)
