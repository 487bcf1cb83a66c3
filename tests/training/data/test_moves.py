from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import rotate

from hpo.training.data.augment import Strengths
from hpo.training.data.draws import draw
from hpo.training.data.moves import ONE, MovedPixels, largest_shift


def images_of(num: int, height: int, width: int, channels: int) -> Tensor:
    """Of uint8, (N, H, W, C)."""
    shape = (num, height, width, channels)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(num)).to(torch.uint8)


def moved(images_NHWC: Tensor, moves: Tensor) -> Tensor:
    """(N, H, W, C), each image moved by its own."""
    num, *shape = images_NHWC.shape
    offsets = MovedPixels(*shape, device=images_NHWC.device).offsets(moves)
    return images_NHWC.reshape(num, -1).gather(1, offsets.view(num, -1)).view(offsets.shape)


def _padded(image_HWC: Tensor, *, pad: int) -> Tensor:
    return torch.from_numpy(np.pad(image_HWC.numpy(), ((pad, pad), (pad, pad), (0, 0)), mode="reflect"))


def _one_by_one(images_NHWC: Tensor, moves_N3: Tensor, angles: list[float] | None = None) -> Tensor:
    """The same, image by image, by NumPy and torchvision: pad, slice, rotate, flip."""
    _, height, width, _ = images_NHWC.shape
    room = max(height, width)  # for the corners of what is rotated
    found = []
    for number, (image, (rows, columns, flip)) in enumerate(zip(images_NHWC, moves_N3.tolist(), strict=True)):
        padded = _padded(image, pad=2 * room)
        part = padded[room + rows :, room + columns :][: height + 2 * room, : width + 2 * room]
        if angles is not None:
            turned = rotate(part.permute(2, 0, 1), angles[number], interpolation=InterpolationMode.NEAREST)
            part = turned.permute(1, 2, 0)
        part = part[room : room + height, room : room + width]
        found.append(part.flip(1) if flip else part)
    return torch.stack(found)


def _turns(angles: list[float]) -> Tensor:
    return torch.tensor(
        [[round(math.cos(math.radians(a)) * ONE), round(math.sin(math.radians(a)) * ONE)] for a in angles]
    )


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3])),
    st.floats(0, 0.5),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_equals_slicing_one_by_one(shape: tuple[int, int, int, int], crop: float, flip: float, seed: int) -> None:
    num, height, width, _ = shape
    images = images_of(*shape)
    generator = torch.Generator().manual_seed(seed)
    draws = draw(Strengths(crop=crop, flip=flip), num=num, height=height, width=width, generator=generator, seed=seed)
    if "moves" in draws:
        assert torch.equal(moved(images, draws["moves"]), _one_by_one(images, draws["moves"]))
        unturned = torch.cat([draws["moves"], _turns([0.0] * num)], 1)
        assert torch.equal(moved(images, unturned), moved(images, draws["moves"]))


@pytest.mark.parametrize("shape", [(16, 16, 3), (15, 15, 1), (12, 21, 3)])
def test_rotation_is_torchvisions(shape: tuple[int, int, int]) -> None:
    """With what lies beyond the edges, which torchvision fills; a pixel half-way between two may come from either."""
    angles = [-180.0, -133.0, -45.0, -10.0, -0.5, 0.0, 3.0, 15.0, 30.0, 60.0, 89.0, 170.0]
    images = images_of(len(angles), *shape)
    generator = torch.Generator().manual_seed(1)
    shifts = torch.stack([torch.randint(low, high, (len(angles),), generator=generator) for low, high in [(-3, 4)] * 2])
    moves = torch.cat([shifts.T, torch.arange(len(angles)).view(-1, 1) % 2], 1)
    found = moved(images, torch.cat([moves, _turns(angles)], 1))
    same = found == _one_by_one(images, moves, angles)
    assert float(same.float().mean()) > 0.995


@pytest.mark.parametrize("quarters", [-2, -1, 0, 1, 2])
def test_quarters_are_exact_and_counter_clockwise(quarters: int) -> None:
    image = images_of(1, 8, 8, 3)
    moves = torch.cat([torch.zeros(1, 3, dtype=torch.int64), _turns([90.0 * quarters])], 1)
    assert torch.equal(moved(image, moves), image.rot90(quarters, (1, 2)))


def test_nothing_but_the_image_shows() -> None:
    """Whatever the move, each pixel of the result is one of the same channel."""
    image = torch.arange(3, dtype=torch.uint8).repeat(4 * 50).view(1, 4, 50, 3)
    moves = torch.tensor([[2, -25, 1, *turn] for turn in _turns([90.0, 31.0, -77.0]).tolist()])
    assert torch.equal(moved(image.expand(3, -1, -1, -1), moves), image.expand(3, -1, -1, -1))


@pytest.mark.parametrize(("side", "share", "pixels"), [(32, 1 / 8, 4), (100, 0.29, 29), (9, 0.5, 4), (1, 0.5, 0)])
def test_shifts_are_whole_pixels(side: int, share: float, pixels: int) -> None:
    assert largest_shift(side, share) == pixels


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    images = images_of(64, 32, 32, 3)
    for strengths in (Strengths(crop=0.5, flip=0.5), Strengths(crop=0.1, flip=0.5, rotate=180)):
        moves = draw(strengths, num=64, height=32, width=32, generator=torch.Generator(), seed=0)["moves"]
        assert torch.equal(moved(images.cuda(), moves.cuda()).cpu(), moved(images, moves))
