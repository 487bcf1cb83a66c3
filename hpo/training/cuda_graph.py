"""Captures a function as a CUDA graph, and refuses what a graph would repeat wrongly."""

from __future__ import annotations

import contextlib
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from hpo.errors import HpoError
from hpo.training.capturable import Uncapturable

_WARM_UPS = 3
"""Calls before the capture, on the capturing stream: libraries choose their algorithms and take their memory."""
_OUR_TORCH = str(Path(torch.__file__).parent)


MAY_WAIT = threading.Lock()
"""Held by a thread that waits for the device while another might be looking for what does: PyTorch's switch for that
is one for the whole process."""


def cuda_graph(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What repeats the kernels that `function` launches, on the tensors that it used.

    Raises:
        Uncapturable: It waits for the device, or does something else that no graph can hold.
        HpoError: The attempt made the GPU useless to this process.
        Exception: What the function raises.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function()
            with _refusing_to_wait():
                function()
    finally:  # also where it is refused: what it has begun must not overtake what restores the weights
        torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    return _captured(function, stream, device)


def free_what_graphs_left() -> None:
    """Free the matrix workspaces of the streams that captures used; for when no graph is alive."""
    torch._C._cuda_clearCublasWorkspaces()


def _captured(function: Callable[[], None], stream: torch.cuda.Stream, device: torch.device) -> Callable[[], None]:
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    before = torch.cuda.current_stream(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    spare = generator.clone_state()
    try:
        # Other threads may use the device meanwhile: one may be writing a checkpoint.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            function()
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # which a capture that ends in an error does not do
        _recover(pool, generator, spare, index)
        raise Uncapturable(_words(_first(error))) from error
    return graph.replay


def _recover(pool: tuple[int, int], generator: torch.Generator, spare: torch.Generator, index: int) -> None:
    """After a failed capture generator and allocator may believe that it still goes on.

    Raises:
        HpoError: The device does not answer any more.
    """
    with contextlib.suppress(RuntimeError, AttributeError):  # newer versions of PyTorch have done it themselves
        torch._C._cuda_endAllocateToPool(index, pool)
    with contextlib.suppress(RuntimeError):
        generator.graphsafe_set_state(spare)
    try:
        torch.rand(1, device=torch.device("cuda", index)).item()
    except RuntimeError as error:
        raise HpoError(
            f"the GPU is lost to this process after a step could not be captured ({_words(error)})",
            where="capture",
            remedy="train without: --set capture=off",
        ) from error


def _first(error: BaseException) -> BaseException:
    """What went wrong in the capture; what it ends with says only that something did."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@contextlib.contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Inside, whatever would have the host wait for the device is an error; it would break a capture off."""
    before = torch.cuda.get_sync_debug_mode()
    with MAY_WAIT, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls this mode a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            raise Uncapturable(f"the host waits for the device in a step{_where(error)}") from error
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _where(error: BaseException) -> str:
    """The last line of the traceback that is not PyTorch's own."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OUR_TORCH)]
    return f", at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


def _words(error: BaseException) -> str:
    return " ".join(str(error).partition("\n")[0].split())[:200]
