from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from hpo.training.data.augment import AUGMENTATIONS, OFF, USUAL, Strengths
from hpo.training.data.draws import ERASED_AREA, ERASED_RATIO, draw, partners
from hpo.training.data.moves import ONE


def drawn(
    strengths: Strengths, *, num: int = 20_000, height: int = 32, width: int = 32, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return draw(strengths, num=num, height=height, width=width, generator=generator, seed=seed)


def _form(draws: dict[str, Tensor]) -> dict[str, object]:
    return {name: (part.shape[1:], part.dtype) for name, part in draws.items()}


def _sides(boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
    top, bottom, left, right = boxes_N4.unbind(1)
    return bottom - top, right - left


any_strengths = st.builds(
    Strengths,
    crop=st.floats(0, 0.5),
    flip=st.floats(0, 1),
    rotate=st.floats(0, 180),
    brightness=st.floats(0, 3),
    contrast=st.floats(0, 3),
    noise=st.floats(0, 1),
    cutout=st.floats(0, 1),
    erase=st.floats(0, 1),
    mixup=st.floats(0, 100),
    cutmix=st.floats(0, 100),
)


@given(any_strengths, st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**62))
def test_draws_keep_their_bounds(strengths: Strengths, height: int, width: int, seed: int) -> None:
    draws = drawn(strengths, num=16, height=height, width=width, seed=seed)
    assert all(part.shape[0] == 16 for part in draws.values())
    if "moves" in draws:
        rows, columns, flip = draws["moves"][:, :3].unbind(1)
        assert int(rows.abs().max()) <= strengths.crop * height + 1e-6
        assert int(columns.abs().max()) <= strengths.crop * width + 1e-6
        assert set(flip.tolist()) <= {0, 1}
    for name in {"brightness", "contrast"} & draws.keys():
        change = getattr(strengths, name)
        assert float(draws[name].min()) >= max(0, 1 - change) - 1e-6
        assert float(draws[name].max()) <= 1 + change + 1e-6
    for name in {"cutout", "erase", "cutmix"} & draws.keys():
        top, bottom, left, right = draws[name].unbind(1)
        assert bool(((top >= 0) & (top <= bottom) & (bottom <= height)).all())
        assert bool(((left >= 0) & (left <= right) & (right <= width)).all())
    for name in {"mixup", "target"} & draws.keys():
        assert 0 <= float(draws[name].min()) <= float(draws[name].max()) <= 1


@given(any_strengths, any_strengths)
def test_strengths_are_numbers(some: Strengths, others: Strengths) -> None:
    """What they draw has the same form where the same are on, and where nothing is drawn yet."""
    assert _form(drawn(some, num=3)) == _form(drawn(some, num=0))
    if some.on == others.on:
        assert _form(drawn(some, num=3)) == _form(drawn(others, num=3))


def test_what_is_off_is_not_drawn() -> None:
    assert drawn(OFF) == {}
    names = {"crop": {"moves"}, "flip": {"moves"}, "rotate": {"moves"}}
    names |= {"mixup": {"partner", "mixup", "target"}, "cutmix": {"partner", "cutmix", "target"}}
    for name in AUGMENTATIONS:
        assert drawn(Strengths.of((name,)), num=1).keys() == names.get(name, {name})


def test_the_same_seed_draws_the_same_and_another_others() -> None:
    first, second, other = (drawn(USUAL, num=50, seed=seed) for seed in (1, 1, 2))
    for name, part in first.items():
        assert torch.equal(part, second[name])
        assert name == "noise" or not torch.equal(part, other[name])


def test_no_other_augmentation_changes_what_one_draws() -> None:
    everything = drawn(USUAL, num=50)
    for name in set(AUGMENTATIONS) - {"crop", "flip", "rotate", "mixup", "cutmix"}:
        assert torch.equal(drawn(Strengths.of((name,)), num=50)[name], everything[name])


def test_crops_and_flips_are_what_they_were() -> None:
    """Stored trials are resumed by drawing again: other values here would change what they trained on."""
    moves = drawn(Strengths.of(("crop", "flip")), num=8, seed=3)["moves"]
    assert moves[:4].tolist() == [[0, 3, 1], [1, -3, 0], [-3, 3, 0], [-1, -4, 0]]


def test_crops_cover_their_range_evenly() -> None:
    # Of 9 values 9,000 draws each expect 1,000; a deviation of 200 (6.7 sigma) has a probability below 1e-9.
    moves = drawn(Strengths(crop=1 / 8, flip=0.5), num=9000, width=48)["moves"]
    rows, columns, flips = (part.unique(return_counts=True) for part in moves.unbind(1))
    assert rows[0].tolist() == list(range(-4, 5))
    assert columns[0].tolist() == list(range(-6, 7))
    assert flips[0].tolist() == [0, 1]
    assert int((rows[1] - 1000).abs().max()) < 200
    assert abs(int(flips[1][0]) - 4500) < 400


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_flips_are_as_probable_as_said(probability: float) -> None:
    share = float(drawn(Strengths(flip=probability))["moves"][:, 2].double().mean())
    assert abs(share - probability) < 0.025  # a standard deviation of 0.0035 at most


def test_angles_are_uniform() -> None:
    cosine, sine = (drawn(Strengths(rotate=30))["moves"][:, 3:].double() / ONE).unbind(1)
    torch.testing.assert_close(cosine**2 + sine**2, torch.ones_like(sine), rtol=0, atol=1e-5)
    angles = torch.atan2(sine, cosine).rad2deg()
    assert float(angles.abs().max()) <= 30 + 1e-4
    assert abs(float(angles.mean())) < 0.9  # a standard deviation of 30 / sqrt(3) / sqrt(20,000) = 0.12
    assert abs(float(angles.std()) - 30 / math.sqrt(3)) < 0.5


@pytest.mark.parametrize("name", ["brightness", "contrast"])
@pytest.mark.parametrize("strength", [0.3, 1.5])
def test_factors_have_color_jitters_range(name: str, strength: float) -> None:
    low, high = getattr(v2.ColorJitter(**{name: strength}), name)
    factors = drawn(Strengths(**{name: strength}))[name]
    assert low <= float(factors.min()) < low + 0.001 * (high - low)
    assert high - 0.001 * (high - low) < float(factors.max()) <= high
    assert abs(float(factors.mean()) - (low + high) / 2) < 0.02 * (high - low)  # 0.002 is a standard deviation


def test_noise_is_its_number() -> None:
    assert drawn(Strengths(noise=0.25), num=3)["noise"].tolist() == [0.25] * 3


def test_cutouts_are_centred_on_any_pixel() -> None:
    boxes = drawn(Strengths(cutout=0.25), width=64)["cutout"]
    rows, columns = _sides(boxes)
    assert (int(rows.max()), int(columns.max())) == (8, 8)
    assert (int(rows.min()), int(columns.min())) == (4, 4)  # about a pixel in a corner, and below and to the right
    assert set((boxes[:, 0][boxes[:, 0] > 0]).tolist()) == set(range(1, 28))
    top, bottom, left, right = boxes.unbind(1)
    covered = (top <= 16) & (bottom > 16) & (left <= 32) & (right > 32)
    assert abs(float(covered.double().mean()) - (8 / 32) * (8 / 64)) < 0.009  # 0.0012 is a standard deviation


def test_erasing_has_torchvisions_ranges() -> None:
    reference = v2.RandomErasing()
    assert (tuple(reference.scale), tuple(reference.ratio)) == (ERASED_AREA, ERASED_RATIO)
    # In so large an image that rounding to pixels does not show.
    boxes = drawn(Strengths(erase=0.4), height=2000, width=2000)["erase"]
    erased = boxes[:, 1] > 0
    assert abs(float(erased.double().mean()) - 0.4) < 0.025  # 0.0035 is a standard deviation
    rows, columns = (side[erased].double() for side in _sides(boxes))
    area, ratio = rows * columns / 2000**2, (rows / columns).log()
    assert 0.0199 < float(area.min()) < 0.021
    assert 0.32 < float(area.max()) < 0.331
    assert math.log(0.299) < float(ratio.min()) < math.log(0.31)
    assert math.log(3.2) < float(ratio.max()) < math.log(3.31)
    assert int(rows.max()) < 2000
    # Not quite (0.02 + 0.33) / 2: the largest with the longest sides do not fit.
    parameters = [reference.make_params([torch.zeros(3, 200, 200)]) for _ in range(1500)]
    their_area = sum(found["h"] * found["w"] for found in parameters) / len(parameters) / 200**2
    assert abs(float(area.mean()) - their_area) < 0.016  # 0.0025 is a standard deviation


def test_a_hole_that_never_fits_is_left_out() -> None:
    rows, columns = _sides(drawn(Strengths(erase=1), num=500, height=1)["erase"])
    assert int((rows * columns).max()) == 0


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 8.0])
def test_shares_are_beta(alpha: float) -> None:
    share = drawn(Strengths(mixup=alpha))["mixup"].double()
    assert abs(float(share.mean()) - 0.5) < 0.025  # 0.0035 is a standard deviation at most
    assert abs(float(share.var()) - 1 / (4 * (2 * alpha + 1))) < 0.01
    assert torch.equal(drawn(Strengths(mixup=alpha))["target"].double(), share)


