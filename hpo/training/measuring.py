"""What a model is worth on samples that it does not train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hpo.training.distributed import Team
from hpo.training.learning import Batch, Recipe, Source, Tally
from hpo.training.step import cast_of, laid_out

Measured = Mapping[str, Tensor]
"""What `Tally.result` gives."""


class HeldOut:
    """The samples that a trial is measured on: always the same, or, of data that grow, those of the chunks so far.

    Args:
        source: Of the data.
        recipe: Of the trial.
    """

    def __init__(self, source: Source[Any], recipe: Recipe) -> None:
        self._source, self._recipe = source, recipe
        self._chunk: int | None = None
        self._parts = {} if recipe.chunks else {"": source.validation(recipe.data)}

    def parts(self, chunk: int | None) -> Mapping[str, Iterable[Batch]]:
        """The samples held out when this chunk is trained on, by the name of the part; "" where there are no parts."""
        if chunk is not None and chunk != self._chunk:
            self._parts = {}  # its memory is free before the next ones need it
            self._chunk, self._parts = chunk, dict(self._source.parts(self._recipe.data, chunk=chunk))
        return self._parts


class Measuring:
    """Measures models; where memory runs out, on fewer samples at a time from then on.

    Args:
        tally: That nobody else uses.
        device: Where models are.
        team: The processes that measure together.
    """

    def __init__(self, tally: Tally, *, device: torch.device, team: Team) -> None:
        self._tally, self._device, self._team = tally, device, team
        self._at_once: int | None = None

    def begin(self) -> None:
        """Forget how little memory the last trial's model left."""
        self._at_once = None

    @torch.no_grad()
    def of(self, model: nn.Module, recipe: Recipe, batches: Iterable[Batch]) -> Measured:
        """The measures over the batches of all processes; waits for nothing."""
        self._tally.clear()
        model.eval()
        for inputs, targets in batches:
            measured = 0
            while measured < len(targets):
                part = slice(measured, None if self._at_once is None else measured + self._at_once)
                if self._measure(model, recipe, (inputs[part], targets[part])):
                    measured += len(targets[part])
        self._team.add_up(self._tally.sums())
        return self._tally.result()

    def of_parts(self, model: nn.Module, recipe: Recipe, parts: Mapping[str, Iterable[Batch]]) -> dict[str, Measured]:
        """The measures over each part, by its name, and over all of them, by the name ""; each is gone through once."""
        if len(parts) == 1:
            [(name, batches)] = parts.items()
            return dict.fromkeys((name, ""), self.of(model, recipe, batches))
        found: dict[str, Measured] = {}
        before: list[Tensor] = []
        for name, batches in parts.items():
            found[name] = {own: value.clone() for own, value in self.of(model, recipe, batches).items()}
            sums = self._tally.sums()
            for total, others in zip(sums, before or [torch.zeros_like(total) for total in sums], strict=True):
                total.add_(others)
            before = [total.clone() for total in sums]
        return {**found, "": self._tally.result()}

    def _measure(self, model: nn.Module, recipe: Recipe, batch: Batch) -> bool:
        """Whether there was room for so many samples; else fewer are measured at once from now on."""
        inputs, targets = batch
        try:
            with cast_of(recipe, self._device):
                outputs = model(laid_out(inputs, recipe))
                loss = recipe.measured_loss(outputs, targets)
        except torch.OutOfMemoryError:
            if not self._team.is_alone or len(targets) == 1:
                raise
            self._at_once = (len(targets) + 1) // 2
            return False
        self._tally.add(outputs, targets, loss)
        return True
