"""Patchworks: tensors that are sent before they are put together, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sdtree.layout.layout import Offsets, Region, meet
from sdtree.tensors.remake import fill
from sdtree.wire.messages import Chunk, Column


class Patchwork(NamedTuple):
    """A tensor to be put together of others, each at its offset; they cover it.

    Its own first element lies at ``start``.
    """

    start: Offsets
    parts: Sequence[tuple[Offsets, Tensor]]

    def within(self, region: Region) -> Iterator[tuple[Offsets, Tensor]]:
        """Yield what a region of it is made of, and where in the region that lies.

        >>> rows = Patchwork((5,), [((5,), torch.zeros(2)), ((7,), torch.ones(3))])
        >>> [*rows.within(((1,), (2,)))]
        [((0,), tensor([0.])), ((1,), tensor([1.]))]
        """
        begin = tuple(map(int.__add__, self.start, region[0]))
        for offset, t in self.parts:
            common = meet((offset, tuple(t.size())), (begin, region[1]))
            if common is not None:
                at, size = common
                yield _behind(begin, at), _cut(t, _behind(offset, at), size)


Sent = Tensor | Patchwork
"""What a rank has of a leaf that it sends."""


def _patchwork(x: Sent) -> Patchwork:
    if isinstance(x, Patchwork):
        return x
    zeros = (0,) * x.dim()
    return Patchwork(zeros, [(zeros, x)])


def _behind(start: Offsets, at: Offsets) -> Offsets:
    return tuple(b - a for a, b in zip(start, at, strict=True))


def _cut(t: Tensor, offset: Offsets, size: Sequence[int]) -> Tensor:
    if tuple(size) == tuple(t.size()):
        return t
    return t[tuple(slice(i, i + n) for i, n in zip(offset, size, strict=True))]


@dataclass(slots=True, eq=False)
class PatchedColumn(Column):
    """The patchworks of leaves that go one way: nothing comes into them."""

    patchworks: Sequence[Patchwork] = ()

    @classmethod
    def of(cls, every: Sequence[Sent]) -> PatchedColumn:
        """Return the column of what is sent of some leaves."""
        return cls((), None, [*map(_patchwork, every)])

    def each(self) -> Sequence[Column]:
        """Return the column of each leaf; see ``Column``."""
        return [PatchedColumn.of([x]) for x in self.patchworks]

    def views(self, part: Chunk) -> Sequence[Tensor]:
        """Return the part of each that lies in one of its tensors; see ``Column``."""
        found = [[*x.within((part.offset, part.size))] for x in self.patchworks]
        return [own[0][1] for own in found if len(own) == 1]

    def give(self, part: Chunk, places: Tensor) -> None:
        """Copy a part of each to its place; see ``Column``."""
        self.write(part, places.unbind())

    def write(self, part: Chunk, places: Sequence[Tensor]) -> None:
        """Copy a part of each to its place, unless there are none."""
        there: list[Tensor] = []
        here: list[Tensor] = []
        for own, place in zip(self.patchworks, places, strict=False):
            for region, target in _each_time(part, place):
                for at, t in own.within(region):
                    there.append(_cut(target, at, t.size()))
                    here.append(t)
        fill(there, here)


def _each_time(part: Chunk, place: Tensor) -> Iterator[tuple[Region, Tensor]]:
    """Yield each region of a part, and its own place."""
    places = [place] if part.times == 1 else place.unbind()
    for one, own in zip(part.each_time(), places, strict=True):
        yield (one.offset, one.size), own
