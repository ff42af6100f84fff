"""Schedules: which region of a leaf goes from whom to whom, seen from one rank.

They follow from two layouts alone, that of the source and that of the target, so both
ends of each way know of it, in one order, and nobody asks.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import torch

from sdtree.layout.layout import Box, Layout, Offsets, Region, meet, whole


class Slice(NamedTuple):
    """A region on its way: the rank at the other end, and the local tensor at this.

    ``offset`` is its place in the local tensor, ``at`` that in the global one. It
    travels in this ``hop``: what arrives in one may go on in the next.
    """

    peer: int
    tensor: int
    offset: Offsets
    at: Offsets
    size: tuple[int, ...]
    hop: int = 0

    @property
    def numel(self) -> int:
        """Return how many elements it has."""
        return math.prod(self.size)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a rank sends, receives, copies (from, to), and forwards once it arrived."""

    sends: tuple[Slice, ...] = ()
    recvs: tuple[Slice, ...] = ()
    copies: tuple[tuple[Slice, Slice], ...] = ()
    forwards: tuple[Slice, ...] = ()

    def within(self, region: Region) -> Schedule:
        """Return the part of it that lies in a region of the global tensor."""
        copies = [
            (here, there)
            for a, b in self.copies
            if (here := _clipped(a, region)) and (there := _clipped(b, region))
        ]
        return Schedule(
            _within(self.sends, region),
            _within(self.recvs, region),
            tuple(copies),
            _within(self.forwards, region),
        )


def _within(cuts: Iterable[Slice], region: Region) -> tuple[Slice, ...]:
    return tuple(part for cut in cuts if (part := _clipped(cut, region)) is not None)


def _clipped(cut: Slice, region: Region) -> Slice | None:
    common = meet((cut.at, cut.size), region)
    if common is None:
        return None
    at, size = common
    return cut._replace(offset=_moved(cut.offset, cut.at, at), at=at, size=size)


def _moved(local: Offsets, start: Offsets, at: Offsets) -> Offsets:
    """Return where ``at`` of the global tensor lies, if ``start`` lies at ``local``."""
    return tuple(a - b + c for a, b, c in zip(at, start, local, strict=True))


@lru_cache(maxsize=65536)
def schedule(source: Layout, target: Layout, me: int) -> Schedule:
    """Return what a rank does so that each gets its target from those that hold it.

    A rank takes from itself what it holds; else, of replicas, from its own.
    """
    holders = holders_of(source)
    sends: list[Slice] = []
    recvs: list[Slice] = []
    copies: list[tuple[Slice, Slice]] = []
    for box in target.boxes.get(me, ()):
        for region, ranks in holders.items():
            common = meet(_region(box), region)
            if common is None:
                continue
            peer = _supplier(ranks, me, source)
            cut = _cut(peer, box, common)
            if peer == me:
                copies.append((_cut(me, _box_at(source, me, region), common), cut))
            else:
                recvs.append(cut)
    for box in source.boxes.get(me, ()):
        if not box.numel:
            continue
        ranks = holders[_region(box)]
        for peer, wanted in target.boxes.items():
            if peer == me or _supplier(ranks, peer, source) != me:
                continue
            for other in wanted:
                common = meet(_region(box), _region(other))
                if common is not None:
                    sends.append(_cut(peer, box, common))
    return Schedule(_ordered(sends), _ordered(recvs), tuple(copies))


