"""Fine-tuning: which parameters train in which epoch, and at what part of the learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpo.errors import ExperimentError
from hpo.training.blocks import Block, blocks
from hpo.training.rules import Rule, integer, number
from hpo.training.settings import ChunkSettings


def _is_freeze(value: object) -> bool:
    return value is None or (isinstance(value, str) and bool(value)) or integer(0).holds(value)


@dataclass(frozen=True, kw_only=True)
class FineTuningSettings:
    """How weights that are there already are trained on.

    Attributes:
        freeze: What does not train at first: so many leading blocks (see `blocks`), where -1 is all but the head; or
            the parameters and modules whose names match a pattern, `*` being anything, e.g. "layer1" or "*.bn?"; None:
            nothing.
        unfreeze_every: After each so many epochs the topmost of the blocks that are frozen thaws; None: none ever does
            (gradual unfreezing, Howard & Ruder 2018, section 3.3).
        lr_decay_per_block: What the learning rate is multiplied by for each block further from the head, in (0, 1]
            (discriminative rates, Howard & Ruder 2018, section 3.2, who take 1 / 2.6).
        head_lr_factor: What the learning rate of the last block is multiplied by, above 0.

    Raises:
        ExperimentError: `unfreeze_every` is given, and nothing is frozen.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "freeze": Rule("a number of blocks, a pattern of names, or None", 1, _is_freeze),
        "unfreeze_every": integer(1, least=1).or_none(),
        "lr_decay_per_block": number(0.38, above=0, most=1),
        "head_lr_factor": number(10.0, above=0),
    }

    freeze: int | str | None = None
    unfreeze_every: int | None = None
    lr_decay_per_block: float = 1.0
    head_lr_factor: float = 1.0

    @property
    def is_off(self) -> bool:
        """Whether everything trains, always, at the whole learning rate."""
        return self == FineTuningSettings()

    def __post_init__(self) -> None:
        if self.unfreeze_every is not None and self.freeze is None:
            raise ExperimentError(
                f"{self.unfreeze_every} epochs to a block are given, but nothing is frozen",
                where="unfreeze_every",
                remedy="say what, e.g. freeze=-1 for all but the head; or leave it out",
            )


@dataclass(frozen=True)
class RateGroup:
    """Parameters that share a learning rate.

    Attributes:
        names: In the model's order.
        factor: Of the learning rate.
    """

    names: tuple[str, ...]
    factor: float


@dataclass(frozen=True)
class _Norm:
    name: str
    parameters: frozenset[str]


