"""Small data sets of every form, made of random pixels."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pixels(seed: int, *, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG" if suffix == ".png" else "JPEG")
    return file.getvalue()


def class_folders(
    root: Path,
    *,
    classes: Sequence[str] = CIFAR_CLASSES,
    parts: Sequence[str] = ("train", "test"),
    num: int = 3,
    side: int = 32,
    suffix: str = ".png",
) -> Path:
    """`num` images of each class in every part; the part "" is the root itself."""
    for index, part in enumerate(parts):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(num):
                image = pixels(1000 * index + 10 * label + number, height=side, width=side)
                (folder / f"{number:04d}{suffix}").write_bytes(encoded(image, suffix))
    return root


def archive(root: Path, path: Path, *, inside: str = "") -> Path:
    """The folder `root` as a tar archive of the kind that the name of `path` says."""
    suffix = path.suffix.removeprefix(".")
    with tarfile.open(path, "w" if suffix == "tar" else f"w:{suffix}") as file:  # type: ignore[call-overload]
        for entry in sorted(root.iterdir()):
            file.add(entry, arcname=f"{inside}{entry.name}")
    return path


def python_batches(place: Path, *, num: int = 20) -> tuple[Path, NDArray[np.uint8]]:
    """The folder of CIFAR-10's Python batches, of `num` images each, and the (5 * num, 32, 32, 3) train images."""
    folder = place / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = np.stack([pixels(seed) for seed in range(6 * num)])
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for index, name in enumerate(names):
        batch = images[index * num : (index + 1) * num].transpose(0, 3, 1, 2).reshape(num, -1)
        dump(folder / name, {"data": np.ascontiguousarray(batch), "labels": [label % 10 for label in range(num)]})
    dump(folder / "batches.meta", {"label_names": list(CIFAR_CLASSES)})
    return folder, images[: 5 * num]


def dump(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))
