"""Images as they lie on a disk: a source can be fingerprinted, surveyed without decoding, and decoded."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hpo.errors import DataError
from hpo.training.data import cache
from hpo.training.data.images import Kind, Located, default_cache_dir


@dataclass(frozen=True)
class Survey:
    """What is in a source.

    Attributes:
        classes: Names by label.
        num_train: Images in the train part.
        num_test: Images in the test part.
        image_shape: Height, width, channels once decoded.
    """

    classes: tuple[str, ...]
    num_train: int
    num_test: int
    image_shape: tuple[int, int, int]


class Source(ABC):
    """One place on a disk that holds labelled images; what it has read once it does not read again."""

    kind: ClassVar[Kind]

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits of its content, which do not depend on where it lies.

        Raises:
            DataError: It cannot be read.
        """

    @abstractmethod
    def survey(self) -> Survey:
        """What is in it.

        Raises:
            DataError: It is cut off or incomplete.
        """

    @abstractmethod
    def decode(self, writer: cache.Writer) -> None:
        """Write its arrays.

        Raises:
            DataError: It is cut off, incomplete, or holds a damaged image.
        """

    def locate(self, dataset: str) -> Located:
        """The source as a data set of that name.

        Raises:
            DataError: As `fingerprint` and `survey`.
        """
        fingerprint = self.fingerprint()
        survey = _surveyed_before(dataset, fingerprint) or self.survey()
        return Located(
            dataset=dataset,
            kind=self.kind,
            source=self.path.absolute(),
            classes=survey.classes,
            fingerprint=fingerprint,
            num_train=survey.num_train,
            num_test=survey.num_test,
            image_shape=survey.image_shape,
        )

    def decode_located(self, located: Located, writer: cache.Writer) -> None:
        """As `decode`, once it is sure that this is what was located.

        Raises:
            DataError: As `decode`; or this source has another fingerprint.
        """
        check_same(located, self.fingerprint(), where=str(self.path))
        self.decode(writer)


def check_same(located: Located, fingerprint: str, *, where: str) -> None:
    """Raise DataError, with both fingerprints, where a source on this node is not the one that was located."""
    if fingerprint != located.fingerprint:
        raise DataError(
            f"its fingerprint is {fingerprint} here, but {located.fingerprint} where the run was started",
            where=where,
            remedy="give every node the same data, or start again with the data as it is now",
        )


def digest(*parts: bytes | str) -> str:
    """16 hexadecimal digits that tell apart every other sequence of parts."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:16]


def digest_of_files(paths: Mapping[str, Path]) -> str:
    """16 hexadecimal digits of the contents of files, and the names they are given here.

    Raises:
        DataError: One cannot be read.
    """
    parts: list[bytes | str] = []
    for name, path in sorted(paths.items()):
        try:
            with path.open("rb") as file:
                parts += [name, hashlib.file_digest(file, "sha256").digest()]
        except OSError as error:
            raise DataError(
                f"cannot be read: {error.strerror}", where=str(path), remedy="look at the file and its permissions"
            ) from error
    return digest(*parts)


def _surveyed_before(dataset: str, fingerprint: str) -> Survey | None:
    """What this node decoded from the same bytes: seconds saved where a survey has to unpack an archive."""
    found = cache.Entry(default_cache_dir(), dataset=dataset, fingerprint=fingerprint).open()
    if found is None:
        return None
    arrays, meta = found
    height, width, channels = arrays["train_images"].shape[1:]
    return Survey(
        tuple(meta["classes"]), len(arrays["train_labels"]), len(arrays["test_labels"]), (height, width, channels)
    )
