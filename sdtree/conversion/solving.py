"""The sizes of axes, from those of the dims that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sdtree.conversion.algebra import Sizes, size_of
from sdtree.conversion.reading import names_in
from sdtree.conversion.text import Expr


class Equation(NamedTuple):
    """An expression, and its size; ``where`` tells of what."""

    expr: Expr
    total: int
    where: str


class Unsolved(Exception):
    """There are no such sizes, and why."""


def solved(equations: Iterable[Equation], sizes: Sizes) -> dict[str, int]:
    """Return the sizes of all axes that follow; raise ``Unsolved`` if some do not fit.

    >>> from sdtree.conversion.text import term_of
    >>> [dim] = term_of("w [(h two d)]").dims
    >>> solved([Equation(dim, 24, "w")], {"h": 4, "two": 2})
    {'h': 4, 'two': 2, 'd': 3}
    """
    found, left = dict(sizes), [*equations]
    while True:
        later = [each for each in left if not _settled(each, found)]
        if len(later) == len(left):
            return found
        left = later


def _settled(equation: Equation, found: dict[str, int]) -> bool:
    """Return whether all axes of an equation are known, one of them by it perhaps."""
    unknown = names_in([equation.expr]) - found.keys()
    if len(unknown) == 1:
        [axis] = unknown
        base = size_of(equation.expr, {**found, axis: 0})
        step = size_of(equation.expr, {**found, axis: 1}) - base
        count, rest = divmod(equation.total - base, step) if step else (0, 0)
        if step and (rest or count < 0):
            told = f"no whole {axis} makes it{_given(equation.expr, found)}"
            raise Unsolved(f"{equation.where} is {equation.total}, and {told}")
        if step:
            found[axis] = count
            return True
    if not unknown and (size := size_of(equation.expr, found)) != equation.total:
        told = f"by the rule it is {size}{_given(equation.expr, found)}"
        raise Unsolved(f"{equation.where} is {equation.total}, and {told}")
    return not unknown


def _given(expr: Expr, found: Mapping[str, int]) -> str:
    """Return in words the sizes that are known of the axes of an expression."""
    known = sorted(names_in([expr]) & found.keys())
    return f" with {', '.join(f'{a}={found[a]}' for a in known)}" if known else ""


def follow(exprs: Sequence[Expr], known: set[str]) -> set[str]:
    """Return the axes whose sizes follow, if those of all expressions are told."""
    found, grown = {*known}, True
    while grown:
        more = [unknown for e in exprs if len(unknown := names_in([e]) - found) == 1]
        grown = bool(more)
        found.update(*more)
    return found