class FineTuning:
    """What `settings` mean for one model; depends on its architecture alone, and keeps no count of epochs.

    Epochs count from 0: with `unfreeze_every=2`, the first block thaws before epoch 2. A parameter that the model
    itself has made one that does not train never does.

    Args:
        model: New: nothing of it has been frozen here.
        settings: How.
        chunks: Of data that grow: what they freeze from the second chunk on takes the place of what `settings` do.

    Raises:
        ExperimentError: A pattern matches nothing, or nothing is left to train.
    """

    def __init__(self, model: nn.Module, settings: FineTuningSettings, chunks: ChunkSettings | None = None) -> None:
        self.blocks: tuple[Block, ...] = blocks(model)
        self._settings, self._chunks = settings, chunks
        self._never = frozenset(name for name, value in model.named_parameters() if not value.requires_grad)
        self._first = self._frozen_at_first()
        self._norms = [
            _Norm(name, frozenset(own for own, _ in part.named_parameters(prefix=name, recurse=False)))
            for name, part in model.named_modules()
            if isinstance(part, _BatchNorm)
        ]
        if not self.trained(0):
            raise self._all_frozen("freeze", settings.freeze)
        for number_, frozen in enumerate(() if chunks is None else chunks.frozen_later, start=1):
            if chunks is not None and not self.trained(number_ * chunks.epochs_per_chunk):
                raise self._all_frozen("chunk_freeze", frozen)

    def _all_frozen(self, where: str, frozen: object) -> ExperimentError:
        return ExperimentError(
            f"{frozen!r} leaves nothing to train: the model's blocks are "
            + ", ".join(block.name or "the whole model" for block in self.blocks),
            where=where,
            remedy=f"freeze fewer, at most {len(self.blocks) - 1}, or -1 for all but the head",
        )

    def frozen(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that do not train in an epoch."""
        later = () if self._chunks is None else self._chunks.frozen_later
        if self._chunks is not None and later and (chunk := epoch // self._chunks.epochs_per_chunk):
            return self._never | self._in_blocks(later[min(chunk, len(later)) - 1])
        every = self._settings.unfreeze_every
        frozen = [block for block in self.blocks if not self._first.isdisjoint(block.parameters)]
        kept = frozen[: max(0, len(frozen) - (0 if every is None else epoch // every))]
        return self._never | {name for block in kept for name in block.parameters if name in self._first}

    def trained(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that train in an epoch."""
        return frozenset(name for block in self.blocks for name in block.parameters) - self.frozen(epoch)

    def thaws(self, epoch: int) -> bool:
        """Whether other parameters train in this epoch than in the one before it."""
        return epoch > 0 and self.frozen(epoch) != self.frozen(epoch - 1)

    def rate_groups(self) -> tuple[RateGroup, ...]:
        """All parameters, from the input to the head, in groups of one rate each; the same in every epoch.

        One group of factor 1 where the settings say nothing of rates.
        """
        last = len(self.blocks) - 1
        found: list[RateGroup] = []
        for index, block in enumerate(self.blocks):
            settings = self._settings
            factor = settings.head_lr_factor if index == last else settings.lr_decay_per_block ** (last - index)
            if found and found[-1].factor == factor:
                found[-1] = RateGroup(found[-1].names + block.parameters, factor)
            else:
                found.append(RateGroup(block.parameters, factor))
        return tuple(found)

    def frozen_norms(self, epoch: int) -> tuple[str, ...]:
        """Names of the batch norms that are frozen in an epoch: none of their parameters trains.

        One without parameters is frozen where its whole block is.
        """
        frozen = self.frozen(epoch)
        whole = {name for block in self.blocks if frozen.issuperset(block.parameters) for name in block.modules}
        return tuple(
            norm.name for norm in self._norms if (norm.parameters <= frozen if norm.parameters else norm.name in whole)
        )

    def prepare(self, model: nn.Module, *, epoch: int) -> None:
        """Have the parameters of `model`, and its frozen batch norms, be as in that epoch; after `model.train()`."""
        frozen = self.frozen(epoch)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        hold_frozen_norms(model, self.frozen_norms(epoch))

    def _frozen_at_first(self) -> frozenset[str]:
        freeze = self._settings.freeze
        if isinstance(freeze, str):
            return self._matching(freeze)
        return self._in_blocks(freeze or 0)

    def _in_blocks(self, num: int) -> frozenset[str]:
        """Names of the parameters in so many leading blocks, or, below 0, in all but so many."""
        return frozenset(name for block in self.blocks[:num] for name in block.parameters) if num else frozenset()

    def _matching(self, pattern: str) -> frozenset[str]:
        names = [name for block in self.blocks for name in block.parameters]
        found = frozenset(name for name in names if any(fnmatchcase(outer, pattern) for outer in _outward(name)))
        if found:
            return found
        known = sorted({outer for name in names for outer in _outward(name)})
        close = get_close_matches(pattern, known, n=1)
        raise ExperimentError(
            f"{pattern!r} matches no parameter and no module of the model",
            where="freeze",
            remedy=f"did you mean {close[0]!r}?" if close else f"its blocks begin with {_begin(self.blocks)}",
        )


def hold_frozen_norms(model: nn.Module, names: Iterable[str]) -> None:
    """Set the batch norms of these names to evaluate: they use the statistics that they have, and keep them.

    `model.train()` ends it, so it is called after that.
    """
    for name in names:
        model.get_submodule(name).eval()


def _outward(name: str) -> list[str]:
    """The name, and those of the modules around it: of "a.b.weight" also "a.b" and "a"."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _begin(found: tuple[Block, ...]) -> str:
    return ", ".join(repr(block.name) for block in found)
