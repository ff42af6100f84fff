"""Layouts: which boxes of a global tensor lie where in the local tensors of each rank.

A box is a region, told by its offsets and sizes on both sides. What a rank holds is the
product of what it holds of each dimension: a list of intervals, in the order in which
they lie in its local tensor. Each mesh dimension that splits a tensor dimension takes
its part of that list. So nothing is assumed even, or contiguous, and nothing is asked
of other ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, chain, product
from operator import index, mul
from typing import Any, NamedTuple

from sdtree.errors import LayoutError
from sdtree.layout.boxes import Box as Box
from sdtree.layout.boxes import Offsets as Offsets
from sdtree.layout.boxes import Region as Region
from sdtree.layout.boxes import meet as meet
from sdtree.layout.boxes import overlaps
from sdtree.layout.boxes import shown as shown
from sdtree.layout.document import Fields, dump, load
from sdtree.text.showing import html_of, text_of
from sdtree.text.strict_json import parse
from sdtree.typing import FrozenDict


class Interval(NamedTuple):
    """A stretch of one dimension of the global tensor."""

    start: int
    size: int


Intervals = tuple[Interval, ...]
"""What a rank holds of a dimension, in the order of its local tensor."""


class Split(NamedTuple):
    """Dimension ``axis`` of a mesh splits ``dim`` of a tensor into as many parts.

    With a ``factor`` it first cuts into so many pieces and splits each by itself.

    >>> from sdtree.layout import Split
    >>> Split(axis=0, dim=1)
    Split(axis=0, dim=1, factor=1)
    """

    axis: int
    dim: int
    factor: int = 1


class Parts(NamedTuple):
    """How the local tensors of a leaf lie on ranks that is over several, or none dense.

    Each is a part of a whole of its own. ``kind`` is what the leaf is when it is whole,
    ``alike`` tells of the bits of those that each rank has whole.
    """

    kind: type
    layouts: tuple[Layout, ...]
    alike: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """The global shape of a leaf, and the boxes that each of its ranks holds.

    Ranks with the same boxes are replicas of each other; if ``is_partial``, they hold
    terms that are yet to be reduced. ``doubt`` is why it cannot be told whether the
    ranks hold these boxes or each other's, empty if it can. ``parts`` are None where
    each rank has one dense tensor. ``ranks`` are those that hold a part, or an empty
    one, in order.

    It is hashed by what equal layouts share, found once, since each is looked up often;
    leaves of one shape may lie on other ranks each, as experts do.
    """

    shape: tuple[int, ...] = field(hash=False)
    boxes: Mapping[int, tuple[Box, ...]] = field(hash=False)
    is_partial: bool = field(default=False, hash=False)
    doubt: str = field(default="", hash=False)
    parts: Parts | None = field(default=None, hash=False)
    ranks: tuple[int, ...] = field(init=False, compare=False, repr=False)
    _told: int = field(init=False, compare=False, hash=True, repr=False)

    def __post_init__(self) -> None:
        held = sorted((index(r), _in_ints(found)) for r, found in self.boxes.items())
        boxes = FrozenDict(held)  # which many share
        first = next(((rank, held[:1]) for rank, held in boxes.items() if held), None)
        shape = tuple(map(index, self.shape))
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "ranks", _one(tuple(boxes)))
        object.__setattr__(self, "_told", hash((shape, len(boxes), first)))

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Work out again what follows from the rest."""
        self.__init__(*state[:5])

    def __repr__(self) -> str:
        return f"Layout({text_of(self)})"

    def _repr_html_(self) -> str:
        return html_of(self)

    def to_json(self) -> str:
        """Return the layout as JSON text, which ``Layout.from_json`` reads.

        One over several local tensors that are no plain ones is refused.

        >>> from sdtree.layout import whole
        >>> Layout.from_json(whole((4, 2), (0, 1)).to_json()) == whole((4, 2), (0, 1))
        True
        """
        if self.parts is not None:
            raise LayoutError(
                f"JSON has no room for the layout of a {self.parts.kind.__name__}, "
                "whose local tensors are each a part of a whole of its own; take the "
                "layout of dense tensors"
            )
        fields = Fields(self.shape, self.boxes, self.is_partial, self.doubt)
        return json.dumps(dump(fields))

    @staticmethod
    def from_json(text: str) -> Layout:
        """Return the layout that ``to_json`` wrote; whether it covers is not checked.

        >>> try:
        ...     Layout.from_json('{"shape": [4]}')
        ... except ValueError as error:
        ...     print(str(error).partition(":")[0])
        not the JSON of a Layout
        """
        try:
            return Layout(*load(parse(text)))
        except ValueError as error:
            raise ValueError(f"not the JSON of a Layout: {error}") from error

    def check_coverage(self) -> None:
        """Raise ``LayoutError`` unless every element lies in one box, or its replicas.

        The message says which boxes overlap, or how much is missing.
        """
        distinct = sorted({(box.offset, box.size) for _, box in self._real_boxes()})
        for a, b in overlaps(distinct):
            raise LayoutError(f"boxes overlap: {shown(*a)} and {shown(*b)}")
        covered = sum(math.prod(size) for _, size in distinct)
        if covered < math.prod(self.shape):
            missing = math.prod(self.shape) - covered
            raise LayoutError(
                f"{missing} of {math.prod(self.shape)} elements of a tensor of shape "
                f"{self.shape} lie in no box; the boxes are "
                f"{', '.join(shown(*box) for box in distinct) or 'none'}"
            )

    def _real_boxes(self) -> Iterator[tuple[int, Box]]:
        for rank, boxes in self.boxes.items():
            for box in boxes:
                self._check_inside(rank, box)
                if box.numel:
                    yield rank, box

    def _check_inside(self, rank: int, box: Box) -> None:
        if {*map(len, box[1:])} != {len(self.shape)}:
            raise LayoutError(
                f"rank {rank} holds {box}, which has other dimensions than a tensor of "
                f"shape {self.shape}"
            )
        ends = [start + size for start, size in zip(box.offset, box.size, strict=True)]
        is_odd = min((box.tensor, *box.offset, *box.size)) < 0
        if is_odd or any(map(int.__gt__, ends, self.shape)):
            raise LayoutError(
                f"rank {rank} holds {shown(box.offset, box.size)}, which lies outside "
                f"a tensor of shape {self.shape}"
            )


