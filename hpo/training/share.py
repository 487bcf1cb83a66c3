"""Which part of the samples falls to one of several processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One of `size` parts whose sizes differ by one at most; they follow each other in the order of `rank`.

    Attributes:
        rank: Number of the part, from 0.
        size: Parts.
    """

    rank: int = 0
    size: int = 1

    def of(self, num: int) -> slice:
        """The part of `num` things, which may be empty."""
        return slice(self.rank * num // self.size, (self.rank + 1) * num // self.size)

    def num(self, num: int) -> int:
        """Things in the part of `num`."""
        part = self.of(num)
        return int(part.stop - part.start)


WHOLE = Share()
