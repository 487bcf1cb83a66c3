from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional

from hpo.training.data.augment import Strengths
from hpo.training.data.changes import ChangedPixels, inside, mixed
from hpo.training.data.draws import draw, partners

CPU = torch.device("cpu")
MEAN, STD = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.25, 0.2, 0.3], np.float32)


def changed(images_NCHW: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """(N, C, H, W) of pixels in [0, 1]: normalised, changed, and no longer normalised."""
    channels = images_NCHW.shape[1]
    mean, std = (torch.from_numpy(part[:channels]).view(-1, 1, 1) for part in (MEAN, STD))
    normalised = ((images_NCHW - mean) / std).permute(0, 2, 3, 1).contiguous()
    found = ChangedPixels(MEAN[:channels], STD[:channels], device=CPU).of(normalised, draws)
    return found.permute(0, 3, 1, 2) * std + mean


def _pixels(num: int, *, channels: int = 3, height: int = 9, width: int = 12) -> Tensor:
    return torch.rand(num, channels, height, width, generator=torch.Generator().manual_seed(num))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_factors_do_what_torchvision_does(name: str, channels: int) -> None:
    images = _pixels(6, channels=channels)
    factors = [0.0, 0.3, 0.9, 1.0, 1.4, 3.0]
    found = changed(images, {name: torch.tensor(factors)})
    adjust = {"brightness": functional.adjust_brightness, "contrast": functional.adjust_contrast}[name]
    expected = torch.stack([adjust(image, factor) for image, factor in zip(images, factors, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_brightness_comes_before_contrast() -> None:
    images = _pixels(1)
    found = changed(images, {"contrast": torch.tensor([1.5]), "brightness": torch.tensor([1.6])})
    expected = functional.adjust_contrast(functional.adjust_brightness(images, 1.6), 1.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_two_channels_are_equally_grey() -> None:
    found = changed(torch.tensor([0.2, 0.6]).view(1, 2, 1, 1), {"contrast": torch.tensor([0.5])})
    torch.testing.assert_close(found.flatten(), torch.tensor([0.3, 0.5]), rtol=0, atol=2e-6)


def test_noise_is_gaussian_in_the_scale_of_pixels() -> None:
    torch.manual_seed(0)
    images = torch.full((2, 3, 100, 100), 0.5)
    added = changed(images, {"noise": torch.tensor([0.1, 0.5])}) - images
    for part, std in zip(added, (0.1, 0.5), strict=True):
        for channel in part:  # of 10,000 draws: mean and deviation are off by 0.01 and 0.007 of it, seven times that
            assert abs(float(channel.mean())) < 0.07 * std
            assert abs(float(channel.std()) / std - 1) < 0.05
            assert abs(float((channel.abs() < std).double().mean()) - 0.6827) < 0.035
    assert float(added.max()) > 0.5  # it is not cut off
    torch.manual_seed(0)
    assert torch.equal(changed(images, {"noise": torch.tensor([0.1, 0.5])}) - images, added)


@pytest.mark.parametrize("name", ["cutout", "erase"])
def test_holes_show_the_mean(name: str) -> None:
    images = _pixels(3)
    boxes = [[2, 5, 0, 12], [0, 0, 0, 0], [8, 9, 3, 4]]
    found = changed(images, {name: torch.tensor(boxes)})
    expected = images.clone()
    for image, (top, bottom, left, right) in zip(expected, boxes, strict=True):
        image[:, top:bottom, left:right] = torch.from_numpy(MEAN).view(3, 1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_nothing_drawn_changes_nothing() -> None:
    images = torch.randn(2, 4, 4, 3)
    pixels = ChangedPixels(MEAN, STD, device=CPU)
    assert pixels.of(images, {}) is images
    neutral = {name: torch.ones(2) for name in ("brightness", "contrast")}
    neutral |= {"noise": torch.zeros(2), "cutout": torch.zeros(2, 4, dtype=torch.int64)}
    within = images.clamp(pixels._black_C, pixels._white_C)
    torch.testing.assert_close(pixels.of(within, neutral), within)


def test_mixing_by_hand() -> None:
    images = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1).repeat(1, 2, 2, 1)
    draws = {
        "partner": torch.tensor([1, 2, 0]),
        "mixup": torch.tensor([0.25, 0.0, 0.0]),
        "cutmix": torch.tensor([[0, 0, 0, 0], [0, 2, 1, 2], [0, 1, 0, 1]]),
        "target": torch.tensor([0.25, 0.5, 0.25]),
    }
    found, targets = mixed(images, torch.tensor([0, 3, 3]), draws, num_classes=4)
    assert found.squeeze(3).tolist() == [[[1.25, 1.25]] * 2, [[2, 4]] * 2, [[1, 4], [4, 4]]]
    assert targets.tolist() == [[0.75, 0, 0, 0.25], [0, 0, 0, 1], [0.25, 0, 0, 0.75]]
    assert targets.dtype == torch.float32


@given(st.floats(0, 10), st.floats(0, 10), st.integers(2, 12), st.integers(1, 9), st.integers(0, 2**32))
def test_mixing_keeps_sums_and_bounds(mixup: float, cutmix: float, num: int, num_classes: int, seed: int) -> None:
    strengths = Strengths(mixup=mixup, cutmix=cutmix)
    draws = draw(strengths, num=num, height=6, width=5, generator=torch.Generator(), seed=seed)
    if not draws:
        return
    draws["partner"] = partners(draws["partner"], batch_size=num)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num, 6, 5, 2, generator=generator)
    labels = torch.randint(num_classes, (num,), generator=generator)
    found, targets = mixed(images, labels, draws, num_classes=num_classes)
    torch.testing.assert_close(targets.sum(1), torch.ones(num))
    assert 0 <= float(targets.min()) <= float(targets.max()) <= 1
    others = images[draws["partner"]]
    assert bool((found >= torch.minimum(images, others) - 1e-5).all())
    assert bool((found <= torch.maximum(images, others) + 1e-5).all())
    same = labels == labels[draws["partner"]]
    torch.testing.assert_close(targets[same].gather(1, labels[same].unsqueeze(1)), torch.ones(int(same.sum()), 1))


def test_a_box_is_open_at_its_ends() -> None:
    found = inside(torch.tensor([[1, 2, 0, 3], [0, 0, 0, 0]]), torch.zeros(2, 3, 4, 1)).squeeze(3)
    assert found.nonzero().tolist() == [[0, 1, 0], [0, 1, 1], [0, 1, 2]]


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    strengths = Strengths(brightness=0.5, contrast=0.5, cutout=0.5, erase=0.5, mixup=1.0, cutmix=1.0)
    draws = draw(strengths, num=32, height=16, width=16, generator=torch.Generator(), seed=0)
    draws["partner"] = partners(draws["partner"], batch_size=32)
    images, labels = torch.randn(32, 16, 16, 3), torch.arange(32) % 10
    found = []
    for device in (CPU, torch.device("cuda")):
        there = {name: part.to(device) for name, part in draws.items()}
        pixels = ChangedPixels(MEAN, STD, device=device).of(images.to(device), there)
        found.append(mixed(pixels, labels.to(device), there, num_classes=10))
    for here, there_ in zip(*found, strict=True):
        torch.testing.assert_close(there_.cpu(), here)
