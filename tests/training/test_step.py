"""Both kinds of steps, by the same laws; on a CPU the captured one is repeated by calling it again."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from hpo.training.capturable import Uncapturable
from hpo.training.classification import Classification, ConfusionTally
from hpo.training.data import Digits
from hpo.training.data.batches import Batches
from hpo.training.data.resident import DeviceImages
from hpo.training.distributed import Team
from hpo.training.learning import Batch, Stream
from hpo.training.models import ConvNet, Dropout
from hpo.training.randomness import seed_process
from hpo.training.share import Share
from hpo.training.step import (
    CapturedStep,
    EagerStep,
    Numbers,
    Record,
    TrainStep,
    Work,
    form,
    left_as_it_was,
    train_once,
)
from hpo.training.step import _pieces as pieces_of
from tests.training.recorders import called_again, cuda_graph_or_skip

CONFIG = {"lr": 0.01, "batch_size": 32, "filters": (4, 8), "augment": ("crop", "flip"), "weight_decay": 0.01}
NUM_CLASSES = 10
GIVEN = {"in_channels": 1, "num_classes": NUM_CLASSES, "image_size": 8, "in_features": 64}


def work_of(
    config: dict[str, Any], folder: Path, *, model: Callable[..., nn.Module] = ConvNet, on: str = "cpu", seed: int = 0
) -> Work:
    """A trial's work, as the trainer puts it together."""
    device = torch.device(on)
    task = Classification(model=model, data=Digits())
    recipe = task.recipe({**CONFIG, **config} if model is ConvNet else config, GIVEN)
    part, labels = _digits(folder, on)
    seed_process(seed)
    made = recipe.model().to(memory_format=torch.channels_last).to(device)
    return Work(
        model=made,
        forward=made,
        optimizer=recipe.capturable(list(made.parameters())),
        stream=Batches(
            part,
            plan=labels.argsort(kind="stable"),
            batch_size=recipe.loop.batch_size,
            augment=recipe.data.augment,
            seed=seed,
        ),
        recipe=recipe,
        tally=ConfusionTally(NUM_CLASSES, device=device),
        cast=nullcontext(),
        device=device,
    )


@functools.cache
def _digits(folder: Path, on: str) -> tuple[DeviceImages, NDArray[np.int64]]:
    """Opened once, as in a trial's process."""
    images = Digits().load(Digits().locate(None), cache_dir=folder)
    return DeviceImages.train_part(images, device=torch.device(on)), images.train_labels


def losses(step: TrainStep, *, num: int) -> list[float]:
    """The loss of each of some steps."""
    step.work.stream.begin_epoch()
    found = []
    for _ in range(num):
        step.work.stream.advance()
        step.work.tally.clear()
        step()
        found.append(float(step.work.tally.result()["loss"]))
    return found


