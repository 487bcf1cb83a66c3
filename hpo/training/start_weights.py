"""The weights that a trial begins with: out of a file, or of torchvision's for the network that it trains."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hpo.errors import ExperimentError
from hpo.start_from import START_FROM, Offered, parse
from hpo.training.learning import Recipe
from hpo.training.models import TorchvisionModel, torchvision_stems, torchvision_weights
from hpo.training.settings import StartSettings
from hpo.training.start import StartReport, load_start
from hpo.training.weights_file import digest, read_weights

_log = logging.getLogger(__name__)


def check_offered(start: StartSettings, model: Callable[..., Any]) -> None:
    """Raise ExperimentError where weights of torchvision are asked for, which has none of that name for `model`."""
    named = parse(start.start_from)
    if isinstance(named, Offered):
        _member(model, named.name)


def load_weights(weights: Path | str, model: nn.Module, *, recipe: Recipe) -> tuple[StartReport, str]:
    """What became of each tensor now that `model` begins with the weights, and the digest of their file.

    It is logged in one line, and with `partial` tensor by tensor.

    Args:
        weights: A file, or "torchvision:NAME".
        model: The one that trains.
        recipe: Of the trial; it says what may be left out.

    Raises:
        DataError: The file is missing, cut off, damaged, or holds something else.
        ExperimentError: The weights do not fit, as `hpo.training.start.load_start` has it.
    """
    named = parse(weights) if isinstance(weights, str) else None
    if isinstance(named, Offered):
        found, path = _offered(recipe.model, named.name, model)
    else:
        path = Path(weights)
        found = read_weights(path)
    report = load_start(model, found, partial=recipe.start.partial)
    _log.info("start from %s: %s", weights, report.summary)
    for row in report.rows if recipe.start.partial else ():
        _log.info("%s: %s (in the model %s, in the weights %s)", row.name, row.fate, row.model_shape, row.weights_shape)
    return report, digest(path)


def _offered(build: Callable[..., Any], name: str, model: nn.Module) -> tuple[Mapping[str, Tensor], Path]:
    member, network = _member(build, name)
    state = torchvision_weights.state_for(model, member, first=torchvision_stems.stem_of(network).first)
    return state, torchvision_weights.find_file(member.url)


def _member(build: Callable[..., Any], name: str) -> tuple[Any, str]:
    """Torchvision's member for the weights, and its name of the network."""
    while isinstance(build, functools.partial):
        build = build.func
    if not isinstance(build, TorchvisionModel):
        shown = getattr(build, "__name__", type(build).__name__)
        raise ExperimentError(
            f"torchvision has no weights for {shown}",
            where=START_FROM,
            remedy='take a TorchvisionModel, e.g. model=TorchvisionModel("resnet18"); or name a file of weights',
        )
    try:
        return torchvision_weights.weights_of(build.name, name), build.name
    except ExperimentError as error:
        raise ExperimentError(error.problem, where=START_FROM, remedy=error.remedy) from None
