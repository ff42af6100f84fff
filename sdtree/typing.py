"""The types that signatures speak of, and the dict that values are made of."""

from collections.abc import Callable, Hashable
from typing import Any, NoReturn, TypeAlias, TypeVar

Leaf: TypeAlias = Any
"""Whatever a registered kind, or a plain value, may be."""

Tree: TypeAlias = Any
"""A leaf, or a container of trees."""

Aux: TypeAlias = Any
"""What a kind or a container remembers beside its parts."""

Dtype: TypeAlias = Any
"""A dtype of torch, or numpy's own where torch has none like it."""

Key: TypeAlias = Hashable
"""One step of a path: a dict key as it is, an index, a field name."""

Path: TypeAlias = tuple[Key, ...]
"""The keys from the root to a leaf: its identity."""

LeafFunction: TypeAlias = Callable[..., Leaf]

OnProgress: TypeAlias = Callable[[int, int], object]
"""Called with how many bytes are done and how many there are."""

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
