from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import ExperimentError
from hpo.training.data.augment import AUGMENTATIONS, OFF, USUAL, Strengths
from hpo.training.images import ImageSettings


def test_names_are_as_strong_as_usual() -> None:
    assert Strengths.of(("crop", "flip")) == Strengths(crop=1 / 8, flip=1 / 2)
    assert Strengths.of(AUGMENTATIONS) == USUAL
    assert Strengths.of() == OFF
    assert USUAL.on == set(AUGMENTATIONS)
    assert not OFF.on


def test_a_strength_of_its_own_wins_and_switches_on() -> None:
    settings = ImageSettings(augment=("crop", "flip", "mixup"), crop=0.25, flip=0, rotate=30)
    assert settings.strengths == Strengths(crop=0.25, rotate=30, mixup=USUAL.mixup)
    assert settings.strengths.on == {"crop", "rotate", "mixup"}
    assert ImageSettings().strengths == OFF


@given(st.sets(st.sampled_from(AUGMENTATIONS)), st.sets(st.sampled_from(AUGMENTATIONS)))
def test_what_is_on(named: set[str], given_off: set[str]) -> None:
    assert Strengths.of(named, dict.fromkeys(given_off, 0.0)).on == named - given_off


def test_a_setting_for_each_with_a_rule_for_each() -> None:
    assert set(Strengths.rules) == set(AUGMENTATIONS)
    for name in AUGMENTATIONS:
        rule = ImageSettings.rules[name]
        assert rule.holds(None)
        assert rule.holds(0)
        assert rule.holds(getattr(USUAL, name))
        assert rule.example == getattr(USUAL, name)
        assert not rule.holds(-0.01)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("crop", 0.5),
        ("flip", 1.0),
        ("rotate", 180.0),
        ("brightness", 10.0),
        ("contrast", 10.0),
        ("noise", 1.0),
        ("cutout", 1.0),
        ("erase", 1.0),
        ("mixup", 100.0),
        ("cutmix", 100.0),
    ],
)
def test_ranges(name: str, most: float) -> None:
    Strengths(**{name: most})
    with pytest.raises(ExperimentError, match=rf"{name}: {most + 0.1} is not a number of at least 0 and of at most"):
        Strengths(**{name: most + 0.1})
    with pytest.raises(ExperimentError, match=rf"{name}: nan is not a number"):
        Strengths(**{name: float("nan")})


def test_an_unknown_name() -> None:
    with pytest.raises(ExperimentError, match="augment: 'blur' is no augmentation\n  valid are crop, flip, rotate, "):
        Strengths.of(("crop", "blur"))
