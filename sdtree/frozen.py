"""Dicts that stay as they are, for values that are shared."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(dict[K, V]):
    """A dict that is not written to, and so is hashed by what it holds.

    >>> frozen = FrozenDict({0: "a"})
    >>> hash(frozen) == hash(FrozenDict({0: "a"})), frozen | {1: "b"}
    (True, {0: 'a', 1: 'b'})
    """

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[object, ...]:
        return FrozenDict, (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this dict is part of a value and stays; change dict(it)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = _refuse
    setdefault = update = _refuse  # pyright: ignore[reportAssignmentType]