def test_the_target_of_a_box_is_its_area() -> None:
    draws = drawn(Strengths(cutmix=1.0), height=32, width=64)
    rows, columns = _sides(draws["cutmix"])
    torch.testing.assert_close(draws["target"], (rows * columns / (32 * 64)).float())
    assert 0.9 < float(draws["target"].max()) <= 1
    inside = (rows > 0) & (draws["cutmix"][:, [0, 2]] > 0).all(1) & (draws["cutmix"][:, 1] < 32)
    inside &= draws["cutmix"][:, 3] < 64
    ratio = columns[inside].double() / rows[inside]  # as in the image, but for rounding down
    assert abs(float(ratio.median()) - 2) < 0.2


def test_each_image_has_mixup_or_cutmix() -> None:
    draws = drawn(Strengths(mixup=1.0, cutmix=1.0))
    rows, columns = _sides(draws["cutmix"])
    boxed, blended = rows * columns > 0, draws["mixup"] > 0
    assert not bool((boxed & blended).any())
    assert abs(float(blended.double().mean()) - 0.5) < 0.025
    torch.testing.assert_close(draws["target"], draws["mixup"] + (rows * columns / 32**2).float())


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 2**32))
def test_partners_are_dealt_out_within_a_batch(num_batches: int, batch_size: int, seed: int) -> None:
    keys = drawn(Strengths(mixup=1.0), num=num_batches * batch_size, seed=seed)["partner"]
    dealt = partners(keys, batch_size=batch_size).view(num_batches, batch_size)
    assert torch.equal(dealt.sort(1).values, torch.arange(batch_size).expand(num_batches, -1))
