from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hpo.errors import ExperimentError
from hpo.training.data.augment import AUGMENTATIONS, apply_moves, augment, draw_moves


def _images(num: int, height: int, width: int, channels: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    shape = (num, height, width, channels)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(num)).to(dtype)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _sliced(images_NHWC: Tensor, moves_N3: Tensor) -> Tensor:
    """The same, image by image: pad, slice, flip."""
    _, height, width, _ = images_NHWC.shape
    pad_y, pad_x = height // 8, width // 8
    moved = []
    for image, (rows, columns, flip) in zip(images_NHWC.numpy(), moves_N3.tolist(), strict=True):
        padded = np.pad(image, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="reflect")
        part = padded[pad_y + rows :, pad_x + columns :][:height, :width]
        moved.append(part[:, ::-1] if flip else part)
    return torch.from_numpy(np.stack(moved)).permute(0, 3, 1, 2)


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3])),
    st.sets(st.sampled_from(AUGMENTATIONS)),
    st.integers(0, 2**32),
)
def test_equals_slicing_one_by_one(shape: tuple[int, int, int, int], names: set[str], seed: int) -> None:
    num, height, width, _ = shape
    images = _images(*shape)
    moves = draw_moves(sorted(names), num=num, height=height, width=width, generator=_generator(seed))
    assert torch.equal(apply_moves(images, moves), _sliced(images, moves))


def test_floats_move_alike() -> None:
    images = _images(8, 32, 32, 3)
    moved = [augment(part, names=AUGMENTATIONS, generator=_generator()) for part in (images, images.float())]
    assert moved[0].dtype == torch.uint8
    assert moved[1].dtype == torch.float32
    assert torch.equal(moved[0].float(), moved[1])
    assert moved[0].is_contiguous(memory_format=torch.channels_last)


def test_nothing_named_changes_nothing() -> None:
    images = _images(4, 16, 16, 3)
    assert torch.equal(augment(images, names=(), generator=_generator()), images.permute(0, 3, 1, 2))


def test_draws_cover_their_range_evenly() -> None:
    # Of 9 values 9,000 draws each expect 1,000; a deviation of 200 (6.7 sigma) has a probability below 1e-9.
    moves = draw_moves(AUGMENTATIONS, num=9000, height=32, width=48, generator=_generator())
    rows, columns, flips = (part.unique(return_counts=True) for part in moves.unbind(1))
    assert rows[0].tolist() == list(range(-4, 5))
    assert columns[0].tolist() == list(range(-6, 7))
    assert flips[0].tolist() == [0, 1]
    assert int((rows[1] - 1000).abs().max()) < 200
    assert abs(int(flips[1][0]) - 4500) < 400


def test_same_generator_same_images() -> None:
    images = _images(32, 32, 32, 3)
    first, second, other = (augment(images, names=AUGMENTATIONS, generator=_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_unknown_name() -> None:
    with pytest.raises(ExperimentError, match="augment: 'rotate' is no augmentation\n  valid are crop, flip"):
        augment(_images(1, 8, 8, 1), names=("crop", "rotate"), generator=_generator())


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    images = _images(64, 32, 32, 3)
    on_gpu = augment(images.cuda(), names=AUGMENTATIONS, generator=_generator())
    assert torch.equal(on_gpu.cpu(), augment(images, names=AUGMENTATIONS, generator=_generator()))
