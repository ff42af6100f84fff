"""Expressions as polynomials: multiplied out, a sum of parts, each a set of axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from sdtree.conversion.text import Axis, Expr, Sum

Sizes = Mapping[str, int]


class Place(NamedTuple):
    """Where a part lies in a dim: where it begins, and how far each axis goes."""

    offset: int
    steps: Mapping[str, int]


class Repeated(Exception):
    """An axis stands twice in one part."""

    def __init__(self, axis: str) -> None:
        super().__init__(axis)
        self.axis = axis


def size_of(expr: Expr, sizes: Sizes) -> int:
    """Return the size of a dim."""
    if isinstance(expr, Axis):
        return sizes[expr.name]
    each = [size_of(part, sizes) for part in expr.parts]
    return sum(each) if isinstance(expr, Sum) else prod(each)


def count_of(expr: Expr) -> int:
    """Return in how many parts an expression falls when it is multiplied out."""
    if isinstance(expr, Axis):
        return 1
    each = [count_of(part) for part in expr.parts]
    return sum(each) if isinstance(expr, Sum) else prod(each)


def places(expr: Expr, sizes: Sizes) -> Iterator[Place]:
    """Yield for each part of a dim where it lies.

    >>> from sdtree.conversion.text import term_of
    >>> [*places(term_of("w [(h (a + b))]").dims[0], {"h": 2, "a": 3, "b": 1})]
    [Place(offset=0, steps={'h': 4, 'a': 1}), Place(offset=3, steps={'h': 4, 'b': 1})]
    """
    if isinstance(expr, Axis):
        yield Place(0, {expr.name: 1})
    elif isinstance(expr, Sum):
        at = 0
        for part in expr.parts:
            for offset, steps in places(part, sizes):
                yield Place(at + offset, steps)
            at += size_of(part, sizes)
    else:
        each = [size_of(part, sizes) for part in expr.parts]
        scales = [prod(each[i + 1 :]) for i in range(len(each))]
        for found in product(*([*places(part, sizes)] for part in expr.parts)):
            yield _scaled(found, scales)


def _scaled(found: Sequence[Place], scales: Sequence[int]) -> Place:
    """Return where the product of parts lies."""
    steps: dict[str, int] = {}
    for place, scale in zip(found, scales, strict=True):
        for axis, step in place.steps.items():
            if axis in steps:
                raise Repeated(axis)
            steps[axis] = step * scale
    pairs = zip(found, scales, strict=True)
    return Place(sum(place.offset * scale for place, scale in pairs), steps)


class Part(NamedTuple):
    """A part of a family: its axes, and where it lies in each dim."""

    axes: frozenset[str]
    at: tuple[Place, ...]


def parts(exprs: Sequence[Expr], sizes: Sizes) -> Iterator[Part]:
    """Yield the parts of a family whose dims are these expressions."""
    for at in product(*([*places(expr, sizes)] for expr in exprs)):
        axes = [axis for place in at for axis in place.steps]
        if len({*axes}) < len(axes):
            raise Repeated(next(axis for axis in axes if axes.count(axis) > 1))
        yield Part(frozenset(axes), at)
