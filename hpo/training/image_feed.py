"""How images reach a task: found, decoded, and laid on the device or streamed to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpo.protocols import Dataset, Setting
from hpo.training.data import ImageData, Located
from hpo.training.data.images import ChunkedImages
from hpo.training.feed import Feed
from hpo.training.images import ChunkedImageSettings, ImageSettings, ImageSource, given_by_images
from hpo.training.share import WHOLE, Share
from hpo.trial import Config

IMAGES_GIVE = ("in_channels", "in_features", "image_size", "num_classes")
"""Names of the arguments that images give a model."""


class ImageFeed(Feed):
    """The images of a data set.

    Args:
        data: The data set.
    """

    gives = IMAGES_GIVE

    def __init__(self, data: ImageData) -> None:
        self._data = data
        self._chunks = data.chunks if isinstance(data, ChunkedImages) else None

    @property
    def settings(self) -> type[ImageSettings]:
        return ImageSettings if self._chunks is None else ChunkedImageSettings

    @property
    def data(self) -> ImageData:
        return self._data

    def check_config(self, config: Config) -> None:
        if self._chunks is not None:
            self._chunks.check_config(config)

    def num_chunks(self, dataset: Dataset) -> int | None:
        return None if self._chunks is None else self._chunks.num_chunks

    def locate(self, data_dir: Path | None) -> Dataset:
        located = self._data.locate(data_dir)
        return Dataset(
            name=located.dataset,
            fingerprint=located.fingerprint,
            fell_back=located.fell_back,
            located=located.as_json(),
        )

    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        located = Located.from_json(dataset.located)
        return given_by_images(located.image_shape, num_classes=len(located.classes))

    def open(self, setting: Setting) -> ImageSource:
        located = Located.from_json(setting.dataset.located)
        images = self._data.load(located, cache_dir=setting.cache_dir)
        group = setting.group
        return ImageSource(
            images,
            device=torch.device(setting.device),
            room_bytes=room_for(setting),
            num_workers=max(1, setting.num_threads - 1),
            share=WHOLE if group is None else Share(group.rank, group.size),
            chunks=self._chunks,
        )


def room_for(setting: Setting) -> float | None:
    """Bytes that data may take on the device; None: no limit."""
    device = torch.device(setting.device)
    if device.type != "cuda":
        return None
    share = min(setting.gpus or 1, 1) * setting.data_memory_fraction
    return share * torch.cuda.get_device_properties(device).total_memory