@lru_cache(maxsize=65536)
def spread(source: int, target: Layout, me: int) -> Schedule:
    """Return what a rank does so that each gets its target from one that has all.

    Each region leaves the source once, and goes on from rank to rank as in a binary
    tree. The order of the ranks, from the source on, is that of the ways: none turns
    back, so nobody waits in a circle.
    """
    sends: list[Slice] = []
    recvs: list[Slice] = []
    copies: list[tuple[Slice, Slice]] = []
    forwards: list[Slice] = []
    for region, ranks in holders_of(target).items():
        if me != source and me not in ranks:
            continue
        cut = bisect(ranks, source)
        line = [r for r in (*ranks[cut:], *ranks[:cut]) if r != source]
        at, size = region
        if me == source:
            if line:
                sends.append(Slice(line[0], 0, at, at, size))
            if me in ranks:
                here = _cut(me, _box_at(target, me, region), region)
                copies.append((Slice(me, 0, at, at, size), here))
            continue
        place = line.index(me)
        box = _box_at(target, me, region)
        parent = line[(place - 1) // 2] if place else source
        depth = (place + 1).bit_length() - 1
        recvs.append(_cut(parent, box, region)._replace(hop=depth))
        for child in line[2 * place + 1 : 2 * place + 3]:
            forwards.append(_cut(child, box, region)._replace(hop=depth + 1))
    return Schedule(_ordered(sends), _ordered(recvs), tuple(copies), _ordered(forwards))


@lru_cache(maxsize=4096)
def levels(source: int, target: Layout) -> int:
    """Return in how many hops a spread comes to an end."""
    lines = (
        sum(rank != source for rank in ranks) for ranks in holders_of(target).values()
    )
    return max((line.bit_length() for line in lines), default=0)


@lru_cache(maxsize=4096)
def holders_of(layout: Layout) -> Mapping[Region, tuple[int, ...]]:
    """Return each region that ranks hold, in order, with all that hold it."""
    found: dict[Region, list[int]] = {}
    for rank in layout.ranks:
        for box in layout.boxes[rank]:
            if box.numel:
                found.setdefault(_region(box), []).append(rank)
    return {region: tuple(found[region]) for region in sorted(found)}


@lru_cache(maxsize=65536)
def place_of(layout: Layout, rank: int) -> int:
    """Return which of its replicas a rank is."""
    for box in layout.boxes.get(rank, ()):
        if box.numel:
            return holders_of(layout)[_region(box)].index(rank)
    return 0


def _supplier(ranks: Sequence[int], rank: int, source: Layout) -> int:
    """Return who of those that hold a region gives it to a rank."""
    if len(ranks) == 1:
        return ranks[0]
    return rank if rank in ranks else ranks[place_of(source, rank) % len(ranks)]


@lru_cache(maxsize=4096)
def is_whole(layout: Layout, ranks: tuple[int, ...]) -> bool:
    """Return whether each of some ranks holds all there is."""
    if not math.prod(layout.shape):
        return True
    return all(
        sum(box.numel for box in layout.boxes.get(rank, ())) == math.prod(layout.shape)
        and len(layout.boxes[rank]) == 1
        for rank in ranks
    )


def layouts_of(layout: Layout) -> Sequence[Layout]:
    """Return the layouts of the local tensors of a leaf that are parts of a whole."""
    return [layout] if layout.parts is None else layout.parts.layouts


@lru_cache(maxsize=4096)
def is_blind(layout: Layout | None, me: int) -> bool:
    """Return whether a rank holds nothing of a leaf that others hold."""
    if layout is None:
        return False
    return not any(box.numel for box in layout.boxes.get(me, ()))


@lru_cache(maxsize=4096)
def settled(layout: Layout) -> Layout:
    """Return the layout that a leaf has when its terms are reduced."""
    return replace(layout, is_partial=False) if layout.is_partial else layout


@lru_cache(maxsize=4096)
def only(layout: Layout, *ranks: int) -> Layout:
    """Return what some ranks have of a layout."""
    return Layout(layout.shape, {rank: layout.boxes.get(rank, ()) for rank in ranks})


@lru_cache(maxsize=4096)
def alike(me: int, *layouts: Layout) -> tuple[int, ...]:
    """Return the ranks that are in the very layouts, of some, that one rank is in."""
    mine = [me in layout.boxes for layout in layouts]
    every = sorted({rank for layout in layouts for rank in layout.ranks})
    return tuple(r for r in every if [r in x.boxes for x in layouts] == mine)


@lru_cache(maxsize=4096)
def united(*layouts: Layout) -> Layout:
    """Return the layout of what sets of other ranks hold, each the whole tensor."""
    first, *others = layouts
    if not others:
        return first
    parts = first.parts
    if parts is not None:
        every = [x.parts.layouts for x in layouts if x.parts is not None]
        parts = parts._replace(
            layouts=tuple(united(*x) for x in zip(*every, strict=True))
        )
    boxes = {rank: x.boxes[rank] for x in layouts for rank in x.ranks}
    return Layout(first.shape, boxes, parts=parts)


@lru_cache(maxsize=4096)
def summary(layout: Layout) -> str:
    """Return in few words which ranks hold which boxes, so that others differ."""
    said = repr((layout.ranks, [layout.boxes[r] for r in layout.ranks]))
    if layout.parts is not None:
        said += repr([*map(summary, layout.parts.layouts)])
    digest = blake2b(said.encode(), digest_size=4).hexdigest()
    kind = "partial " if layout.is_partial else ""
    count = len(holders_of(layout))
    return f"{kind}in {count} boxes on {len(layout.ranks)} ranks [{digest}]"


def _region(box: Box) -> Region:
    return box.offset, box.size


def _box_at(layout: Layout, rank: int, region: Region) -> Box:
    return next(box for box in layout.boxes[rank] if _region(box) == region)


def _cut(peer: int, box: Box, region: Region) -> Slice:
    at, size = region
    return Slice(peer, box.tensor, _moved(box.local, box.offset, at), at, size)


def _ordered(cuts: Iterable[Slice]) -> tuple[Slice, ...]:
    """Return the cuts in the order of both ends."""
    return tuple(sorted(cuts, key=lambda cut: (cut.at, cut.size, cut.peer)))


def slabs(shape: tuple[int, ...], limit: int) -> Iterator[Region]:
    """Yield the regions, of at most ``limit`` elements, that a tensor is cut into.

    >>> list(slabs((3, 2), 4))
    [((0, 0), (2, 2)), ((2, 0), (1, 2))]
    """
    start = (0,) * len(shape)
    if math.prod(shape) <= limit or not shape:
        yield start, shape
        return
    row = math.prod(shape[1:])
    if row <= limit:
        step = limit // row
        for i in range(0, shape[0], step):
            yield (i, *start[1:]), (min(step, shape[0] - i), *shape[1:])
        return
    inner = list(slabs(shape[1:], limit))
    for i in range(shape[0]):
        yield from (((i, *at), (1, *size)) for at, size in inner)


class Transfer(NamedTuple):
    """The way of the data of a leaf: from one layout to another, or from one rank."""

    source: Layout
    target: Layout
    dtype: torch.dtype
    src: int | None = None

    @classmethod
    def here(cls, shape: tuple[int, ...], dtype: torch.dtype, me: int) -> Transfer:
        """Return the way from and to a rank of what it holds whole."""
        return cls(whole(shape, (me,)), whole(shape, (me,)), dtype)

    @lru_cache(maxsize=65536)  # noqa: B019 - it is a value, and holds little
    def schedule(self, me: int) -> Schedule:
        """Return what a rank does on it."""
        if self.src is None:
            return schedule(self.source, self.target, me)
        return spread(self.src, self.target, me)

    def slabs(self, limit: int) -> Iterator[Region]:
        """Yield the regions, of at most ``limit`` bytes, in which a leaf goes."""
        most = max(1, limit // self.dtype.itemsize)
        return slabs(self.target.shape, most)

    @property
    def hops(self) -> int:
        """Return how many times at most its data is passed on."""
        return 1 if self.src is None else levels(self.src, self.target)