def _in_ints(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Return boxes told in Python's ints; those of numpy overflow, JSON has none."""
    found = tuple(boxes)
    sides = chain.from_iterable(map(chain.from_iterable, (box[1:] for box in found)))
    if {int}.issuperset(map(type, chain(sides, (box.tensor for box in found)))):
        return found
    return tuple(
        Box(index(tensor), *(tuple(map(index, side)) for side in told))
        for tensor, *told in found
    )


@lru_cache(maxsize=1024)
def _one(ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the same object for equal ranks: many are compared often."""
    return ranks


# -- meshes ------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def mesh_boxes(
    shape: tuple[int, ...],
    mesh: tuple[int, ...],
    splits: tuple[Split, ...],
    coordinate: tuple[int, ...],
) -> tuple[Box, ...]:
    """Return the boxes that the rank at a coordinate of a mesh holds.

    The splits are made one after the other; an axis without one replicates.

    >>> mesh_boxes((5,), (2,), (Split(0, 0),), (1,))
    (Box(tensor=0, local=(0,), offset=(3,), size=(2,)),)
    """
    return tuple(_boxes_of(_held_of(shape, mesh, splits, coordinate)))


def mesh_sizes(
    shape: tuple[int, ...],
    mesh: tuple[int, ...],
    splits: tuple[Split, ...],
    coordinate: tuple[int, ...],
) -> tuple[int, ...]:
    """Return the shape of the local tensor of the rank at a coordinate of a mesh.

    >>> mesh_sizes((5, 2), (4,), (Split(0, 0),), (3,))
    (0, 2)
    """
    held = _held_of(shape, mesh, splits, coordinate)
    return tuple(sum(interval.size for interval in found) for found in held)


def _held_of(
    shape: tuple[int, ...],
    mesh: tuple[int, ...],
    splits: tuple[Split, ...],
    coordinate: tuple[int, ...],
) -> list[Intervals]:
    """Return what the rank at a coordinate holds of each dimension."""
    held: list[Intervals] = [(Interval(0, size),) for size in shape]
    for axis, dim, factor in splits:
        held[dim] = strided(held[dim], factor, mesh[axis], coordinate[axis])
    return held


def in_order(splits: Sequence[Split], mesh: Sequence[int]) -> tuple[Split, ...]:
    """Return splits, given axis by axis, in the order in which they were really made.

    A factor says that a later axis had split the dimension before, into so many parts:
    the split comes behind that one then, and needs none. Where later axes do not
    multiply to the factor, it stays.
    """
    order: list[Split] = []
    for split in reversed(splits):
        same = [k for k, other in enumerate(order) if other.dim == split.dim]
        parts = accumulate((mesh[order[k].axis] for k in same), mul, initial=1)
        places = dict(zip(parts, [0, *(k + 1 for k in same)], strict=True))
        decoded = split.factor in places
        place = places[split.factor] if decoded else 0
        order.insert(place, split._replace(factor=1) if decoded else split)
    return tuple(order)


def strided(held: Intervals, factor: int, count: int, index: int) -> Intervals:
    """Return the part of each of ``factor`` pieces, one after the other, joined."""
    pieces = (part(part(held, factor, i), count, index) for i in range(factor))
    return _joined(interval for piece in pieces for interval in piece)


def part(held: Intervals, count: int, index: int) -> Intervals:
    """Return the ``index``-th of ``count`` parts, as ``torch.chunk`` cuts them."""
    total = sum(interval.size for interval in held)
    step = -(-total // count)
    return _between(held, min(index * step, total), min((index + 1) * step, total))


def _between(held: Intervals, start: int, stop: int) -> Intervals:
    found: list[Interval] = []
    at = 0
    for interval in held:
        low, high = max(start - at, 0), min(stop - at, interval.size)
        if low < high:
            found.append(Interval(interval.start + low, high - low))
        at += interval.size
    return tuple(found)


def _joined(intervals: Iterable[Interval]) -> Intervals:
    """Return the intervals, neighbours that follow each other as one."""
    found: list[Interval] = []
    for interval in intervals:
        if found and sum(found[-1]) == interval.start:
            found[-1] = Interval(found[-1].start, found[-1].size + interval.size)
        else:
            found.append(interval)
    return tuple(found)


def _boxes_of(held: Sequence[Intervals]) -> Iterator[Box]:
    """Yield the product of what is held of each dimension."""
    placed = [list(_with_places(intervals)) for intervals in held]
    for parts in product(*placed):
        local = tuple(place for place, _ in parts)
        offset = tuple(interval.start for _, interval in parts)
        yield Box(0, local, offset, tuple(interval.size for _, interval in parts))


def _with_places(intervals: Intervals) -> Iterator[tuple[int, Interval]]:
    at = 0
    for interval in intervals:
        yield at, interval
        at += interval.size


def mesh_layout(
    shape: tuple[int, ...],
    mesh: tuple[int, ...],
    splits: tuple[Split, ...],
    rank_at: Callable[[tuple[int, ...]], int],
    is_partial: bool = False,
    doubt: str = "",
) -> Layout:
    """Return the layout of a tensor over a mesh; ``rank_at`` tells who stands where.

    Axes of the mesh that no split names have replicas of it. Parts are as those of
    ``torch.chunk``: the last may be smaller, or empty.

    >>> from sdtree.layout import Split, mesh_layout
    >>> rows = mesh_layout((5, 2), (2,), (Split(0, 0),), lambda at: at[0])
    >>> [rows.boxes[rank][0].size for rank in rows.ranks]
    [(3, 2), (2, 2)]
    """
    coordinates = product(*map(range, mesh))
    boxes = {rank_at(c): mesh_boxes(shape, mesh, splits, c) for c in coordinates}
    return Layout(shape, boxes, is_partial, doubt)


@lru_cache(maxsize=4096)
def whole(shape: tuple[int, ...], ranks: tuple[int, ...]) -> Layout:
    """Return the layout of a tensor that each of the ranks holds whole.

    >>> from sdtree.layout import whole
    >>> whole((4, 2), (0, 1)).ranks
    (0, 1)
    """
    start = (0,) * len(shape)
    return Layout(shape, dict.fromkeys(ranks, (Box(0, start, start, shape),)))
