"""Leaves made of sharded ones without a word between ranks: views, and their boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Final, NamedTuple

from torch import Tensor

from sdtree.conversion.pieces import Cut, Made, Place
from sdtree.conversion.shares import Share, cut_of, held_of, resolved, shifted
from sdtree.kinds.shards import Shards, this_rank
from sdtree.layout.layout import Box, Layout

MOST_BOXES: Final = 4096
"""How many boxes of a leaf a rank may have."""

Layouts = tuple[tuple[Place, Layout | None], ...]
"""How the leaves lie that another is made of, None for those that are whole."""


Locals = Mapping[Place, Sequence[Tensor]]
"""The local tensors of the leaves of a group, by term and place in the family."""


class Scattered(Exception):
    """A leaf would have too many boxes."""

    def __init__(self) -> None:
        super().__init__(f"in more than {MOST_BOXES} boxes on a rank")


class PlainBox(NamedTuple):
    """A box of a leaf to make, and of which part of which local tensor it is a view.

    Without a ``place`` it is all one ``value``.
    """

    offset: tuple[int, ...]
    size: tuple[int, ...]
    cut: Cut
    place: Place | None = None
    tensor: int = 0
    value: float = 0


def scattered(
    made: Made, layouts: Layouts, sources: Locals, like: Tensor, *, copied: bool = False
) -> Shards:
    """Return a leaf whose local tensors are views of those that it is made of.

    Nothing is copied unless it is to be; but what is one value, each rank has. ``like``
    has the dtype and the device. Raise ``Scattered`` if the boxes are too many.
    """
    layout, every = _scattered(made, layouts)
    tensors = [_view(box, sources, like) for box in every.get(this_rank(), ())]
    tensors = [t.clone() for t in tensors] if copied else tensors
    return Shards(tensors or like.new_empty(0), layout)


def _view(box: PlainBox, sources: Locals, like: Tensor) -> Tensor:
    if box.place is None:
        return like.new_full(box.size, box.value)
    ts = sources[box.place]
    return cut_of(resolved(ts[box.tensor]), box.size, box.cut)


Boxes = dict[int, Sequence[PlainBox]]


@lru_cache(maxsize=4096)
def _scattered(made: Made, layouts: Layouts) -> tuple[Layout, Boxes]:
    """Return the layout of a leaf to make, and of what the boxes of each rank are."""
    known = dict(layouts)
    every = (layout.ranks for layout in known.values() if layout is not None)
    ranks = sorted({rank for own in every for rank in own})
    found = {rank: [*_boxes(made, known, rank)] for rank in ranks}
    if any(len(boxes) > MOST_BOXES for boxes in found.values()):
        raise Scattered
    zeros = (0,) * len(made.shape)
    boxes = {
        rank: tuple(Box(k, zeros, x.offset, x.size) for k, x in enumerate(own))
        for rank, own in found.items()
    }
    return Layout(made.shape, boxes), {**found}


def _boxes(
    made: Made, layouts: Mapping[Place, Layout | None], rank: int
) -> Iterator[PlainBox]:
    """Yield the boxes that a rank has of a leaf to make."""
    for sizes, target, source, place in made.pieces:
        for share in held_of(sizes, source, layouts[place], rank):
            yield from plain_boxes(share, target, place)
    for sizes, target, value, _ in made.fills:
        nowhere = Cut((), ((0, 0),) * len(sizes))
        share = Share((0,) * len(sizes), sizes, 0, nowhere)
        for box in plain_boxes(share, target, None):
            yield box._replace(value=value)


# -- boxes of axes as boxes of dims ------------------------------------------------


class _Stretch(NamedTuple):
    """Where a box begins in a dim of the leaf to make, and its length.

    ``way`` is where that goes in the source, and ``at`` the values of axes there.
    """

    start: int
    size: int
    way: tuple[int, int]
    at: tuple[tuple[int, int], ...] = ()


def plain_boxes(
    share: Share, target: Cut, place: Place | None, most: int = MOST_BOXES
) -> Iterator[PlainBox]:
    """Yield the boxes in a leaf to make that a share comes to.

    Each is a view of the local tensor, whatever the strides of that are. Raise
    ``Scattered`` if there are more than ``most``.
    """
    dims = range(len(target.starts))
    each = [_stretches(share, target, dim, most) for dim in dims]
    if 0 in share.sizes:
        return
    if prod(map(len, each)) > most:
        raise Scattered
    for found in product(*each):
        offset = [0] * len(share.sizes)
        for stretch in found:
            for axis, i in stretch.at:
                offset[axis] = i
        begin = shifted(share.cut, [0] * len(share.cut.starts), offset)
        yield PlainBox(
            tuple(stretch.start for stretch in found),
            tuple(stretch.size for stretch in found),
            Cut(begin.starts, tuple(stretch.way for stretch in found)),
            place,
            share.tensor,
        )


def _stretches(share: Share, target: Cut, dim: int, most: int) -> list[_Stretch]:
    """Return what a share comes to in a dim of the leaf to make."""
    own = [a for a, (d, step) in enumerate(target.ways) if d == dim and step]
    found = [_Stretch(target.starts[dim], 1, (0, 0))]
    for axis in sorted(own, key=lambda axis: target.ways[axis][1]):
        step, count = target.ways[axis][1], share.sizes[axis]
        by = step * share.offset[axis]
        found = [stretch._replace(start=stretch.start + by) for stretch in found]
        if count == 1:
            continue
        if len(found) == 1 and _goes_on(found[0], step, share.cut.ways[axis]):
            way = share.cut.ways[axis] if found[0].size == 1 else found[0].way
            found = [found[0]._replace(size=found[0].size * count, way=way)]
            continue
        if len(found) * count > most:
            raise Scattered
        found = [
            x._replace(start=x.start + step * i, at=(*x.at, (axis, i)))
            for i in range(count)
            for x in found
        ]
    return found


def _goes_on(stretch: _Stretch, step: int, way: tuple[int, int]) -> bool:
    """Return whether an axis goes on, here and there, where a stretch ends."""
    there = stretch.way[0], stretch.way[1] * stretch.size
    return step == stretch.size and (stretch.size == 1 or there == way)
