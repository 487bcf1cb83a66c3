"""Where the pixels of shifted, flipped and rotated images come from, for a whole block of them, on any device."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LARGEST_SHIFT = 0.5
"""As a share of the side."""
_BITS = 20
ONE = 1 << _BITS
"""What stands for 1 in the sines and cosines of angles: with integers all devices round alike."""


class MovedPixels:
    """Where the pixels of moved images come from.

    The image and its mirror images, edges not repeated, cover the plane. A window on them is shifted, rotated about
    its centre, and its left and right are swapped.

    Args:
        height, width, channels: Of the images.
        device: Where offsets are computed.
    """

    def __init__(self, height: int, width: int, channels: int, *, device: torch.device) -> None:
        self._height, self._width, self._channels = height, width, channels
        self._device = device
        self._channels_C = torch.arange(channels, device=device)

    def offsets(self, moves: Tensor) -> Tensor:
        """(B, H, W, C) int64: for each pixel, its place in the flat image (H, W, C) before the move.

        Args:
            moves: (B, 3) int64: rows to shift by, columns to shift by, 1 to flip. Pixel (y, x) is that of
                (y + rows, x + columns), then each row is flipped. Or (B, 5), with cosine and sine of the angle,
                counter-clockwise, in units of 1 / `ONE`.
        """
        rows, columns = self._shifted(moves) if moves.shape[1] == 3 else self._turned(moves)
        return (rows + columns).unsqueeze(3) + self._channels_C

    def _shifted(self, moves_B3: Tensor) -> tuple[Tensor, Tensor]:
        shift_y, shift_x, flip = moves_B3.unbind(1)
        limit_y, limit_x, rows_SH, columns_SW = self._tables
        rows = rows_SH.index_select(0, shift_y + limit_y)
        columns = columns_SW.index_select(0, torch.add(shift_x + limit_x, flip, alpha=2 * limit_x + 1))
        return rows.unsqueeze(2), columns.unsqueeze(1)

    def _turned(self, moves_B5: Tensor) -> tuple[Tensor, Tensor]:
        shift_y, shift_x, flip, cosine, sine = moves_B5.view(-1, 5, 1, 1).unbind(1)
        # Twice the distances from the centre, which are whole numbers for even sides, too.
        down = _doubled(self._height, self._device).view(1, -1, 1)
        right = _doubled(self._width, self._device).view(1, 1, -1) * (1 - 2 * flip)
        rows = ((cosine * down + sine * right + self._height * ONE) >> _BITS + 1) + shift_y
        columns = ((cosine * right - sine * down + self._width * ONE) >> _BITS + 1) + shift_x
        rows, columns = _mirrored(rows, self._height), _mirrored(columns, self._width)
        return rows * (self._width * self._channels), columns * self._channels

    @functools.cached_property
    def _tables(self) -> tuple[int, int, Tensor, Tensor]:
        """Largest shifts, and for each shift (and flip) where rows (and columns) come from: for any strength alike."""
        limits = largest_shift(self._height, LARGEST_SHIFT), largest_shift(self._width, LARGEST_SHIFT)
        rows, columns = (
            _mirrored(torch.arange(-limit, limit + 1).unsqueeze(1) + torch.arange(side), side)
            for limit, side in zip(limits, (self._height, self._width), strict=True)
        )
        rows_SH = (rows * (self._width * self._channels)).to(self._device)
        columns_SW = (torch.cat([columns, columns.flip(1)]) * self._channels).to(self._device)
        return *limits, rows_SH, columns_SW


def largest_shift(side: int, share: float) -> int:
    """Whole pixels in that share of a side."""
    return int(side * share + 1e-9)  # 0.29 of 100 are 29, though the product is below


def _doubled(side: int, device: torch.device) -> Tensor:
    return 2 * torch.arange(side, device=device) - (side - 1)


def _mirrored(positions: Tensor, size: int) -> Tensor:
    """Each position on the endless line as one of the `size` on the image."""
    period = max(2 * (size - 1), 1)
    return (size - 1) - (positions.remainder(period) - (size - 1)).abs() if size > 1 else torch.zeros_like(positions)
