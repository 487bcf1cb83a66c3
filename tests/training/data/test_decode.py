from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpo.errors import DataError
from hpo.training.data.decode import Encoded, Fit, decode_all, pixels_of, read_file
from tests.training.data import tiny


def _saved(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(tiny.pixels(0)).convert(mode)
    decoded = pixels_of(_saved(image, "JPEG" if mode == "CMYK" else "PNG"), where="x")
    assert (decoded.shape, decoded.dtype) == ((32, 32, 3), np.uint8)


def test_deep_images_are_refused() -> None:
    deep = Image.fromarray(np.full((8, 8), 7000, np.uint16))
    with pytest.raises(DataError, match=r"deep.png: the image has more than 8 bits a channel"):
        pixels_of(_saved(deep), where="deep.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_cut_off_images_are_damaged(suffix: str, share: float) -> None:
    data = tiny.encoded(tiny.pixels(0), suffix)
    with pytest.raises(DataError, match=r"a.jpg: the image is damaged: "):
        pixels_of(data[: int(share * len(data))], where="a.jpg")


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_the_first_damaged_image_is_named(size: int) -> None:
    good = tiny.encoded(tiny.pixels(0))
    data = [good] * 600
    data[300] = data[500] = b"no image"
    with pytest.raises(DataError, match="image 300: the image is damaged"):
        decode_all(
            [Encoded(f"image {number}", 0, size) for number in range(len(data))],
            read=data.__getitem__,
            fit=Fit(32, 32, crop=False, because=""),
            out_images=np.zeros((600, 32, 32, 3), np.uint8),
            out_labels=np.zeros(600, np.int64),
        )


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.png: cannot be read: No such file"):
        read_file(tmp_path / "gone.png")
