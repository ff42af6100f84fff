"""Calls that wait for the rest of their arguments: functions that are data."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from sdtree.kinds.values import same_value

T = TypeVar("T")


class Call(partial[T]):
    """A function with its first arguments; the rest come when it is called.

    Where a lambda is equal to itself alone, two calls are equal if their functions and
    arguments are, and one pickles if they do.

    >>> Call(max, 3) == Call(max, 3), Call(max, 3) == Call(max, 3.0), Call(max, 3)(5)
    (True, False, 5)
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and same_value(
            (self.func, self.args, self.keywords),
            (other.func, other.args, other.keywords),
        )

    def __hash__(self) -> int:
        return hash((self.func, self.args, tuple(self.keywords.items())))