class StepContract:
    """The laws of `TrainStep`; inherit, and say how one is made."""

    on: ClassVar[str] = "cpu"

    def step(self, work: Work) -> TrainStep:
        raise NotImplementedError

    @pytest.fixture
    def new(self, tmp_path: Path) -> Callable[..., TrainStep]:
        return lambda **config: self.step(work_of(config, tmp_path, on=self.on))

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
            {"optimizer": "adamw", "label_smoothing": 0.2},
            {"optimizer": "rmsprop", "momentum": 0.5, "centered": True, "lr": 1e-3},
            {"optimizer": "adagrad"},
            {"optimizer": "adadelta", "lr": 1.0},
            {"optimizer": "nadam", "lr": 1e-3},
            {"optimizer": "radam"},
            {"weight_decay": 0.0, "augment": ()},
            {"optimizer": "sgd", "channels_last": False},
        ],
    )
    def test_the_losses_of_plain_python(self, tmp_path: Path, config: dict[str, Any]) -> None:
        step = self.step(work_of(config, tmp_path, on=self.on))
        plain = work_of(config, tmp_path, on=self.on)
        task = Classification(model=ConvNet, data=Digits())
        recipe = task.recipe({**CONFIG, **config}, GIVEN)
        optimizer = recipe.optimizer(list(plain.model.parameters()))
        expected = losses(EagerStep(replace(plain, optimizer=optimizer)), num=12)
        torch.testing.assert_close(torch.tensor(losses(step, num=12)), torch.tensor(expected), rtol=2e-3, atol=2e-4)

    def test_it_learns(self, new: Callable[..., TrainStep]) -> None:
        step = new(lr=0.03)
        first = losses(step, num=5)
        for _ in range(6):
            last = losses(step, num=40)
        assert sum(last[-5:]) < 0.7 * sum(first)

    def test_numbers_that_are_pushed_reach_the_next_step(self, new: Callable[..., TrainStep]) -> None:
        step = new()
        losses(step, num=2)
        step.work.optimizer.param_groups[0]["lr"] = 0.0
        step.work.optimizer.param_groups[0]["weight_decay"] = 1e-9
        step.push()
        before = [parameter.detach().clone() for parameter in step.work.model.parameters()]
        losses(step, num=2)
        for parameter, old in zip(step.work.model.parameters(), before, strict=True):
            assert torch.equal(parameter, old)

    def test_every_step_drops_others(self, tmp_path: Path) -> None:
        work = work_of({"batch_size": 64, "lr": 1e-9, "optimizer": "sgd"}, tmp_path, model=Dropping, on=self.on, seed=3)
        step = self.step(work)
        seen = work.model.get_buffer("kept")
        seen.zero_()
        losses(step, num=20)
        share = float(seen[1] / seen[0])
        assert abs(share - 0.7) < 0.01  # 20 steps of 64 x 64 draws: a standard deviation of 0.0016
        assert float(seen[2]) > 0.9 * 20 * 64  # no two steps drop the same

    def test_augmentations_differ_from_step_to_step(self, new: Callable[..., TrainStep]) -> None:
        step = new(lr=1e-9, optimizer="sgd", weight_decay=0.0)
        assert len(set(losses(step, num=8))) == 8


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_trial_step_leaves_nothing_in_an_optimizer_that_had_nothing(tmp_path: Path, optimizer: str) -> None:
    work = work_of({"optimizer": optimizer, "momentum": 0.9} if optimizer == "sgd" else {}, tmp_path)
    recipe = Classification(model=ConvNet, data=Digits()).recipe({**CONFIG, "optimizer": optimizer}, GIVEN)
    work = replace(work, optimizer=recipe.optimizer(list(work.model.parameters())))
    before = [parameter.detach().clone() for parameter in work.model.parameters()]
    with left_as_it_was(work):
        train_once(work, Numbers.of(work.recipe))
    assert not work.optimizer.state
    assert all(torch.equal(old, new) for old, new in zip(before, work.model.parameters(), strict=True))


@given(num=st.integers(1, 99), size=st.integers(1, 8), at_once=st.integers(1, 40) | st.none())
def test_every_process_takes_as_many_pieces(num: int, size: int, at_once: int | None) -> None:
    """Else processes that meet in each of them would wait for each other for ever."""
    if num < size:
        return
    portions = [Team(Share(rank, size)).portion(Whole(num)) for rank in range(size)]
    pieces = [pieces_of(len(portion.targets), portion.sizes, at_once=at_once) for portion in portions]
    assert len({len(some) for some in pieces}) == 1
    for portion, some in zip(portions, pieces, strict=True):
        lengths = [piece.stop - piece.start for piece in some]
        assert sum(lengths) == len(portion.targets)
        assert min(lengths) >= 1
        assert at_once is None or max(lengths) <= at_once + 1


class Whole(Stream):
    """One batch of `num` samples, given whole."""

    def __init__(self, num: int) -> None:
        self._num = num

    @property
    def num_samples(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Batch]:
        yield self.batch()

    def batch(self) -> Batch:
        return torch.zeros(self._num, 1), torch.zeros(self._num)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Dropping(nn.Module):
    """Counts what its dropout keeps: [features, kept features, features unlike the step before]."""

    kept: Tensor
    last: Tensor

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.dropout = Dropout(0.3)
        self.linear = nn.Linear(in_features, num_classes)
        self.register_buffer("kept", torch.zeros(3))
        self.register_buffer("last", torch.zeros(64, in_features))

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        mask = (self.dropout(torch.ones_like(flat)) > 0).to(torch.float32)
        with torch.no_grad():
            unlike = (mask != self.last).sum()
            self.kept.add_(torch.stack([torch.ones_like(mask).sum(), mask.sum(), unlike.to(torch.float32)]))
            self.last.copy_(mask)
        logits: Tensor = self.linear(flat)
        return logits


class TestEagerStep(StepContract):
    def step(self, work: Work) -> TrainStep:
        return EagerStep(work)


