from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

from hpo.training.optimizers import OPTIMIZERS, RULES, state_bytes_per_parameter_byte

TORCH = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_setting_has_a_rule_that_its_default_keeps(name: str) -> None:
    first, *settings = inspect.signature(OPTIMIZERS[name]).parameters.values()
    assert first.name == "parameters"
    assert "lr" in {setting.name for setting in settings}
    for setting in settings:
        assert setting.kind is setting.KEYWORD_ONLY
        assert RULES[setting.name].holds(setting.default)


def test_muon_has_the_defaults_of_the_two_that_it_is() -> None:
    ours = inspect.signature(OPTIMIZERS["muon"]).parameters
    for kind, names in (
        (torch.optim.Muon, ("lr", "momentum", "nesterov", "ns_steps")),
        (torch.optim.AdamW, ("lr", "betas", "eps", "weight_decay")),
    ):
        theirs = inspect.signature(kind).parameters
        assert {name: ours[name].default for name in names} == {name: theirs[name].default for name in names}


def test_a_setting_that_is_no_hyper_parameter_is_refused() -> None:
    with pytest.raises(TypeError, match="maximize"):
        OPTIMIZERS["adam"]([torch.nn.Parameter(torch.ones(2))], maximize=True)


@pytest.mark.parametrize("name", TORCH)
def test_steps_are_those_of_torch(name: str) -> None:
    def trained(make: object, **settings: object) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.arange(6.0))
        optimizer = make([parameter], lr=0.1, **settings)  # type: ignore[operator]
        for _ in range(3):
            optimizer.zero_grad()
            (parameter**2).sum().backward()
            optimizer.step()
        return parameter.detach()

    plain = {"foreach": False, **({"fused": False} if name in ("adam", "adamw", "sgd", "adagrad") else {})}
    torch.testing.assert_close(trained(OPTIMIZERS[name]), trained(TORCH[name], **plain))


def test_training_does_not_import_the_compiler() -> None:
    program = """
import sys, torch
from hpo.training.optimizers import OPTIMIZERS
for make in OPTIMIZERS.values():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make([parameter])
    parameter.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_on_again_after_a_step(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS[name]([parameter])
    parameter.sum().backward()
    optimizer.step()
    assert torch.is_grad_enabled()
    assert parameter.requires_grad


@pytest.mark.parametrize(
    ("name", "settings", "ratio"),
    [("adam", {}, 2), ("adamw", {}, 2), ("adam", {"amsgrad": True}, 3), ("sgd", {}, 0), ("sgd", {"momentum": 0.9}, 1)],
)
def test_state_is_measured(name: str, settings: dict[str, object], ratio: float) -> None:
    assert state_bytes_per_parameter_byte(OPTIMIZERS[name], settings) == ratio
