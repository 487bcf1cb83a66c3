"""A step's parts on pretended CUDA tensors, which refuse whatever would need their values on the host."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from hpo.training.capturable import CAPTURABLE
from hpo.training.classification import Classification, ConfusionTally
from hpo.training.data import Digits
from hpo.training.data.augment import AUGMENTATIONS
from hpo.training.data.batches import Batches, StoredImages
from hpo.training.data.resident import DeviceImages
from hpo.training.data.streamed import StreamedImages
from hpo.training.models import ConvNet, Mlp
from hpo.training.step import laid_out
from tests.training.test_step import GIVEN

CUDA = torch.device("cuda", 0)


@pytest.fixture
def pretending(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr(torch, "_fused_adam_", _fused_adam)  # which has no pretended form
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield


def _fused_adam(*tensors: list[torch.Tensor], lr: torch.Tensor, **numbers: float) -> None:
    assert {tensor.device for several in tensors for tensor in several} | {lr.device} == {CUDA}
    assert not any(isinstance(number, torch.Tensor) for number in numbers.values())


def test_a_value_that_is_needed_on_the_host_is_refused(pretending: None) -> None:
    with pytest.raises(DataDependentOutputException):
        torch.ones((), device=CUDA).item()


@pytest.mark.parametrize("augment", [(), ("crop", "flip"), AUGMENTATIONS])
@pytest.mark.parametrize("kind", ["resident", "streamed"])
@pytest.mark.parametrize(
    ("model", "config"),
    [
        (ConvNet, {"optimizer": "adam", "weight_decay": 0.1, "dropout": 0.3}),
        (ConvNet, {"optimizer": "adamw", "label_smoothing": 0.1, "amsgrad": True}),
        (ConvNet, {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "channels_last": False}),
        (Mlp, {"optimizer": "sgd", "dropout": 0.2}),
        (Mlp, {"optimizer": "rmsprop", "optimizer.momentum": 0.9, "centered": True, "weight_decay": 0.1}),
        (Mlp, {"optimizer": "adagrad", "lr_decay": 0.1}),
        (Mlp, {"optimizer": "adadelta", "weight_decay": 0.1}),
        (Mlp, {"optimizer": "nadam", "weight_decay": 0.1, "decoupled_weight_decay": True}),
        (Mlp, {"optimizer": "radam", "weight_decay": 0.1}),
    ],
)
def test_a_step_stays_on_the_device(
    pretending: None, kind: str, augment: tuple[str, ...], model: Any, config: dict[str, Any]
) -> None:
    recipe = Classification(model=model, data=Digits()).recipe(config, GIVEN)
    pixels, labels = np.zeros((64, 8, 8, 1), np.uint8), np.arange(64) % 10
    channel = {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32), "device": CUDA}
    with torch.device(CUDA):
        made = recipe.model().train()
    parameters = list(made.parameters())
    optimizer = recipe.capturable(parameters)
    if kind == "resident":
        data: StoredImages = DeviceImages(pixels, labels, **channel)
    else:
        data = StreamedImages.__new__(StreamedImages)  # its CUDA stream needs a GPU, its buffers do not
        super(StreamedImages, data).__init__((8, 8, 1), **channel)
    stream = Batches(data, plan=np.arange(64), batch_size=16, augment=augment, num_classes=10, seed=1)
    inputs, targets = stream.batch()
    outputs = made(laid_out(inputs, recipe))
    numbers = {name: torch.full((), value, device=CUDA) for name, value in recipe.loss_numbers.items()}
    loss = recipe.loss(outputs, targets, **numbers)
    for parameter in parameters:  # the backward pass itself wants a GPU
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tally = ConfusionTally(10, device=CUDA)
    tally.add(outputs.detach(), targets, loss.detach())
    for value in [loss, *tally.result().values(), *parameters]:
        assert isinstance(value, FakeTensor)
        assert value.device == CUDA
    assert type(optimizer).__name__ == type(CAPTURABLE[config["optimizer"]]([torch.zeros(1)])).__name__


def test_an_epoch_is_drawn_on_the_host() -> None:
    part = DeviceImages(
        np.zeros((64, 8, 8, 1), np.uint8),
        np.arange(64) % 10,
        mean=np.zeros(1, np.float32),
        std=np.ones(1, np.float32),
        device=torch.device("cpu"),
    )
    stream = Batches(part, plan=np.arange(64), batch_size=16, augment=AUGMENTATIONS, num_classes=10, seed=1)
    _, order, draws = stream._drawn(0)
    assert {part.device.type for part in (order, *draws.values())} == {"cpu"}
