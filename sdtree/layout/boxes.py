"""Boxes: regions of a global tensor that are regions of local ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

Offsets = tuple[int, ...]


class Box(NamedTuple):
    """A region of one of a rank's local tensors, and of the global tensor."""

    tensor: int
    local: Offsets
    offset: Offsets
    size: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Return how many elements it has."""
        return math.prod(self.size)


Region = tuple[Offsets, tuple[int, ...]]
"""A part of the global tensor: its offsets and sizes."""


def meet(a: Region, b: Region) -> Region | None:
    """Return the region that two share, None if that is empty.

    >>> meet(((0, 0), (2, 4)), ((1, 2), (4, 4)))
    ((1, 2), (1, 2))
    """
    sides = list(zip(*a, *b, strict=True))
    starts = tuple(max(i, j) for i, _, j, _ in sides)
    stops = [min(i + m, j + n) for i, m, j, n in sides]
    sizes = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
    return (starts, sizes) if min(sizes, default=1) > 0 else None


def shown(offset: Offsets, size: tuple[int, ...]) -> str:
    """Return a region as slices.

    >>> shown((0, 2), (4, 1))
    '[0:4, 2:3]'
    """
    stretches = (f"{a}:{a + n}" for a, n in zip(offset, size, strict=True))
    return f"[{', '.join(stretches)}]"


def overlaps(regions: Sequence[Region]) -> Iterator[tuple[Region, Region]]:
    """Yield pairs of regions that share an element.

    They are looked at in order along the dimension in which most are apart.
    """
    if regions and not regions[0][0]:
        yield from pairwise(regions)
        return
    starts = list(zip(*(offset for offset, _ in regions), strict=True))
    counts = [len({*column}) for column in starts]
    dim = counts.index(max(counts)) if counts else 0
    alive: list[Region] = []
    for here in sorted(regions, key=lambda region: region[0][dim]):
        start = here[0][dim]
        alive = [there for there in alive if there[0][dim] + there[1][dim] > start]
        yield from ((there, here) for there in alive if meet(there, here))
        alive.append(here)
