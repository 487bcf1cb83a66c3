"""Pixels out of JPEG and PNG files, on all cores."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hpo.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""Files that are images, in lower case."""

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_DEEP_MODES = ("I", "F")
_CHUNK = 256
# Decoding a thumbnail is mostly Python: below this, threads wait for each other's lock and two take longer than one.
_WORTH_A_THREAD_BYTES = 16 * 1024


class Encoded(NamedTuple):
    """One image file: where it is, for people; its label; its size in bytes."""

    where: str
    label: int
    size: int


class Fit(NamedTuple):
    """What every image must measure, and why.

    Attributes:
        height: In pixels.
        width: In pixels.
        crop: Images of another size are scaled and their middle cut out; else they are an error.
        because: Completes "is 30 x 32 pixels, but …".
    """

    height: int
    width: int
    crop: bool
    because: str


def pixels_of(data: bytes, *, where: str, fit: Fit | None = None) -> NDArray[np.uint8]:
    """The image as (H, W, 3) RGB; grey is repeated, transparency dropped.

    Raises:
        DataError: It is damaged, has more than 8 bits a channel, or does not fit; `where` is named.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            deep, size = image.mode.startswith(_DEEP_MODES), image.size
            rgb = image.convert("RGB")
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(
            f"the image is damaged: {error}", where=where, remedy="replace the file by a whole copy, or remove it"
        ) from error
    if deep:
        raise DataError(
            "the image has more than 8 bits a channel", where=where, remedy="convert it to 8 bits, e.g. as PNG"
        )
    if fit is not None and size != (fit.width, fit.height):
        if not fit.crop:
            raise DataError(
                f"the image is {size[1]} x {size[0]} pixels, but {fit.because}",
                where=where,
                remedy="replace it, or scale all images to one size, e.g. ImageFolder(…, size=64)",
            )
        rgb = ImageOps.fit(rgb, (fit.width, fit.height))
    return np.asarray(rgb)


def decode_all(
    images: Sequence[Encoded],
    *,
    read: Callable[[int], bytes],
    fit: Fit,
    out_images: NDArray[np.uint8],
    out_labels: NDArray[np.int64],
) -> None:
    """Fill (N, H, W, 3) `out_images` and (N,) `out_labels` with the images, whose bytes are `read` by number.

    Raises:
        DataError: As `pixels_of`, for the first image in order that is at fault.
    """

    def decode_chunk(start: int) -> None:
        for number in range(start, min(start + _CHUNK, len(images))):
            where, label, _ = images[number]
            out_images[number] = pixels_of(read(number), where=where, fit=fit)
            out_labels[number] = label

    with ThreadPoolExecutor(_num_threads(images), thread_name_prefix="decode") as pool:
        chunks = [pool.submit(decode_chunk, start) for start in range(0, len(images), _CHUNK)]
        try:
            for chunk in chunks:
                chunk.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", where=str(path), remedy="look at the file and its permissions"
        ) from error


def _num_threads(images: Sequence[Encoded]) -> int:
    if sum(image.size for image in images) < len(images) * _WORTH_A_THREAD_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
