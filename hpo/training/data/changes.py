"""What happens to the pixels of normalised images, with what was drawn for each; nothing here waits for the device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.training.data.draws import Draws
from hpo.training.learning import Batch

_GREY = (0.2989, 0.587, 0.114)
"""Red's, green's and blue's parts of the grey level (ITU-R BT.601), as torchvision has them."""


class ChangedPixels:
    """Brightness, contrast, noise and holes, of images that are normalised already.

    Args:
        mean: (C,) of pixels scaled to [0, 1].
        std: (C,) likewise.
        device: Where images are.
    """

    def __init__(self, mean: NDArray[np.float32], std: NDArray[np.float32], *, device: torch.device) -> None:
        parts = _GREY if len(mean) == 3 else (1 / len(mean),) * len(mean)
        self._mean_C, self._std_C = (torch.from_numpy(np.array(part)).to(device) for part in (mean, std))
        self._black_C = torch.from_numpy(-mean / std).to(device)
        self._white_C = torch.from_numpy(255 * (1 / (255 * std)) - mean / std).to(device)
        self._grey_C = torch.tensor(parts, dtype=torch.float32, device=device)

    def of(self, images_BHWC: Tensor, draws: Draws) -> Tensor:
        """(B, H, W, C) float32, changed by those `draws` that there are."""
        images = images_BHWC
        if "brightness" in draws:
            images = self._black_C.lerp(images, _each(draws["brightness"])).clamp(self._black_C, self._white_C)
        if "contrast" in draws:
            images = self._grey(images).lerp(images, _each(draws["contrast"])).clamp(self._black_C, self._white_C)
        if "noise" in draws:
            images = images.addcmul(torch.randn_like(images), _each(draws["noise"]) / self._std_C)
        for name in ("cutout", "erase"):
            if name in draws:
                images = images.masked_fill(inside(draws[name], images), 0.0)
        return images

    def _grey(self, images_BHWC: Tensor) -> Tensor:
        """(B, 1, 1, C): the mean grey level of each image, normalised as its channels are."""
        means_BC = images_BHWC.mean((1, 2)) * self._std_C + self._mean_C
        return (_each((means_BC * self._grey_C).sum(1)) - self._mean_C) / self._std_C


def mixed(images_BHWC: Tensor, labels_B: Tensor, draws: Draws, *, num_classes: int) -> Batch:
    """(B, H, W, C) images, each mixed with its partner; (B, K) float32 probabilities of the classes.

    Args:
        images_BHWC: float32.
        labels_B: int64.
        draws: Among them `partner`: (B,) int64, which image of these.
        num_classes: K.
    """
    partner_B = draws["partner"]
    others = images_BHWC.index_select(0, partner_B)
    images = images_BHWC
    if "mixup" in draws:
        images = images.lerp(others, _each(draws["mixup"]))
    if "cutmix" in draws:
        images = torch.where(inside(draws["cutmix"], images), others, images)
    classes_K = torch.arange(num_classes, device=labels_B.device)
    targets_BK = (labels_B.unsqueeze(1) == classes_K).to(torch.float32)
    return images, targets_BK.lerp(targets_BK.index_select(0, partner_B), draws["target"].unsqueeze(1))


def inside(boxes_B4: Tensor, images_BHWC: Tensor) -> Tensor:
    """(B, H, W, 1) bool: whether a pixel lies in the image's box."""
    top, bottom, left, right = boxes_B4.view(-1, 4, 1, 1, 1).unbind(1)
    _, height, width, _ = images_BHWC.shape
    y = torch.arange(height, device=boxes_B4.device).view(1, -1, 1, 1)
    x = torch.arange(width, device=boxes_B4.device).view(1, 1, -1, 1)
    return ((y >= top) & (y < bottom)) & ((x >= left) & (x < right))


def _each(values_B: Tensor) -> Tensor:
    return values_B.view(-1, 1, 1, 1)
