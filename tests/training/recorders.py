"""What captures a step in the tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hpo.training.cuda_graph import cuda_graph


def called_again(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """On a CPU: repeats by calling, after warming up as a capture does."""
    for _ in range(3):
        function()
    return function


def cuda_graph_or_skip(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A CUDA graph."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return cuda_graph(function, device)
