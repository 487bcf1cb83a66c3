"""The hyper-parameters that belong to no model and no optimizer: those of the data, and those of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hpo.training.rules import Rule, flag, integer, number, one_of


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which of the training data a trial sees; kinds of data that have more to say inherit from it.

    Attributes:
        train_ratio: Share of the data that is trained on, in (0, 1); the rest validates.
        train_samples: Train on this many at most, classes in proportion; None for all.
        val_samples: Validate on this many at most, classes in proportion; None for all.
        split_seed: Which split; not derived from the trial's seed, so that all trials of a study share one.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "train_ratio": number(0.9, above=0, below=1),
        "train_samples": integer(5000, least=1).or_none(),
        "val_samples": integer(1000, least=1).or_none(),
        "split_seed": integer(0, least=0),
    }

    train_ratio: float = 0.9
    train_samples: int | None = None
    val_samples: int | None = None
    split_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How a trial trains.

    Attributes:
        batch_size: Samples of one optimizer step.
        epochs: The trial is finished after so many; None: it ends when a policy says so.
        channels_last: Lay images and convolutions out with their channels last, which is faster; a model that uses
            `view` on images may need it off.
        precision: Of the model's arithmetic; weights stay float32. "auto" is bfloat16 on a GPU that computes in
            it, float32 elsewhere. A CPU that computes in bfloat16 (AVX-512 BF16, AMX) trained `ConvNet` 1.6 times
            faster in it.
        capture: Whether a step is captured as a CUDA graph and repeated: "auto" where that is possible, "off" never;
            "on": a step that cannot be captured is an error.
        compile: Whether the model is compiled by `torch.compile`: "off"; "on"; "auto" on a GPU where the epochs that
            the study is likely to train repay the time.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "batch_size": integer(128, least=1),
        "epochs": integer(27, least=1).or_none(),
        "channels_last": flag(),
        "precision": one_of("auto", "float32", "bfloat16"),
        "capture": one_of("auto", "off", "on"),
        "compile": one_of("off", "auto", "on"),
    }

    batch_size: int = 128
    epochs: int | None = None
    channels_last: bool = True
    precision: str = "auto"
    capture: str = "auto"
    compile: str = "off"
