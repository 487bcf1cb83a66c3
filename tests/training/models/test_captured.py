"""A pass through the networks stays on the device, and can be captured."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional

from hpo.training.cuda_graph import cuda_graph
from hpo.training.models import ConvNet, Mlp, TorchvisionModel

NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "average pooling, group norm": (ConvNet, {"pooling": "avg", "norm": "group", "activation": "gelu"}),
    "layer norm": (ConvNet, {"norm": "layer", "activation": "silu", "init": "orthogonal"}),
    "fully connected": (Mlp, {"norm": "batch", "activation": "elu", "init": "kaiming_normal"}),
    "shufflenet_v2_x0_5": (TorchvisionModel("shufflenet_v2_x0_5"), {}),
    "efficientnet_b0": (TorchvisionModel("efficientnet_b0"), {}),
    "swin_t": (TorchvisionModel("swin_t"), {}),
}


def build(name: str, *, dropout: float) -> nn.Module:
    make, settings = NETWORKS[name]
    given = {"in_features": 64} if make is Mlp else {"in_channels": 1}
    size = {"image_size": 8} if isinstance(make, TorchvisionModel) else {}
    model: nn.Module = make(num_classes=10, dropout=dropout, **given, **size, **settings)
    return model.train()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "swin_t"])  # its constructor needs values
def test_a_pass_needs_no_value_on_the_host(name: str) -> None:
    device = torch.device("cuda", 0)
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.simplefilter("ignore")
        with torch.device(device):
            outputs = build(name, dropout=0.3)(torch.zeros(4, 1, 8, 8))
    assert isinstance(outputs, FakeTensor)
    assert outputs.device == device
    assert outputs.shape == (4, 10)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_captured_pass_gives_the_gradients_of_the_first_and_new_dropout_each_time(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    images, targets = torch.randn(4, 1, 8, 8, device=device), torch.arange(4, device=device)
    model = build(name, dropout=0.5).to(device)
    losses = torch.zeros((), device=device)

    def once() -> None:
        model.zero_grad()
        loss = functional.cross_entropy(model(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.copy_(loss.detach())

    repeat = cuda_graph(once, device)
    seen = set()
    for _ in range(4):
        repeat()
        seen.add(float(losses))
    assert len(seen) > 1
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