class TestCapturedStep(StepContract):
    record: Record = staticmethod(called_again)

    def step(self, work: Work) -> TrainStep:
        return CapturedStep(work, type(self).record)

    def test_capturing_leaves_no_trace(self, tmp_path: Path) -> None:
        work, untouched = (work_of({"dropout": 0.5}, tmp_path, on=self.on) for _ in range(2))
        seed_process(5)
        expected = torch.rand(3)
        seed_process(5)
        step = self.step(work)
        assert torch.equal(torch.rand(3), expected)
        for name, value in work.model.state_dict().items():
            assert torch.equal(value, untouched.model.state_dict()[name])
        assert all(not value.any() for state in work.optimizer.state.values() for value in state.values())
        assert float(step.work.tally.result()["accuracy"].nan_to_num()) == 0.0

    def test_it_becomes_the_step_of_another_trial(self, tmp_path: Path) -> None:
        step = self.step(work_of({"lr": 0.02, "dropout": 0.0, "label_smoothing": 0.1}, tmp_path, on=self.on, seed=1))
        losses(step, num=7)
        other = {"lr": 0.005, "weight_decay": 0.3, "dropout": 0.0, "label_smoothing": 0.3}
        fresh, plain = (work_of(other, tmp_path, on=self.on, seed=2) for _ in range(2))
        assert isinstance(step, CapturedStep)
        assert step.form == form(fresh.model, fresh.optimizer, fresh.stream, fresh.recipe)
        step.take(fresh.model, fresh.optimizer, fresh.recipe)
        step.work.stream.restore({"epoch": 0})
        shared = EagerStep(plain)
        fresh.stream.begin_epoch()
        found, expected = [], losses(shared, num=6)
        for _ in range(6):
            fresh.stream.advance()
            step.work.tally.clear()
            step()
            found.append(float(step.work.tally.result()["loss"]))
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=2e-3, atol=2e-4)

    def test_what_draws_on_the_host_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Uncapturable, match="draws random numbers on the host"):
            self.step(work_of({"optimizer": "sgd"}, tmp_path, model=Moody, on=self.on))

    def test_what_changes_on_the_host_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Uncapturable, match="before and after it the models differ in num_calls"):
            self.step(work_of({"optimizer": "sgd"}, tmp_path, model=Counting, on=self.on))

    def test_a_refusal_leaves_no_trace(self, tmp_path: Path) -> None:
        work = work_of({"optimizer": "sgd"}, tmp_path, model=Moody, on=self.on)
        before = [value.detach().clone() for value in work.model.state_dict().values()]
        with pytest.raises(Uncapturable):
            self.step(work)
        assert all(torch.equal(a, b) for a, b in zip(work.model.state_dict().values(), before, strict=True))

    def test_an_error_of_the_model_passes_through(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError):
            self.step(work_of({"optimizer": "sgd"}, tmp_path, model=Broken, on=self.on))

    def test_an_optimizer_that_reads_numbers_on_the_host_is_refused(self, tmp_path: Path) -> None:
        work = work_of({}, tmp_path, on=self.on)
        plain = torch.optim.Adam(work.model.parameters())
        with pytest.raises(Uncapturable, match="its optimizer reads its numbers on the host"):
            self.step(replace(work, optimizer=plain))


@pytest.mark.gpu
class TestCapturedStepOnGpu(TestCapturedStep):
    on = "cuda"
    record = staticmethod(cuda_graph_or_skip)

    @pytest.fixture(autouse=True)
    def _needs_a_gpu(self) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")

    @pytest.mark.parametrize("model", ["looking", "leaping"])
    def test_control_flow_that_depends_on_data_is_refused(self, tmp_path: Path, model: str) -> None:
        kind = {"looking": Looking, "leaping": Leaping}[model]
        work = work_of({"optimizer": "sgd"}, tmp_path, model=kind, on="cuda")
        with pytest.raises(Uncapturable, match=r"the host waits for the device in a step, at test_step\.py:\d+"):
            self.step(work)
        assert losses(EagerStep(work), num=2)  # the device still serves

    def test_a_capture_that_breaks_off_leaves_the_device_fit_for_work(self, tmp_path: Path) -> None:
        work = work_of({"optimizer": "sgd"}, tmp_path, model=Breaking, on="cuda")
        with pytest.raises(Uncapturable):
            self.step(work)
        torch.nn.functional.dropout(torch.ones(1000, device="cuda"))
        assert losses(EagerStep(work), num=2)
        assert losses(self.step(work_of({}, tmp_path, on="cuda")), num=2)


@pytest.mark.gpu
class TestEagerStepOnGpu(TestEagerStep):
    on = "cuda"

    @pytest.fixture(autouse=True)
    def _needs_a_gpu(self) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")


class _Flat(nn.Module):
    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)
        self.num_calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits


class Moody(_Flat):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (2 if random.random() < 0.5 else 1)


class Counting(_Flat):
    def forward(self, inputs: Tensor) -> Tensor:
        self.num_calls += 1
        return super().forward(inputs)


class Broken(_Flat):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) / (1 // 0)


class Looking(_Flat):
    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        return logits * 2 if logits.sum() > 0 else logits


class Leaping(_Flat):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * float(inputs.max())


class Breaking(_Flat):
    def forward(self, inputs: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().synchronize()
        return super().forward(inputs)
