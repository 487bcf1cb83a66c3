"""What may happen to images at random when they are trained on: its names, and how strong each is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from hpo.errors import ExperimentError
from hpo.training.rules import Rule, number


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """How strong each augmentation is; 0 is off. Moves come first, the others in the order that they have here.

    What a move uncovers is the mirror image; what a hole shows is the mean of the train part. Where images are mixed,
    the accuracy of training counts each as of the class of its larger part.

    Attributes:
        crop: Largest shift, down or up and right or left, as a share of that side, in [0, 0.5].
        flip: Probability that left and right are swapped.
        rotate: Largest angle in degrees, in [0, 180], of a rotation about the centre; each pixel is the nearest one.
        brightness: Largest relative change b, in [0, 10]: pixels are multiplied by one of [max(0, 1 - b), 1 + b].
        contrast: Largest relative change, likewise, of the pixels' distances from the mean grey level of the image.
        noise: Standard deviation, in [0, 1], of the Gaussian noise that is added to pixels in [0, 1], and not cut off.
        cutout: Side of a square hole as a share of the image's shorter side, in [0, 1], rounded to whole pixels; its
            centre is any pixel, so that part of it may lie outside (DeVries & Taylor 2017).
        erase: Probability of a hole of 0.02 to 0.33 of the area, 0.3 to 3.3 times as high as wide, inside the image
            (Zhong et al. 2017).
        mixup: A share, drawn from Beta(mixup, mixup), of each image and of its target is that of another image of the
            batch, or of the process's share of it where several train the trial (Zhang et al. 2018).
        cutmix: Instead, a box whose area is such a share shows the other image (Yun et al. 2019). Where both are on,
            each image has one of the two, with equal probability.

    Raises:
        ExperimentError: One is out of its range.
    """

    rules: ClassVar[Mapping[str, Rule]] = {
        "crop": number(0.125, least=0, most=0.5),
        "flip": number(0.5, least=0, most=1),
        "rotate": number(15, least=0, most=180),
        "brightness": number(0.2, least=0, most=10),
        "contrast": number(0.2, least=0, most=10),
        "noise": number(0.05, least=0, most=1),
        "cutout": number(0.5, least=0, most=1),
        "erase": number(0.5, least=0, most=1),
        "mixup": number(0.2, least=0, most=100),
        "cutmix": number(1.0, least=0, most=100),
    }

    crop: float = 0.0
    flip: float = 0.0
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name, strength in asdict(self).items():
            self.rules[name].check(strength, where=name)

    @classmethod
    def of(cls, names: Iterable[str] = (), given: Mapping[str, float | None] | None = None) -> Strengths:
        """Those of `names` as they usually are; but a strength that is given, and not None, is that.

        Raises:
            ExperimentError: A name is no augmentation, or a strength is out of its range.
        """
        usual = asdict(USUAL)
        for name in (names := tuple(names)):
            if name not in usual:
                raise ExperimentError(
                    f"{name!r} is no augmentation", where="augment", remedy=f"valid are {', '.join(AUGMENTATIONS)}"
                )
        own = {name: strength for name, strength in (given or {}).items() if strength is not None}
        return cls(**{**{name: usual[name] for name in names}, **own})

    @property
    def on(self) -> frozenset[str]:
        """Names of those that are not off."""
        return frozenset(name for name, strength in asdict(self).items() if strength)


AUGMENTATIONS = tuple(field.name for field in fields(Strengths))
"""Names for `augment=(…)`."""
OFF = Strengths()
USUAL = Strengths(
    crop=1 / 8,  # 4 of CIFAR's 32 pixels, as He et al. 2016 pad them
    flip=0.5,
    rotate=15,
    brightness=0.2,
    contrast=0.2,
    noise=0.05,
    cutout=0.5,  # 16 of CIFAR-10's 32 pixels
    erase=0.5,
    mixup=0.2,  # what the paper trains ImageNet with; CIFAR with 1
    cutmix=1.0,
)
"""What a name in `augment=(…)` stands for."""
