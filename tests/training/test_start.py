from __future__ import annotations

import json
import re
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hpo.errors import ExperimentError
from hpo.training.models import ConvNet, Mlp
from hpo.training.start import TensorRow, load_start


def net(*, classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ConvNet(1, classes, filters=(2, 4))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_all_of_them_are_loaded() -> None:
    given_weights = weights(net(seed=1))
    model = net()
    report = load_start(model, given_weights)
    assert same(model, given_weights)
    assert report.counts == {"loaded": len(given_weights)}
    assert report.summary == f"{len(given_weights)} loaded"
    assert report.rows[0] == TensorRow("features.0.weight", "loaded", (2, 1, 3, 3), (2, 1, 3, 3))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_a_wrapper_put_before_the_names_is_taken_off_and_told(prefix: str) -> None:
    given_weights = weights(net(seed=1))
    model = net()
    report = load_start(model, {f"{prefix}{name}": value for name, value in given_weights.items()})
    assert same(model, given_weights)
    assert report.stripped == prefix
    assert report.summary.endswith(f"; names without their {prefix!r}")


def test_a_model_that_has_the_prefix_keeps_it() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    given_weights = weights(nn.ModuleDict({"module": nn.Linear(2, 2)}))
    assert load_start(model, given_weights).stripped == ""
    assert same(model, given_weights)


def test_partially_what_fits_is_loaded_and_each_tensor_told() -> None:
    given_weights = weights(net(classes=5, seed=1))
    del given_weights["features.0.weight"]
    given_weights["extra"] = torch.zeros(2)
    model = net()
    before = weights(model)
    report = load_start(model, given_weights, partial=True)
    fates = {row.name: row for row in report.rows}
    assert fates["features.0.weight"] == TensorRow("features.0.weight", "missing", (2, 1, 3, 3), None)
    assert fates["head.3.bias"] == TensorRow("head.3.bias", "shape differs", (3,), (5,))
    assert fates["extra"] == TensorRow("extra", "unexpected", None, (2,))
    assert fates["features.1.running_var"].fate == "loaded"
    after = model.state_dict()
    for name, row in fates.items():
        if row.fate in ("missing", "shape differs"):
            assert torch.equal(after[name], before[name])
        elif row.fate == "loaded":
            assert torch.equal(after[name], given_weights[name])
    assert report.counts == {"loaded": 9 + 2, "missing": 1, "shape differs": 2, "unexpected": 1}
    assert report.summary == (
        "11 loaded, 1 missing (features.0.weight), 1 unexpected (extra), 2 shape differs (head.3.weight, head.3.bias)"
    )
    told = json.loads(json.dumps(report.as_json()))
    assert told["tensors"][-1] == {
        "name": "extra",
        "fate": "unexpected",
        "model_shape": None,
        "weights_shape": [2],
    }


def test_a_long_summary_is_cut() -> None:
    report = load_start(Mlp(2, 2, hidden=(2,)), weights(Mlp(2, 2, hidden=(2, 2, 2))), partial=True)
    assert "4 unexpected (layers.7.weight, layers.7.bias, layers.10.weight, …)" in report.summary


def test_nothing_is_loaded_unless_all_fit() -> None:
    given_weights = weights(net(classes=5, seed=1))
    given_weights["extra"] = torch.zeros(1)
    del given_weights["features.0.weight"]
    model = net()
    before = weights(model)
    message = (
        "start_from: the weights are not those of this model: shape differs: head.3.weight (5, 4) in the weights, "
        "(3, 4) in the model, head.3.bias (5,) in the weights, (3,) in the model; missing: features.0.weight; "
        "unexpected: extra\n  give the model that they were trained in; or partial=True to load what fits"
    )
    with pytest.raises(ExperimentError, match=re.escape(message)):
        load_start(model, given_weights)
    assert same(model, before)


def test_a_long_list_of_differences_is_cut() -> None:
    with pytest.raises(ExperimentError, match=r"unexpected: layers.7.weight, .*, layers.10.weight and 1 more\n"):
        load_start(Mlp(2, 2, hidden=(2,)), weights(Mlp(2, 2, hidden=(2, 2, 2))))


def test_weights_of_which_nothing_fits_are_refused() -> None:
    with pytest.raises(ExperimentError, match=r"start_from: no tensor of the weights fits this model: missing: weight"):
        load_start(nn.Linear(2, 2), {"other": torch.zeros(1)}, partial=True)


def test_counters_of_batches_may_be_missing() -> None:
    given_weights = {n: v for n, v in weights(net(seed=1)).items() if not n.endswith("num_batches_tracked")}
    report = load_start(net(), given_weights)
    assert report.counts == {"missing": 2, "loaded": len(given_weights)}


def test_values_take_the_types_and_layouts_of_the_model() -> None:
    given_weights = {name: value.double() for name, value in weights(net(seed=1)).items()}
    model = net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_start(model, given_weights)
    weight = model.get_parameter("features.3.weight")
    assert weight.dtype == torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weight.detach().double(), given_weights["features.3.weight"])


def test_a_network_that_asks_for_the_version_of_a_state_takes_one_without() -> None:
    from torchvision.models import mnasnet0_5

    model = mnasnet0_5()
    assert load_start(model, OrderedDict(weights(model))).counts == {"loaded": len(model.state_dict())}


@settings(max_examples=30, deadline=None)
@given(
    ours=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    theirs=st.lists(st.integers(1, 3), max_size=3).map(tuple),
)
def test_each_tensor_of_either_side_has_one_fate(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    model, given_weights = Mlp(2, 2, hidden=ours), weights(Mlp(2, 2, hidden=theirs))
    before = weights(model)
    try:
        report = load_start(model, given_weights, partial=True)
    except ExperimentError:
        assert not any(n in given_weights and v.shape == given_weights[n].shape for n, v in before.items())
        return
    names = [row.name for row in report.rows]
    assert sorted(names) == sorted({*before, *given_weights})
    for row in report.rows:
        if row.fate == "loaded":
            assert torch.equal(model.state_dict()[row.name], given_weights[row.name])
        elif row.fate != "unexpected":
            assert torch.equal(model.state_dict()[row.name], before[row.name])
