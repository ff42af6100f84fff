"""Twins: leaves whose data is one and the same, so that it can travel once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache

from torch import Tensor

from sdtree.kinds.abstract import Abstract, nbytes_of
from sdtree.layout.layout import Box, Layout
from sdtree.layout.schedule import is_blind, is_whole
from sdtree.tensors.storage import identity_of, storage_keys, storage_of

Turn = tuple[int, ...]
"""Which dimension of a leaf comes where in another, as ``permute`` takes it."""


def twins_of(
    held: Mapping[int, Sequence[Tensor]], forms: Sequence[Abstract]
) -> list[list[int]]:
    """Return which leaves are one, up to the order of their dimensions.

    Both the local tensors and the layouts must say so, and in one way alone: all that
    hold a part then come to the same.
    """
    keys: dict[int, int] = {}
    starts = {*storage_keys([ts[0] for ts in held.values()])}
    if len(starts) == len(held) and 0 not in starts:
        return []
    for group in groups_of({i: storage_of(ts[0]) for i, ts in held.items()}):
        first: dict[Hashable, int] = {}
        turned: dict[Hashable, list[int]] = {}
        for i in group:
            form, ts = forms[i], held[i]
            exact = identity_of(ts), form.dtype, form.layout
            if exact not in first:
                bits = ts[0].storage_offset(), ts[0].is_conj(), ts[0].is_neg()
                place = *bits, form.dtype, tuple(sorted(form.shape))
                others = turned.setdefault(place, [])
                found = (k for k in others if _are_one(k, i, held, forms))
                first[exact] = next(found, i)
                others += [i] if first[exact] == i else []
            keys[i] = first[exact]
    return groups_of(keys)


def _are_one(
    i: int, k: int, held: Mapping[int, Sequence[Tensor]], forms: Sequence[Abstract]
) -> bool:
    """Return whether a leaf is another with its dimensions in another order."""
    here, there = forms[i].layout, forms[k].layout
    if here is None or there is None or len(held[i]) != 1 or len(held[k]) != 1:
        return False
    turn = turn_of(here, there, order_of(held[i]), order_of(held[k]))
    if turn is None:
        return False
    a, b = held[i][0].permute(turn), held[k][0]
    sides = zip(a.size(), a.stride(), b.size(), b.stride(), strict=True)
    return all(n == m and (n < 2 or s == r) for n, s, m, r in sides)


def order_of(held: Sequence[Tensor]) -> int:
    """Return the number of the order in which the dimensions of a leaf lie in memory.

    From the outermost to the innermost, those of one element, of which strides do not
    tell, last; 0 if it is not one tensor.
    """
    if len(held) != 1:
        return 0
    n, s = held[0].size(), held[0].stride()
    found = sorted(range(len(n)), key=lambda k: (n[k] < 2, -s[k], n[k]))
    return _number_of(tuple(found))


@lru_cache(maxsize=4096)
def _number_of(order: Turn) -> int:
    """Return the number of an order, in which the dense one is the first."""
    number = 0
    for k, dim in enumerate(order):
        lower = sum(other < dim for other in order[k:])
        number = number * (len(order) - k) + lower
    return number


def _numbered(number: int, count: int) -> Turn:
    """Return the order of so many dimensions that has a number."""
    places: list[int] = []
    for size in range(1, count + 1):
        number, place = divmod(number, size)
        places.append(place)
    left = [*range(count)]
    return tuple(left.pop(place) for place in reversed(places))


@lru_cache(maxsize=4096)
def turn_of(here: Layout, there: Layout, first: int, then: int) -> Turn | None:
    """Return the order of dimensions that makes a leaf of another, if one does.

    Where each rank holds all of both, a square say, the layouts do not tell, and their
    orders in memory do, which are given by number.

    >>> square = Layout((2, 2), {0: (Box(0, (0, 0), (0, 0), (2, 2)),)})
    >>> turn_of(square, square, 0, 1)
    (1, 0)
    """
    if not (is_replicated(here) and is_replicated(there)):
        return turn_between(here, there)
    if sorted(here.shape) != sorted(there.shape):
        return None
    dims = range(len(here.shape))
    a, b = (_numbered(number, len(dims)) for number in (first, then))
    turn = tuple(a[b.index(k)] for k in dims)
    return turn if turned(here, turn) == there else None


@lru_cache(maxsize=4096)
def is_replicated(layout: Layout) -> bool:
    """Return whether each of its ranks holds all of a leaf."""
    return not layout.is_partial and is_whole(layout, layout.ranks)


@lru_cache(maxsize=4096)
def turn_between(here: Layout, there: Layout) -> Turn | None:
    """Return the one order of dimensions that makes a layout of another, if one does.

    >>> rows = Layout((4, 2), {0: (Box(0, (0, 0), (0, 0), (4, 2)),)})
    >>> turn_between(rows, turned(rows, (1, 0)))
    (1, 0)
    """
    if here == there:
        return tuple(range(len(here.shape)))
    if here.is_partial or sorted(here.shape) != sorted(there.shape):
        return None
    rows, wanted = _rows(here), _rows(there)
    wide = [row for row in rows if row[0] > 1]
    if len({*wide}) < len(wide):
        return None
    a, b = (sorted(range(len(x)), key=x.__getitem__) for x in (rows, wanted))
    turn = tuple(k for _, k in sorted(zip(b, a, strict=True)))
    return turn if turned(here, turn) == there else None


def _rows(layout: Layout) -> list[tuple[int, ...]]:
    """Return of each dimension its size, and where each box lies along it."""
    boxes = [box[1:] for held in layout.boxes.values() for box in held]
    return [
        (size, *(sides[k] for box in boxes for sides in box))
        for k, size in enumerate(layout.shape)
    ]


def turned(layout: Layout, turn: Turn) -> Layout:
    """Return the layout of a leaf whose dimensions are put in another order."""

    def put(sides: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sides[k] for k in turn)

    def box(x: Box) -> Box:
        return Box(x.tensor, put(x.local), put(x.offset), put(x.size))

    boxes = {rank: tuple(map(box, found)) for rank, found in layout.boxes.items()}
    return Layout(put(layout.shape), boxes, layout.is_partial, layout.doubt)


def unseen(
    me: int, forms: Sequence[Abstract], ways: Iterable[tuple[Layout | None, ...]]
) -> list[list[int]]:
    """Return the leaves that may be tied for all that a rank holds of them.

    ``ways`` are the layouts from which and to which each goes.
    """
    found: dict[int, Hashable] = {}
    for i, (form, layouts) in enumerate(zip(forms, ways, strict=True)):
        if any(is_blind(layout, me) for layout in layouts) and nbytes_of(form):
            found[i] = form.dtype, *layouts
    return groups_of(found)


def ties_of(
    held: Mapping[int, Sequence[Tensor]], mark: Callable[[int], Hashable]
) -> list[list[int]]:
    """Return the positions whose data is one and the same, and so is their mark."""
    found = groups_of({i: storage_of(ts[0]) for i, ts in held.items()})
    keys = {i: (identity_of(held[i]), mark(i)) for group in found for i in group}
    return groups_of(keys)


def groups_of(keys: Mapping[int, Hashable]) -> list[list[int]]:
    """Return the positions that have one key, where there are several."""
    if len({*keys.values()}) == len(keys):
        return []
    found: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, key in keys.items():
        found[key].append(i)
    return [group for group in found.values() if len(group) > 1]
