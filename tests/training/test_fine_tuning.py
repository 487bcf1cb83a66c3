from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpo.errors import ExperimentError
from hpo.training.fine_tuning import FineTuning, FineTuningSettings, RateGroup, hold_frozen_norms
from hpo.training.models import Mlp
from hpo.training.settings import ChunkSettings


class Net(nn.Module):
    """Four blocks: stem with a norm, one, two, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
        self.one = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False))
        self.two = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.two(self.one(self.norm(self.stem(images)))).mean((2, 3)))
        return outputs


STEM = ("stem.weight", "stem.bias", "norm.weight", "norm.bias")
ONE = ("one.0.weight", "one.0.bias")
TWO = ("two.0.weight", "two.1.weight", "two.1.bias")
HEAD = ("head.weight", "head.bias")


def tuning(**settings: Any) -> FineTuning:
    return FineTuning(Net(), FineTuningSettings(**settings))


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        (None, ()),
        (0, ()),
        (1, STEM),
        (2, STEM + ONE),
        (3, STEM + ONE + TWO),
        (-1, STEM + ONE + TWO),
        (-3, STEM),
        (-4, ()),
        (-9, ()),
        ("stem", ("stem.weight", "stem.bias")),
        ("*.weight", ("stem.weight", "norm.weight", "one.0.weight", "two.0.weight", "two.1.weight", "head.weight")),
        ("[ot]*", ONE + TWO),
        ("two.1", ("two.1.weight", "two.1.bias")),
        ("*norm*", ("norm.weight", "norm.bias")),
    ],
)
def test_what_is_frozen(freeze: int | str | None, frozen: tuple[str, ...]) -> None:
    made = tuning(freeze=freeze)
    assert made.frozen(0) == made.frozen(99) == set(frozen)
    assert made.trained(0) == {*STEM, *ONE, *TWO, *HEAD} - set(frozen)


def test_blocks_thaw_from_the_head_downwards() -> None:
    made = tuning(freeze=-1, unfreeze_every=2)
    expected = [STEM + ONE + TWO] * 2 + [STEM + ONE] * 2 + [STEM] * 2 + [()] * 3
    assert [made.frozen(epoch) for epoch in range(9)] == [set(names) for names in expected]
    assert [epoch for epoch in range(9) if made.thaws(epoch)] == [2, 4, 6]


def test_what_a_pattern_froze_thaws_block_by_block_too() -> None:
    made = tuning(freeze="*.weight", unfreeze_every=1)
    assert made.frozen(1) == {"stem.weight", "norm.weight", "one.0.weight", "two.0.weight", "two.1.weight"}
    assert made.frozen(2) == {"stem.weight", "norm.weight", "one.0.weight"}
    assert made.frozen(4) == set()


def test_what_the_model_itself_does_not_train_never_trains() -> None:
    model = Net()
    model.stem.weight.requires_grad_(False)
    made = FineTuning(model, FineTuningSettings(freeze=2, unfreeze_every=1))
    assert made.frozen(5) == {"stem.weight"}
    made.prepare(model, epoch=5)
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["stem.weight"]


@given(freeze=st.integers(-5, 3), every=st.none() | st.integers(1, 3), epoch=st.integers(0, 12))
def test_freezing_is_monotonous_and_leaves_the_head(freeze: int, every: int | None, epoch: int) -> None:
    made = tuning(freeze=freeze, unfreeze_every=every)
    assert made.frozen(epoch + 1) <= made.frozen(epoch)
    assert made.trained(epoch).isdisjoint(made.frozen(epoch))
    assert set(HEAD) <= made.trained(epoch)
    assert made.thaws(epoch + 1) == (made.frozen(epoch + 1) != made.frozen(epoch))
    names = [name for group in made.rate_groups() for name in group.names]
    assert sorted(names) == sorted(made.trained(epoch) | made.frozen(epoch))


def test_rates_by_hand() -> None:
    assert tuning().rate_groups() == (RateGroup(STEM + ONE + TWO + HEAD, 1.0),)
    assert tuning(lr_decay_per_block=0.5).rate_groups() == (
        RateGroup(STEM, 0.125),
        RateGroup(ONE, 0.25),
        RateGroup(TWO, 0.5),
        RateGroup(HEAD, 1.0),
    )
    assert tuning(head_lr_factor=10.0).rate_groups() == (RateGroup(STEM + ONE + TWO, 1.0), RateGroup(HEAD, 10.0))
    both = tuning(lr_decay_per_block=0.5, head_lr_factor=3.0, freeze=1).rate_groups()
    assert [group.factor for group in both] == [0.125, 0.25, 0.5, 3.0]


def test_frozen_norms_by_hand() -> None:
    assert tuning().frozen_norms(0) == ()
    assert tuning(freeze=1).frozen_norms(0) == ("norm",)
    assert tuning(freeze=2).frozen_norms(0) == ("norm", "one.1")
    assert tuning(freeze="*.weight").frozen_norms(0) == ()  # their biases train
    assert tuning(freeze="two.1").frozen_norms(0) == ("two.1",)
    thawing = tuning(freeze=3, unfreeze_every=1)
    assert [thawing.frozen_norms(epoch) for epoch in range(4)] == [
        ("norm", "one.1", "two.1"),
        ("norm", "one.1"),
        ("norm",),
        (),
    ]


def test_a_prepared_model_keeps_what_is_frozen_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = Net()
    made = FineTuning(model, FineTuningSettings(freeze=2, unfreeze_every=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(4):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        made.prepare(model, epoch=epoch)
        optimizer.zero_grad()
        model(torch.randn(8, 3, 3, 3)).square().sum().backward()
        optimizer.step()
        same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
        statistics = {f"{norm}.running_mean" for norm in made.frozen_norms(epoch)}
        assert same >= made.frozen(epoch) | statistics
        assert not same & {"two.1.running_mean", "two.0.weight", "head.weight"}
        assert (epoch < 3) == ("one.0.weight" in same) == ("one.1.running_mean" in same)


def test_training_mode_ends_the_hold() -> None:
    model = Net().train()
    hold_frozen_norms(model, ("norm",))
    assert not model.norm.training
    assert model.two.training
    assert model.train().norm.training


def test_every_rule_has_an_example_that_keeps_it_and_fits_a_setting() -> None:
    assert all(rule.holds(rule.example) for rule in FineTuningSettings.rules.values())
    assert FineTuningSettings.rules.keys() == {field.name for field in dataclasses.fields(FineTuningSettings)}
    FineTuningSettings(**{name: rule.example for name, rule in FineTuningSettings.rules.items()})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("freeze", 1.5, r"1.5 is not a number of blocks, a pattern of names, or None"),
        ("freeze", True, r"True is not a number of blocks"),
        ("freeze", "", r"'' is not a number of blocks"),
        ("unfreeze_every", 0, r"0 is not an integer of at least 1, or None"),
        ("lr_decay_per_block", 1.1, r"1.1 is not a number above 0 and of at most 1"),
        ("head_lr_factor", 0, r"0 is not a number above 0"),
    ],
)
def test_what_a_setting_cannot_be(name: str, value: object, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        FineTuningSettings.rules[name].check(value, where=name)


def test_thawing_of_nothing_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"unfreeze_every: 2 epochs to a block are given, but nothing is frozen"):
        FineTuningSettings(unfreeze_every=2)


@pytest.mark.parametrize("freeze", [4, 9, "*"])
def test_freezing_everything_is_refused(freeze: int | str) -> None:
    message = (
        rf"freeze: '?{freeze if freeze != '*' else '.'}'? leaves nothing to train: .* stem, one, two, head\n.*most 3"
    )
    with pytest.raises(ExperimentError, match=message):
        tuning(freeze=freeze)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"freeze: 'stm' matches no parameter and no .*\n  did you mean 'stem'\?"):
        tuning(freeze="stm")
    with pytest.raises(ExperimentError, match=r"its blocks begin with 'layers.1', 'layers.4'"):
        FineTuning(Mlp(2, 2), FineTuningSettings(freeze="@@@"))


class TestOfChunks:
    """From the second chunk on, `chunk_freeze` takes the place of what is frozen at first."""

    def frozen(self, later: int | tuple[int, ...] | None, *, epochs: int = 8, **settings: Any) -> list[int]:
        """Leading blocks that are frozen in each epoch, of chunks of two epochs."""
        made = FineTuning(Net(), FineTuningSettings(**settings), ChunkSettings(epochs_per_chunk=2, chunk_freeze=later))
        blocks = [STEM, ONE, TWO, HEAD]
        for epoch in range(epochs):
            num = sum(made.frozen(epoch).issuperset(block) for block in blocks)
            assert made.frozen(epoch) == {name for block in blocks[:num] for name in block}
        return [sum(made.frozen(epoch).issuperset(block) for block in blocks) for epoch in range(epochs)]

    def test_one_number_holds_for_all_later_chunks(self) -> None:
        assert self.frozen(2) == [0, 0, 2, 2, 2, 2, 2, 2]
        assert self.frozen(-1) == [0, 0, 3, 3, 3, 3, 3, 3]

    def test_of_several_numbers_the_last_holds_on(self) -> None:
        assert self.frozen((3, 0, 1)) == [0, 0, 3, 3, 0, 0, 1, 1]

    def test_the_first_chunk_is_frozen_as_ever(self) -> None:
        assert self.frozen(0, freeze=2) == [2, 2, 0, 0, 0, 0, 0, 0]
        assert self.frozen(None, freeze=2, unfreeze_every=3) == [2, 2, 2, 1, 1, 1, 0, 0]

    def test_nothing_left_to_train_in_a_later_chunk(self) -> None:
        with pytest.raises(ExperimentError, match=r"^chunk_freeze: 4 leaves nothing .*\n  freeze fewer, at most 3"):
            self.frozen((1, 4))
