"""Which addresses views take, by arithmetic: whether one repeats, whether some meet.

A view takes ``start + k0 * step0 + k1 * step1 + ...``, with each k below a size. Memory
is cut into rows of the largest step: what lies in the same way in many rows is looked
at in one of them, so that the cost grows with the views and not with their elements.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from math import gcd
from operator import itemgetter
from typing import NamedTuple

Dims = tuple[tuple[int, int], ...]
"""Size and step of each dimension, the largest step first."""


class Lattice(NamedTuple):
    """A set of addresses, where it starts and how it goes on."""

    start: int
    dims: Dims

    @property
    def stop(self) -> int:
        """Return the address behind the last."""
        return self.start + 1 + sum((n - 1) * step for n, step in self.dims)

    @property
    def is_run(self) -> bool:
        """Return whether it has all addresses from the first to the last."""
        return not self.dims or self.dims[0][1] == 1

    def moved(self, by: int) -> Lattice:
        """Return the set moved up."""
        return Lattice(self.start + by, self.dims)


def lattice(start: int, dims: Iterable[tuple[int, int]]) -> Lattice:
    """Return the set in the shortest form: dimensions that go on in another are one.

    >>> lattice(0, [(2, 12), (3, 4), (4, 1), (9, 0)])
    Lattice(start=0, dims=((24, 1),))
    """
    kept: list[tuple[int, int]] = []
    for n, step in sorted(dims, key=itemgetter(1)):
        if n == 1 or step == 0:
            continue
        if kept and step % kept[-1][1] == 0 and step <= kept[-1][0] * kept[-1][1]:
            m, unit = kept.pop()
            kept.append((m + (n - 1) * (step // unit), unit))
        else:
            kept.append((n, step))
    return Lattice(start, tuple(kept[::-1]))


# -- one and two -------------------------------------------------------------------


def repeats(dims: Iterable[tuple[int, int]]) -> bool:
    """Return whether two indices of a view have one address.

    >>> repeats([(4, 4), (4, 1)]), repeats([(4, 3), (4, 1)])
    (False, True)
    """
    inner: list[tuple[int, int]] = []
    reach = 0
    for n, step in sorted((d for d in dims if d[0] > 1), key=itemgetter(1)):
        if step <= reach:
            # Two places along this dimension that what lies inside makes up for.
            around = [(2 * m - 1, s) for m, s in inner]
            apart = lattice(step - reach, [(n - 1, step), *around])
            if step == 0 or _holds(apart, 0):
                return True
        inner.append((n, step))
        reach += (n - 1) * step
    return False


def meet(a: Lattice, b: Lattice) -> bool:
    """Return whether two sets have an address in common.

    >>> evens, odds = Lattice(0, ((9, 2),)), Lattice(1, ((9, 2),))
    >>> meet(evens, odds), meet(evens, Lattice(3, ((9, 3),)))
    (False, True)
    """
    if a.stop <= b.start or b.stop <= a.start:
        return False
    return _holds(lattice(a.start - b.stop + 1, [*a.dims, *b.dims]), 0)


def _holds(a: Lattice, address: int) -> bool:
    """Return whether a set has an address."""
    if not a.start <= address < a.stop:
        return False
    if not a.dims or a.is_run:
        return True
    (n, step), *inner = a.dims
    rest = Lattice(a.start, tuple(inner))
    left, reach = address - a.start, rest.stop - 1 - a.start
    lowest, highest = max(0, -((reach - left) // step)), min(n - 1, left // step)
    # Only each so many-th leaves what the other steps can make up.
    unit = gcd(*map(itemgetter(1), inner)) or step
    common = gcd(step, unit)
    if left % common:
        return False
    stride = unit // common
    first = left // common * pow(step // common, -1, stride) % stride
    lowest += (first - lowest) % stride
    return any(
        _holds(rest, address - k * step) for k in range(lowest, highest + 1, stride)
    )


# -- many --------------------------------------------------------------------------

Item = tuple[Lattice, int]
"""A set, and the number of the view that it is a part of."""

Clash = tuple[int, int] | None
"""The numbers of two views that have an address in common, if any do."""


def clash(views: Sequence[Lattice], colours: Sequence[Hashable]) -> Clash:
    """Return two views of different colours that have an address in common, if any do.

    >>> columns = [Lattice(k, ((1000, 8),)) for k in (0, 1, 2, 9)]
    >>> clash(columns, "abcd"), clash(columns, "abcb")
    ((1, 3), None)
    """
    return _clash([(view, i) for i, view in enumerate(views)], colours)


def crossing(
    spans: Sequence[tuple[int, int]], colours: Sequence[Hashable]
) -> Iterator[list[int]]:
    """Yield the places of spans that hang together, if they are of several colours.

    They are in the order of their starts, and each goes on in the ones before it.

    >>> list(crossing([(4, 6), (0, 3), (5, 9), (9, 10)], "abcd"))
    [[0, 2]]
    """
    group: list[int] = []
    reached = 0
    for i in sorted(range(len(spans)), key=spans.__getitem__):
        start, stop = spans[i]
        if start >= reached:
            if len({colours[k] for k in group}) > 1:
                yield group
            group = []
        group.append(i)
        reached = max(reached, stop)
    if len({colours[k] for k in group}) > 1:
        yield group


def _clash(items: Sequence[Item], colours: Sequence[Hashable]) -> Clash:
    spans = [(view.start, view.stop) for view, _ in items]
    for places in crossing(spans, [colours[i] for _, i in items]):
        group = [items[k] for k in places]
        runs = [item for item in group if item[0].is_run]
        found = _crossed(runs, colours)
        if found is None and len(runs) < len(group):
            found = _clash_in_rows(group, colours)
        if found is not None:
            return found
    return None


def _crossed(runs: Sequence[Item], colours: Sequence[Hashable]) -> Clash:
    """Return two runs, in the order of their starts, that cross; each has all it spans.

    It is enough to know the two colours that reach furthest.
    """
    furthest: list[tuple[int, int]] = []
    for run, i in runs:
        for reached, j in furthest:
            if reached > run.start and colours[j] != colours[i]:
                return min(i, j), max(i, j)
        best: dict[Hashable, tuple[int, int]] = {}
        for reached, j in sorted([*furthest, (run.stop, i)]):
            best[colours[j]] = (reached, j)
        furthest = sorted(best.values())[-2:]
    return None


def _clash_in_rows(group: Sequence[Item], colours: Sequence[Hashable]) -> Clash:
    """Return what meets in the rows of the largest step, looking once at those alike.

    Steps of which none divides the other have no rows in common: there, pair by pair.
    """
    row = max(view.dims[0][1] for view, _ in group if view.dims)
    low = group[0][0].start
    bands: list[Band] = []
    for view, i in group:
        cut = _cut(view.moved(-low), row)
        if cut is None:
            return _clash_in_pairs(group, colours)
        bands += [Band(first, first + count, (part, i)) for first, count, part in cut]
    return next(filter(None, (_clash(x, colours) for x in _alike_rows(bands))), None)


def _clash_in_pairs(group: Sequence[Item], colours: Sequence[Hashable]) -> Clash:
    alive: list[Item] = []
    for view, i in group:
        alive = [other for other in alive if other[0].stop > view.start]
        for other, j in alive:
            if colours[i] != colours[j] and meet(view, other):
                return min(i, j), max(i, j)
        alive.append((view, i))
    return None


class Band(NamedTuple):
    """What lies in the same way in each of some rows, which follow one another."""

    first: int
    end: int
    item: Item


def _alike_rows(bands: Sequence[Band]) -> Iterator[list[Item]]:
    """Yield what lies in a row, once for those rows that have the same in them."""
    edges = sorted({e for b in bands for e in (b.first, b.end)})
    waiting = sorted(bands, key=lambda b: b.first, reverse=True)
    alive: list[Band] = []
    for edge in edges:
        alive = [b for b in alive if b.end > edge]
        while waiting and waiting[-1].first == edge:
            alive.append(waiting.pop())
        if len(alive) > 1:
            yield [b.item for b in alive]


Part = tuple[int, int, Lattice]
"""The first row, how many rows follow one another, and what lies in each of them."""


def _cut(view: Lattice, row: int) -> list[Part] | None:
    """Return a set cut into rows of a length, None if it lies in each in another way.

    >>> _cut(Lattice(2, ((7, 4),)), 12)
    [(0, 2, Lattice(start=2, dims=((3, 4),))), (2, 1, Lattice(start=2, dims=()))]
    """
    first = view.start // row
    if view.stop <= (first + 1) * row:
        return [(first, 1, view.moved(-first * row))]
    (n, step), *rest = view.dims
    inner = Lattice(view.start % step, tuple(rest))
    if row % step or inner.stop - inner.start > step:
        return None
    cell = view.start // step
    if inner.stop <= step:
        return _cut_cells(cell, n, step, row // step, inner)
    parts = _cut(inner, step)  # it crosses from one cell into the next
    if parts is None:
        return None
    return [
        part
        for shift, count, piece in parts
        for k in range(shift, shift + count)
        for part in _cut_cells(cell + k, n, step, row // step, piece)
    ]


def _cut_cells(cell: int, n: int, step: int, width: int, inner: Lattice) -> list[Part]:
    """Return cells that follow one another, cut into rows that are so many wide."""

    def part(first: int, count: int, start: int, stop: int) -> Part:
        dims = ((stop - start, step),) if stop - start > 1 else ()
        return first, count, Lattice(start * step + inner.start, dims + inner.dims)

    top, head = divmod(cell, width)
    end, tail = divmod(cell + n, width)
    if top == end:
        return [part(top, 1, head, tail)]
    parts = [part(top, 1, head, width)] if head else []
    top += head > 0
    parts += [part(top, end - top, 0, width)] if end > top else []
    return parts + ([part(end, 1, 0, tail)] if tail else [])
