"""The pieces of which leaves are made: of which leaf, and where in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from sdtree.conversion.algebra import Part, Sizes, parts, size_of
from sdtree.conversion.binding import Shape, Sized, rank_of, written_out
from sdtree.conversion.naming import At
from sdtree.conversion.reading import Fill, Reading, dims_and_slots
from sdtree.conversion.text import Term
from sdtree.tensors.storage import dense_strides

Place = tuple[int, At]
"""Which leaf of a group: its term, and its place in the family."""


class Cut(NamedTuple):
    """A part of a leaf: where it begins in each dim, and how far each axis goes.

    An axis goes in one dim, by so many of its elements; along one that repeats it goes
    nowhere.
    """

    starts: tuple[int, ...]
    ways: tuple[tuple[int, int], ...]


def all_of(shape: Shape) -> Cut:
    """Return the part of a leaf that is all of it, each dim an axis."""
    return Cut((0,) * len(shape), tuple((dim, 1) for dim in range(len(shape))))


class Piece(NamedTuple):
    """A part of a leaf to make, and the part of which leaf it is."""

    sizes: tuple[int, ...]
    target: Cut
    source: Cut
    place: Place


class Filled(NamedTuple):
    """A part of a leaf to make that is one value, which is ``told`` as text, too.

    By that 0.0 differs from -0.0, to which it is equal.
    """

    sizes: tuple[int, ...]
    target: Cut
    value: Fill
    told: str


class Same(NamedTuple):
    """Two parts of leaves that are to be the same, and which leaves these are."""

    sizes: tuple[int, ...]
    cuts: tuple[Cut, Cut]
    places: tuple[Place, Place]


class Made(NamedTuple):
    """A leaf to make. ``passed`` is the place of the leaf that it is, if it is one."""

    shape: Shape
    pieces: tuple[Piece, ...]
    fills: tuple[Filled, ...]
    passed: Place | None


class Pieces(NamedTuple):
    """What becomes of a group: the leaves of each target, and what is to be alike."""

    targets: tuple[Mapping[At, Made], ...]
    same: tuple[Same, ...]


class _Side(NamedTuple):
    """A part of a family: its term's place, the slots in front, the shape of a leaf."""

    term: int
    slots: int
    shape: Shape
    part: Part


@lru_cache(maxsize=1024)
def pieces_of(rule: Reading, sizes: Sized) -> Pieces:
    """Return what becomes of a group of which all sizes are known."""
    known = dict(sizes)
    sources = _by_axes(rule, rule.source, known)
    targets = [*_sides(rule, rule.target, known)]
    made: list[dict[At, tuple[list[Piece], list[Filled]]]] = [{} for _ in rule.target]
    for side in targets:
        other = sources.get(side.part.axes - rule.alike)
        for at, fixed in _leaves(side, known, {}):
            pieces, fills = made[side.term].setdefault(at, ([], []))
            if other is not None:
                pieces += _pieces(rule, side, other, known, fixed)
            else:
                fills.append(_filled(rule, side, known, fixed))
    shapes = {side.term: side.shape for side in targets}
    have = {side.term: side.shape for side in sources.values()}
    found = [
        {at: _made(shapes[i], *each, have) for at, each in family.items()}
        for i, family in enumerate(made)
    ]
    same = [x for side in sources.values() for x in _same(rule, side, known)]
    return Pieces(tuple(found), tuple(same))


def _by_axes(
    rule: Reading, side: Sequence[Term], sizes: Sizes
) -> dict[frozenset[str], _Side]:
    return {each.part.axes - rule.alike: each for each in _sides(rule, side, sizes)}


def _sides(rule: Reading, side: Sequence[Term], sizes: Sizes) -> Iterator[_Side]:
    """Yield the parts of a side."""
    for i, term in enumerate(side):
        slots, dims = dims_and_slots(term, rule.keys)
        exprs = [*slots, *written_out(dims, rank_of(sizes))]
        shape = tuple(size_of(expr, sizes) for expr in exprs[len(slots) :])
        for part in parts(exprs, sizes):
            yield _Side(i, len(slots), shape, part)


