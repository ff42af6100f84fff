"""What ranks hold of a part of a leaf: boxes in the space of its axes.

What a box has of a dim that is merged of several axes lies from one place to another in
lexicographic order. For k axes that is 2k - 1 boxes of them at most, each of which is a
view of the local tensor. So a part has a layout of its own, whatever that of its leaf.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from torch import Tensor

from sdtree.conversion.pieces import Cut, within
from sdtree.layout.layout import Box, Layout, whole
from sdtree.tensors.storage import is_lazy

Sizes = tuple[int, ...]


class Share(NamedTuple):
    """A box of a part: from where and how far along each axis, and where it lies.

    That is a part of a local ``tensor``, by its number.
    """

    offset: Sizes
    sizes: Sizes
    tensor: int
    cut: Cut


@lru_cache(maxsize=65536)
def shares_of(sizes: Sizes, cut: Cut, boxes: tuple[Box, ...]) -> tuple[Share, ...]:
    """Return what boxes of a leaf hold of a part of it.

    >>> rows = Box(0, (0,), (3,), (4,))  # of (a b) with b=4, those from 3 to 7
    >>> [x[:2] for x in shares_of((2, 4), Cut((0,), ((0, 4), (0, 1))), (rows,))]
    [((0, 3), (1, 1)), ((1, 0), (1, 3))]
    """
    every = (_in_box(sizes, cut, box) for box in boxes if box.numel)
    return tuple(share for found in every for share in found)


def _in_box(sizes: Sizes, cut: Cut, box: Box) -> Iterator[Share]:
    """Yield what a box of a leaf holds of a part."""
    axes = [_axes_in(cut, dim) for dim in range(len(cut.starts))]
    rows = zip(axes, cut.starts, box.offset, box.size, strict=True)
    each = [
        [*_ranges([cut.ways[a][1] for a in own], [sizes[a] for a in own], at, at + n)]
        for own, at, n in ((own, offset - start, n) for own, start, offset, n in rows)
    ]
    for found in product(*each):
        offset, size = [0] * len(sizes), [*sizes]
        for own, ranges in zip(axes, found, strict=True):
            for axis, (first, count) in zip(own, ranges, strict=True):
                offset[axis], size[axis] = first, count
        moved = zip(box.local, box.offset, strict=True)
        place = shifted(cut, [local - at for local, at in moved], offset)
        yield Share(tuple(offset), tuple(size), box.tensor, place)


def _axes_in(cut: Cut, dim: int) -> list[int]:
    """Return the axes that go in a dim, the last of which runs the fastest."""
    found = [a for a, (own, step) in enumerate(cut.ways) if own == dim and step]
    return sorted(found, key=lambda axis: -cut.ways[axis][1])


def shifted(cut: Cut, by: Sequence[int], offset: Sequence[int]) -> Cut:
    """Return a part that begins further on in each dim, and along each axis."""
    starts = [start + n for start, n in zip(cut.starts, by, strict=True)]
    for (dim, step), first in zip(cut.ways, offset, strict=True):
        if step:
            starts[dim] += step * first
    return cut._replace(starts=tuple(starts))


Range = tuple[int, int]
"""Where a stretch of an axis begins, and how long it is."""


def _ranges(
    steps: Sequence[int], counts: Sequence[int], start: int, stop: int
) -> Iterator[tuple[Range, ...]]:
    """Yield the boxes of axes whose places in a dim lie from one to another.

    >>> [*_ranges([10, 1], [3, 10], 5, 30)]
    [((0, 1), (5, 5)), ((1, 2), (0, 10))]
    """
    if not steps:
        if start <= 0 < stop:
            yield ()
        return
    step, inner = steps[0], [*zip(steps[1:], counts[1:], strict=True)]
    reach = 1 + sum(each * (count - 1) for each, count in inner)
    first = max(0, -((reach - 1 - start) // step))
    last = min(counts[0], -(-stop // step))
    begin = max(first, -(-start // step))
    end = min(last, (stop - reach) // step + 1)
    if begin >= end:
        begin = end = last
    for i in range(first, last):
        if i == begin and begin < end:
            yield ((begin, end - begin), *((0, count) for _, count in inner))
        if not begin <= i < end:
            moved = start - i * step, stop - i * step
            for rest in _ranges(steps[1:], counts[1:], *moved):
                yield ((i, 1), *rest)


def layout_of_part(
    sizes: Sizes, cut: Cut, layout: Layout | None, ranks: tuple[int, ...]
) -> Layout:
    """Return which ranks hold which boxes of a part; each has all of what is whole.

    It is the same object for parts that lie alike, as those of many experts do.
    """
    if layout is None:
        return whole(sizes, ranks)
    for dim in range(len(cut.starts))[::-1]:
        if not _axes_in(cut, dim):
            layout, cut = _at(layout, dim, cut.starts[dim]), _without(cut, dim)
    return _layout(sizes, cut, layout, ranks)


def _without(cut: Cut, dim: int) -> Cut:
    """Return a part in one dim less, in which no axis goes."""
    starts = cut.starts[:dim] + cut.starts[dim + 1 :]
    return Cut(starts, tuple((d - (d > dim), step) for d, step in cut.ways))


def _at(layout: Layout, dim: int, index: int) -> Layout:
    """Return how a leaf lies at one index of a dim."""
    return _between(layout, dim, bisect(_bounds(layout, dim), index))


@lru_cache(maxsize=4096)
def _bounds(layout: Layout, dim: int) -> Sequence[int]:
    """Return where in a dim boxes begin or end, in order."""
    every = (box for boxes in layout.boxes.values() for box in boxes)
    pairs = ((box.offset[dim], box.size[dim]) for box in every)
    return sorted({0, *(n for at, size in pairs for n in (at, at + size))})


@lru_cache(maxsize=4096)
def _between(layout: Layout, dim: int, k: int) -> Layout:
    """Return how a leaf lies where in a dim none begins or ends, in one dim less."""
    here = _bounds(layout, dim)[k - 1]

    def drop(numbers: tuple[int, ...]) -> tuple[int, ...]:
        return numbers[:dim] + numbers[dim + 1 :]

    boxes = {
        rank: tuple(
            Box(box.tensor, drop(box.local), drop(box.offset), drop(box.size))
            for box in held
            if box.offset[dim] <= here < box.offset[dim] + box.size[dim]
        )
        for rank, held in layout.boxes.items()
    }
    return Layout(drop(layout.shape), boxes)


@lru_cache(maxsize=65536)
def _layout(sizes: Sizes, cut: Cut, layout: Layout, ranks: tuple[int, ...]) -> Layout:
    start = (0,) * len(sizes)
    boxes: dict[int, tuple[Box, ...]] = {}
    for rank in ranks:
        held = layout.boxes.get(rank, ())
        found = shares_of(sizes, cut, held) if held else ()
        boxes[rank] = tuple(
            Box(k, start, share.offset, share.sizes) for k, share in enumerate(found)
        )
    return Layout(sizes, boxes)


# -- where it lies -----------------------------------------------------------------


def held_of(
    sizes: Sizes, cut: Cut, layout: Layout | None, rank: int
) -> Sequence[Share]:
    """Return what a rank holds of a part of a leaf: all of it where that is whole."""
    if layout is None:
        return [Share((0,) * len(sizes), sizes, 0, cut)]
    return shares_of(sizes, cut, layout.boxes.get(rank, ()))


def cut_of(t: Tensor, sizes: Sizes, cut: Cut) -> Tensor:
    """Return a part of a tensor, as it lies there."""
    begins, steps = within(t.stride(), cut)
    return t.as_strided(sizes, steps, t.storage_offset() + begins)


def resolved(t: Tensor) -> Tensor:
    """Return a tensor without conj and neg bits."""
    return t.resolve_conj().resolve_neg() if is_lazy(t) else t
