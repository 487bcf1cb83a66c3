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
    moves_N3 = torch.zeros(num, 3, dtype=torch.int64, device=generator.device)
    limits = [side // 8 if "crop" in names else 0 for side in (height, width)]
    for column, (low, high) in enumerate([*((-limit, limit) for limit in limits), (0, int("flip" in names))]):
        if high > low:
            moves_N3[:, column].random_(low, high + 1, generator=generator)
    return moves_N3


class MovedPixels:
    """Where the pixels of moved images come from: tables for all moves that `draw_moves` may draw.

    Args:
        height, width, channels: Of the images.
        device: Where the tables lie.
    """

    def __init__(self, height: int, width: int, channels: int, *, device: torch.device) -> None:
        self._limits = height // 8, width // 8
        rows, columns = (
            _mirrored(torch.arange(-limit, limit + 1).unsqueeze(1) + torch.arange(side), side)
            for limit, side in zip(self._limits, (height, width), strict=True)
        )
        self._rows_SH = (rows * (width * channels)).to(device)
        self._columns_SW = (torch.cat([columns, columns.flip(1)]) * channels).to(device)
        self._channels_C = torch.arange(channels, device=device)

    def offsets(self, moves_B3: Tensor) -> Tensor:
        """(B, H, W, C) int64: for each pixel, its place in the flat image (H, W, C) before the move.

        Pixel (y, x) is that of (y + rows, x + columns), then each row is flipped. Beyond an edge lies the mirror
        image, the edge itself not repeated.
        """
        shift_y, shift_x, flip = moves_B3.unbind(1)
        limit_y, limit_x = self._limits
        rows = self._rows_SH.index_select(0, shift_y + limit_y)
        columns = self._columns_SW.index_select(0, torch.add(shift_x + limit_x, flip, alpha=2 * limit_x + 1))
        return (rows.unsqueeze(2) + columns.unsqueeze(1)).unsqueeze(3) + self._channels_C


def augment(images_NHWC: Tensor, *, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """(N, C, H, W) of the same type, every image changed at random by its own draws; see `draw_moves`.

    Raises:
        ExperimentError: A name is no augmentation.
    """
    num, height, width, _ = images_NHWC.shape
    moves = draw_moves(names, num=num, height=height, width=width, generator=generator)
    return apply_moves(images_NHWC, moves.to(images_NHWC.device))


def apply_moves(images_NHWC: Tensor, moves_N3: Tensor) -> Tensor:
    """(N, C, H, W) of the same type, channels last in memory; see `MovedPixels.offsets`."""
    num, *shape = images_NHWC.shape
    offsets = MovedPixels(*shape, device=images_NHWC.device).offsets(moves_N3)
    return images_NHWC.reshape(num, -1).gather(1, offsets.view(num, -1)).view(offsets.shape).permute(0, 3, 1, 2)


def _mirrored(positions: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - positions.abs()).abs()
