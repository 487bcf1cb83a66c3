"""The hyper-parameters that belong to no model and no optimizer: those of the data, and those of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hpo.start_from import parse
from hpo.training.rules import Rule, flag, integer, number, one_of, several

WATCHABLE = ("gradients", "updates", "activations", "gap")

_to_watch = one_of(*WATCHABLE, "all")


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


def _is_chunk_freeze(value: object) -> bool:
    blocks = integer(-1)
    return value is None or blocks.holds(value) or several(blocks, example=(), least=1).holds(value)


@dataclass(frozen=True, kw_only=True)
class ChunkSettings:
    """How a trial trains on data that grow; the settings of such data inherit from it, beside those of their kind.

    Attributes:
        epochs_per_chunk: Epochs that each chunk is trained on.
        replay: Samples of the chunks before that are trained on together with a chunk, as a share of its samples, in
            [0, 1]; None: as the data declare.
        chunk_lr_decay: What the learning rate is multiplied by with each further chunk, above 0.
        chunk_rewarm: Whether warm-up and schedule begin anew with each chunk, whose epochs are then their span; else
            they run over all epochs.
        chunk_freeze: So many leading blocks do not train from the second chunk on, as `freeze` has it; of several
            numbers, the first is for the second chunk, and so on, the last one for all that follow. None: as in the
            first chunk.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "epochs_per_chunk": integer(3, least=1),
        "replay": number(0.2, least=0, most=1).or_none(),
        "chunk_lr_decay": number(0.7, above=0),
        "chunk_rewarm": flag(),
        "chunk_freeze": Rule("a number of blocks, a tuple of such numbers, or None", (1, 2), _is_chunk_freeze),
    }

    epochs_per_chunk: int = 1
    replay: float | None = None
    chunk_lr_decay: float = 1.0
    chunk_rewarm: bool = True
    chunk_freeze: int | tuple[int, ...] | None = None

    @property
    def frozen_later(self) -> tuple[int, ...]:
        """The numbers of blocks that `chunk_freeze` gives."""
        freeze = self.chunk_freeze
        return () if freeze is None else (freeze,) if isinstance(freeze, int) else tuple(freeze)


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How a trial trains.

    Attributes:
        epochs_warmup: Epochs, or a fraction of one, in which the learning rate rises to where its schedule begins.
        epochs_ending: Epochs, or a fraction of one, in which it falls from where its schedule has brought it.
        schedule_every: Whether the rate is set for each "step" of the optimizer or for each "epoch".
        lr_scaling: "linear" or "sqrt": `lr` is that of `base_batch_size`, and multiplied by the ratio of the batch
            sizes, or by its root.
        base_batch_size: Samples that `lr` is for, where it is scaled.
        l1: Factor of the sum of the parameters' magnitudes in what is minimised, not in what is reported.
        grad_clip: Largest norm of all gradients together; longer ones are scaled down to it. None: any.
        ema: Decay of a moving average of the weights, in [0, 1), taken after each step, whose weights are measured and
            kept instead of the last ones (`torch.optim.swa_utils.AveragedModel`); 0: none.
        batch_size: Samples of one optimizer step, of all processes of the trial together.
        micro_batch_size: A process takes at most so many at a time through the model, and adds up their gradients;
            less memory, the same step but for batch norm, which sees so many. None: all.
        epochs: The trial is finished after so many; None: it ends when a policy says so.
        channels_last: Lay images and convolutions out with their channels last, which is faster; a model that uses
            `view` on images may need it off.
        precision: Of the model's arithmetic; weights stay float32. "auto" is bfloat16 on a GPU that computes in
            it, float32 elsewhere. A CPU that computes in bfloat16 (AVX-512 BF16, AMX) trained `ConvNet` 1.6 times
            faster in it.
        capture: Whether a step is captured as a CUDA graph and repeated: "auto" where that is possible, "off" never;
            "on": a step that cannot be captured is an error.
        sync_batch_norm: Where several processes train the trial, batch norms take mean and variance over all of their
            samples, as one process would; else each over its own.
        find_unused_parameters: As `DistributedDataParallel` has it: needed where several processes train a model that
            does not use all of its parameters in every step.
        watch: What is reported beside the task's measures (`hpo.training.watch`), a name or several: "gradients"
            (`grad_norm`), "updates" (`update_ratio`) and "activations" (`dead_share` of rectifiers in validation), each
            of the whole model and of each layer; "gap" (`val_loss - train_loss`; the latter is measured while training,
            with dropout and augmentation, so the gap may be negative); "all".
        val_check_interval: Batches of a step: after so many, and at the end of each epoch, the trial measures and
            reports, and may be saved or stopped. Policies, and `scheduler_patience` of "plateau", then count these
            steps. None: a step is an epoch.
        print_freq: Batches between two lines in the trial's log that tell the means of the step so far, for which the
            host waits for the device; None or 0: a line for each step only, as there is in any case.
        compile: Whether the model is compiled by `torch.compile`: "off"; "on"; "auto" on a GPU where the epochs that
            the study is likely to train repay the time.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "epochs_warmup": number(1.0, least=0),
        "epochs_ending": number(1.0, least=0),
        "schedule_every": one_of("step", "epoch"),
        "lr_scaling": one_of("none", "linear", "sqrt"),
        "base_batch_size": integer(256, least=1),
        "l1": number(1e-5, least=0),
        "grad_clip": number(1.0, above=0).or_none(),
        "ema": number(0.999, least=0, below=1),
        "batch_size": integer(128, least=1),
        "micro_batch_size": integer(32, least=1).or_none(),
        "epochs": integer(27, least=1).or_none(),
        "channels_last": flag(),
        "precision": one_of("auto", "float32", "bfloat16"),
        "capture": one_of("auto", "off", "on"),
        "sync_batch_norm": flag(),
        "find_unused_parameters": flag(),
        "watch": Rule(
            f"a name, or a tuple of names, out of {', '.join(map(repr, (*WATCHABLE, 'all')))}",
            ("gradients", "gap"),
            lambda value: _to_watch.holds(value) or several(_to_watch, example=()).holds(value),
        ),
        "val_check_interval": integer(100, least=1).or_none(),
        "print_freq": integer(100, least=0).or_none(),
        "compile": one_of("off", "auto", "on"),
    }

    epochs_warmup: float = 0.0
    epochs_ending: float = 0.0
    schedule_every: str = "step"
    lr_scaling: str = "none"
    base_batch_size: int = 256
    l1: float = 0.0
    grad_clip: float | None = None
    ema: float = 0.0
    batch_size: int = 128
    micro_batch_size: int | None = None
    epochs: int | None = None
    channels_last: bool = True
    precision: str = "auto"
    capture: str = "auto"
    sync_batch_norm: bool = False
    find_unused_parameters: bool = False
    watch: str | tuple[str, ...] = ()
    val_check_interval: int | None = None
    print_freq: int | None = None
    compile: str = "off"

    @property
    def names_to_watch(self) -> frozenset[str]:
        """The names that `watch` gives."""
        return frozenset((self.watch,) if isinstance(self.watch, str) else self.watch)

    @property
    def watched(self) -> frozenset[str]:
        """The same, "all" spelled out."""
        return frozenset(WATCHABLE) if "all" in self.names_to_watch else self.names_to_watch


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """Which weights a trial begins with.

    Attributes:
        start_from: A file of weights (path or URL); "best:EXPERIMENT" or "best:EXPERIMENT/RUN" (`hpo.Best`), the best
            trial of another experiment in the store; "trial:N", an earlier trial of this run, which is waited for; or
            "torchvision:NAME". None: weights are drawn anew.
        partial: Whether tensors may be left as they were drawn, where the weights have none of their name and shape.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "start_from": Rule(
            'a file of weights, "best:EXPERIMENT", "trial:N" or "torchvision:NAME"',
            "best:cifar_lr_dropout",
            lambda value: parse(value) is not None,
        ).or_none(),
        "partial": flag(),
    }

    start_from: str | None = None
    partial: bool = False
