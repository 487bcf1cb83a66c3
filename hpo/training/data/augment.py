"""Random changes to training images, for a whole block of them in one gather, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpo.errors import ExperimentError

AUGMENTATIONS = ("crop", "flip")
"""Names for `augment=(…)`: crop shifts by up to an eighth of the side and mirrors the gap; flip swaps left, right."""


def check_names(names: Sequence[str]) -> None:
    """Raise ExperimentError for the first name that is no augmentation."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise ExperimentError(
                f"{name!r} is no augmentation", where="augment", remedy=f"valid are {', '.join(AUGMENTATIONS)}"
            )


def draw_moves(names: Sequence[str], *, num: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(num, 3) int64 on the generator's device: rows to shift by, columns to shift by, 1 to flip.

    Shifts are uniform over [-side // 8, side // 8], flips are fair. What is not named draws nothing and is 0.

    Raises:
        ExperimentError: A name is no augmentation.
    """
    check_names(names)
    moves_N3 = torch.zeros(num, 3, dtype=torch.int64, device=generator.device)  # noqa: N806
    limits = [side // 8 if "crop" in names else 0 for side in (height, width)]
    for column, (low, high) in enumerate([*((-limit, limit) for limit in limits), (0, int("flip" in names))]):
        if high > low:
            moves_N3[:, column].random_(low, high + 1, generator=generator)
    return moves_N3


def apply_moves(images_NHWC: Tensor, moves_N3: Tensor) -> Tensor:  # noqa: N803
    """(N, C, H, W) of the same type: pixel (y, x) is that of (y + rows, x + columns), then each row is flipped.

    Beyond an edge lies the mirror image, the edge itself not repeated; shifts must be smaller than the side.
    """
    num, height, width, channels = images_NHWC.shape
    device = images_NHWC.device
    shift_y, shift_x, flip = moves_N3.unsqueeze(2).unbind(1)
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows_NH = _mirrored(y + shift_y, height)  # noqa: N806
    columns_NW = _mirrored(torch.where(flip > 0, x.flip(0), x) + shift_x, width)  # noqa: N806
    offsets = (rows_NH * (width * channels)).view(num, 1, height, 1) + (columns_NW * channels).view(num, 1, 1, width)
    offsets = offsets + torch.arange(channels, device=device).view(1, channels, 1, 1)
    return images_NHWC.reshape(num, -1).gather(1, offsets.view(num, -1)).view(num, channels, height, width)


def augment(images_NHWC: Tensor, *, names: Sequence[str], generator: torch.Generator) -> Tensor:  # noqa: N803
    """(N, C, H, W) of the same type, every image changed at random by its own draws; see `draw_moves`.

    Raises:
        ExperimentError: A name is no augmentation.
    """
    num, height, width, _ = images_NHWC.shape
    moves = draw_moves(names, num=num, height=height, width=width, generator=generator)
    return apply_moves(images_NHWC, moves.to(images_NHWC.device))


def _mirrored(positions: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - positions.abs()).abs()