def _leaves(
    side: _Side, sizes: Sizes, fixed: Mapping[str, int]
) -> Iterator[tuple[At, Mapping[str, int]]]:
    """Yield the leaves in which a part lies, where some axes have a value."""
    here = side.part.at[: side.slots]
    free = [axis for place in here for axis in place.steps if axis not in fixed]
    for values in product(*(range(sizes[axis]) for axis in free)):
        own = {**fixed, **dict(zip(free, values, strict=True))}
        at = (p.offset + sum(own[a] * n for a, n in p.steps.items()) for p in here)
        yield tuple(at), own


def _pieces(
    rule: Reading, side: _Side, other: _Side, sizes: Sizes, fixed: Mapping[str, int]
) -> Iterator[Piece]:
    """Yield the pieces of a leaf into which the leaves of the source cut a part."""
    first = dict.fromkeys(other.part.axes & rule.alike, 0)
    for at, own in _leaves(other, sizes, {**first, **fixed}):
        axes = _free(side, sizes, own)
        here, there = (_cut(x, axes, own) for x in (other, side))
        each = tuple(sizes[axis] for axis in axes)
        yield Piece(each, there, here, (other.term, at))


def _free(side: _Side, sizes: Sizes, own: Mapping[str, int]) -> list[str]:
    """Return the axes of a part that have more than one value, as they lie in it."""
    dims = side.part.at[side.slots :]
    every = (axis for place in dims for axis in place.steps)
    return [axis for axis in every if axis not in own and sizes[axis] != 1]


def _cut(side: _Side, axes: Sequence[str], own: Mapping[str, int]) -> Cut:
    """Return the part of a leaf that some axes with values leave."""
    starts, ways = [], {}
    for dim, place in enumerate(side.part.at[side.slots :]):
        fixed = (step * own.get(axis, 0) for axis, step in place.steps.items())
        starts.append(place.offset + sum(fixed))
        ways |= {axis: (dim, step) for axis, step in place.steps.items()}
    return Cut(tuple(starts), tuple(ways.get(axis, (0, 0)) for axis in axes))


def _filled(
    rule: Reading, side: _Side, sizes: Sizes, fixed: Mapping[str, int]
) -> Filled:
    axes = _free(side, sizes, fixed)
    value = next(rule.fill[axis] for axis in side.part.axes if axis in rule.fill)
    each = tuple(sizes[a] for a in axes)
    return Filled(each, _cut(side, axes, fixed), value, repr(value))


def _made(
    shape: Shape,
    pieces: Sequence[Piece],
    fills: Sequence[Filled],
    have: Mapping[int, Shape],
) -> Made:
    passed = None
    if len(pieces) == 1 and not any(0 not in fill.sizes for fill in fills):
        [piece] = pieces
        if have[piece.place[0]] == shape and _is_whole(shape, piece):
            passed = piece.place
    return Made(shape, tuple(pieces), tuple(fills), passed)


def _is_whole(shape: Shape, piece: Piece) -> bool:
    """Return whether a piece is all of a leaf, as it is in one of the same shape."""
    both = (within(dense_strides(shape), cut) for cut in (piece.target, piece.source))
    return prod(piece.sizes) == prod(shape) and len({*both}) == 1


@lru_cache(maxsize=65536)
def within(strides: tuple[int, ...], cut: Cut) -> tuple[int, tuple[int, ...]]:
    """Return where a part begins in a tensor, and how far each axis goes there."""
    begins = sum(n * stride for n, stride in zip(cut.starts, strides, strict=True))
    return begins, tuple(strides[d] * step if step else 0 for d, step in cut.ways)


def _same(rule: Reading, side: _Side, sizes: Sizes) -> Iterator[Same]:
    """Yield the parts of leaves that are to be the same along some axes."""
    along = sorted(side.part.axes & rule.alike)
    every = [*product(*(range(sizes[axis]) for axis in along))][1:]
    for values in every:
        first = dict.fromkeys(along, 0)
        fixed = dict(zip(along, values, strict=True))
        for at, own in _leaves(side, sizes, first):
            axes = _free(side, sizes, own)
            there = {**own, **fixed}
            [(other, _)] = _leaves(side, sizes, there)
            yield Same(
                tuple(sizes[axis] for axis in axes),
                (_cut(side, axes, own), _cut(side, axes, there)),
                ((side.term, at), (side.term, other)),
            )
