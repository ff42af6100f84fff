"""Two conversions as one: what is made of leaves that are yet to be made themselves.

The leaf between is cut up twice, by the axes of what makes it and by those of what is
made of it. Where two parts meet they have axes in common that divide both: of these is
a piece that goes from the first leaves to the last, and nothing lies between.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice, product
from typing import Final, NamedTuple

from sdtree.conversion.pieces import Cut, Filled, Made, Piece, Place

Way = tuple[int, int]
"""In which dim of a leaf an axis goes, and by how many of its elements."""


class Digit(NamedTuple):
    """An axis in a dim of the leaf between: its step there, and its way elsewhere."""

    step: int
    size: int
    way: Way


Digits = tuple[Digit, ...]
"""The axes in a dim, the last of which runs the fastest."""


class Met(NamedTuple):
    """Where two parts meet in a dim: axes, and for both sides their ways and starts."""

    sizes: tuple[int, ...] = ()
    ways: tuple[tuple[Way, ...], tuple[Way, ...]] = ((), ())
    starts: tuple[tuple[Way, ...], tuple[Way, ...]] = ((), ())

    def along(self, size: int, here: Way, there: Way) -> Met:
        """Return it with one axis more."""
        ways = (here, *self.ways[0]), (there, *self.ways[1])
        return Met((size, *self.sizes), ways, self.starts)

    def further(self, here: Sequence[Way], there: Sequence[Way] = ()) -> Met:
        """Return it further on, on both sides."""
        starts = (*here, *self.starts[0]), (*there, *self.starts[1])
        return Met(self.sizes, self.ways, starts)

    def turned(self) -> Met:
        """Return it with its sides changed over."""
        (here, there), (begin, other) = self.ways, self.starts
        return Met(self.sizes, (there, here), (other, begin))


def meeting(gap: int, here: Digits, there: Digits) -> Iterator[Met]:
    """Yield where two parts meet of which one begins by a gap behind the other.

    >>> rows = Digit(4, 3, (0, 4)), Digit(1, 4, (0, 1))  # (a b) of 3 and 4
    >>> [met.sizes for met in meeting(0, rows, (Digit(6, 2, (0, 1)),))]  # 0 and 6
    [(), ()]
    """
    reach, other = _reach(here), _reach(there)
    if gap > reach or gap + other < 0:
        return
    one, two = here[:1], there[:1]
    if not (one or two):
        yield Met()
    elif not one or (two and one[0].step < two[0].step):
        yield from (met.turned() for met in meeting(-gap, there, here))
    elif two and one[0].step == two[0].step:
        yield from _side_by_side(gap, here, there)
    elif two and one[0].step % two[0].step == 0 and one[0].step < _end(two[0]):
        yield from _divided(gap, here, there)
    else:
        (step, size, way), inner = one[0], here[1:]
        first = max(0, -((_reach(inner) - gap) // step))
        for i in range(first, min(size - 1, (gap + other) // step) + 1):
            for met in meeting(gap - i * step, inner, there):
                yield met.further([_times(way, i)])


def _side_by_side(gap: int, here: Digits, there: Digits) -> Iterator[Met]:
    """Yield where parts meet whose first axes go alike: one is some indices ahead."""
    (step, size, way), inner = here[0], here[1:]
    (_, count, other), rest = there[0], there[1:]
    first = -((_reach(inner) - gap) // step)
    for ahead in range(first, (gap + _reach(rest)) // step + 1):
        begin = max(0, -ahead)
        both = min(count, size - ahead) - begin
        for met in meeting(gap - ahead * step, inner, rest) if both > 0 else ():
            starts = [_times(way, begin + ahead)], [_times(other, begin)]
            yield met.along(both, way, other).further(*starts)


def _divided(gap: int, here: Digits, there: Digits) -> Iterator[Met]:
    """Yield where parts meet, the first axis of one cut by the step of the other's."""
    step, (own, size, way) = here[0].step, there[0]
    by = step // own
    count, left = divmod(size, by)
    high = Digit(step, count, _times(way, by))
    yield from meeting(gap, here, (high, Digit(own, by, way), *there[1:]))
    if left:
        rest = Digit(own, left, way), *there[1:]
        for met in meeting(gap + count * step, here, rest):
            yield met.further((), [_times(way, count * by)])


def _reach(digits: Digits) -> int:
    """Return how far the last element is from the first."""
    return sum([step * (size - 1) for step, size, _ in digits])


def _end(digit: Digit) -> int:
    return digit.step * digit.size


def _times(way: Way, count: int) -> Way:
    return way[0], way[1] * count


# -- pieces of pieces --------------------------------------------------------------


class Between(NamedTuple):
    """A leaf that is yet to be made: its parts, in the order of their starts in a dim.

    ``reach`` is how far a part goes there at most.
    """

    parts: Sequence[Piece | Filled]
    dim: int
    starts: Sequence[int]
    reach: int

    @classmethod
    def of(cls, made: Made) -> Between:
        """Return a leaf by the dim in which its parts begin at the most places."""
        every = [*made.pieces, *made.fills]
        dims = range(len(made.shape))
        counts = {d: len({x.target.starts[d] for x in every}) for d in dims}
        dim = max(dims, key=lambda d: counts[d], default=0)
        starts = [x.target.starts[dim] if dims else 0 for x in every]
        order = sorted(range(len(every)), key=starts.__getitem__)
        reach = max((_reach_in(x.sizes, x.target, dim) for x in every), default=0)
        return cls([every[i] for i in order], dim, [starts[i] for i in order], reach)

    def near(self, piece: Piece) -> Iterator[Piece | Filled]:
        """Yield the parts that may have elements that a piece is made of."""
        begin = piece.source.starts[self.dim] if piece.source.starts else 0
        end = begin + _reach_in(piece.sizes, piece.source, self.dim)
        first = bisect_left(self.starts, begin - self.reach)
        return iter(self.parts[first : bisect_right(self.starts, end)])


Origins = Mapping[Place, tuple[Place, Place]]
"""Of what is new among places: the place of a leaf between, and one in that."""


def through(
    made: Made, between: Mapping[Place, Between]
) -> tuple[Made, Origins] | None:
    """Return what a leaf is made of where leaves between are to be made, too.

    The places of what these are made of have theirs in front. None if that would be
    many more pieces than both have: then the leaves between are better made.
    """
    used = [between[x.place] for x in made.pieces if x.place in between]
    most = 64 + 4 * sum(len(x.parts) for x in (*used, Between.of(made)))
    origins: dict[Place, tuple[Place, Place]] = {}
    found = [*islice(_through(made, between, origins), most + 1)]
    if len(found) > most:
        return None
    pieces = tuple(x for x in found if isinstance(x, Piece))
    fills = tuple(x for x in found if isinstance(x, Filled))
    return Made(made.shape, pieces, fills, None), origins


def _through(
    made: Made,
    between: Mapping[Place, Between],
    origins: dict[Place, tuple[Place, Place]],
) -> Iterator[Piece | Filled]:
    """Yield the parts of a leaf, and note the places that are new."""
    yield from made.fills
    for piece in made.pieces:
        if piece.place not in between:
            yield piece
            continue
        for part in between[piece.place].near(piece):
            if isinstance(part, Filled):
                for sizes, _, there in _joined(part, NOWHERE, piece):
                    yield part._replace(sizes=sizes, target=there)
                continue
            at = piece.place[1]
            place = piece.place[0], (*at, part.place[0], *part.place[1])
            for sizes, here, there in _joined(part, part.source, piece):
                origins[place] = piece.place, part.place
                yield Piece(sizes, there, here, place)


NOWHERE: Final = Cut((), ())
"""The part of a first leaf that a value is, which has none."""


def _joined(
    part: Piece | Filled, source: Cut, then: Piece
) -> Iterator[tuple[tuple[int, ...], Cut, Cut]]:
    """Yield where a part of the leaf between goes on, in the first leaf and the last.

    An axis that the next repeats is one of the last leaf alone.
    """
    ways = source.ways or ((0, 0),) * len(part.sizes)
    here = _digits(part.sizes, part.target, ways)
    there = _digits(then.sizes, then.source, then.target.ways)
    starts = zip(part.target.starts, then.source.starts, strict=True)
    each: list[list[Met]] = []
    for (one, other), *digits in zip(starts, here, there, strict=True):
        each.append([*meeting(other - one, *digits)])
        if not each[-1]:
            return
    pairs = zip(then.sizes, then.source.ways, then.target.ways, strict=True)
    again = [(size, way) for size, (_, step), way in pairs if not step]
    repeated = Met(
        tuple(size for size, _ in again),
        (((0, 0),) * len(again), tuple(way for _, way in again)),
    )
    for found in product(*each, [repeated]):
        if 0 not in (size for met in found for size in met.sizes):
            yield (
                tuple(size for met in found for size in met.sizes),
                _cut(source, [(met.ways[0], met.starts[0]) for met in found]),
                _cut(then.target, [(met.ways[1], met.starts[1]) for met in found]),
            )


def _cut(cut: Cut, found: Sequence[tuple[Sequence[Way], Sequence[Way]]]) -> Cut:
    """Return a part of a leaf along other axes, and further on."""
    starts = [*cut.starts]
    for _, moved in found:
        for dim, by in moved:
            if by:
                starts[dim] += by
    return Cut(tuple(starts), tuple(way for ways, _ in found for way in ways))


def _reach_in(sizes: Sequence[int], cut: Cut, dim: int) -> int:
    """Return how far a part goes in a dim."""
    pairs = zip(sizes, cut.ways, strict=True)
    return sum([step * (size - 1) for size, (d, step) in pairs if d == dim])


@lru_cache(maxsize=65536)
def _digits(
    sizes: tuple[int, ...], cut: Cut, ways: tuple[Way, ...]
) -> tuple[Digits, ...]:
    """Return for each dim of the leaf between which axes go there."""
    found: list[list[Digit]] = [[] for _ in cut.starts]
    for size, (dim, step), way in zip(sizes, cut.ways, ways, strict=True):
        if step:
            found[dim].append(Digit(step, size, way))
    return tuple(tuple(sorted(own, key=lambda x: -x.step)) for own in found)
