"""How the built-in containers and their subclasses come apart, and together again.

They are rebuilt without running ``__init__``, their instance attributes kept.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sdtree.errors import UnknownContainer
from sdtree.tree.beside import attributes_of, restored, state_of
from sdtree.typing import Aux, Key, Tree

Keys = Sequence[Key]
Parts = tuple[Keys, Collection[Tree], dict[str, Any]]
"""Keys, children, and what a type has beside them that is no attribute."""


class Container(NamedTuple):
    """How the containers of one type come apart and together.

    ``apart(x)`` is ``(keys, children, aux)``; ``together(keys, children, aux)`` is
    ``x`` again. In a mapping a dropped child takes its key along.
    """

    apart: Callable[[Any], tuple[Keys, Collection[Tree], Aux]]
    together: Callable[[Keys, Sequence[Tree], Aux], Any]
    is_mapping: bool = False


def with_attributes(
    cls: type,
    parts: Callable[[Any], Parts],
    make: Callable[[Keys, Sequence[Tree], Aux], Any],
    *,
    is_mapping: bool = False,
    skipped: Collection[str] = (),
) -> Container:
    """Return how a type comes apart into its parts, all but some attributes kept."""
    tell = attributes_of(cls)

    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        keys, children, own = parts(x)
        attributes = {k: v for k, v in tell(x).items() if k not in skipped}
        if not attributes and not own:
            return keys, children, None
        return keys, children, state_of(x, attributes, keys, children, **own)

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        return restored(make(keys, children, aux), aux, keys, children)

    return Container(apart, together, is_mapping)


def counted(x: Any, keys: Keys) -> Keys:
    """Return the keys of a container, seen to be all that it says to have."""
    if len(x) != len(keys):
        raise UnknownContainer(
            f"this {type(x).__qualname__} says that it holds {len(x)} items and holds "
            f"{len(keys)}; say how it comes apart with sd.register_container"
            f"({type(x).__qualname__}, flatten=..., unflatten=...)"
        )
    return keys


def _dict_like(cls: Any) -> Container:
    base: Any = OrderedDict if issubclass(cls, OrderedDict) else dict
    fill: Any = _fill_ordered if base is OrderedDict is not cls else base.update

    def parts(x: Any) -> Parts:
        return counted(x, tuple(base.keys(x))), base.values(x), {}

    def make(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new = base.__new__(cls)
        fill(new, zip(keys, children, strict=True))
        return new

    return with_attributes(cls, parts, make, is_mapping=True)


def _fill_ordered(new: Any, pairs: Iterable[tuple[Key, Tree]]) -> None:
    """Fill what is ordered; its ``update`` would run what a subclass does with keys."""
    for key, child in pairs:
        OrderedDict.__setitem__(new, key, child)


def _default_dict(cls: Any) -> Container:
    def parts(x: Any) -> Parts:
        own = {"default_factory": x.default_factory}
        return counted(x, tuple(dict.keys(x))), dict.values(x), own

    def make(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new: Any = defaultdict.__new__(cls)
        defaultdict.__init__(new, aux["default_factory"])
        dict.update(new, zip(keys, children, strict=True))
        return new

    return with_attributes(cls, parts, make, is_mapping=True)


def _list_like(cls: Any) -> Container:
    def parts(x: Any) -> Parts:
        items = list[Any].copy(x)
        return counted(x, range(len(items))), items, {}

    def make(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new: Any = list.__new__(cls)
        list.extend(new, children)
        return new

    return with_attributes(cls, parts, make)


def _tuple_like(cls: Any) -> Container:
    fields: tuple[str, ...] | None = getattr(cls, "_fields", None)

    def parts(x: Any) -> Parts:
        items = tuple[Any, ...].__getitem__(x, slice(None))
        return counted(x, fields or range(len(items))), items, {}

    def make(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        return tuple.__new__(cls, children)

    return with_attributes(cls, parts, make)


def _deque_like(cls: Any) -> Container:
    def parts(x: Any) -> Parts:
        items = tuple(deque.__iter__(x))
        return counted(x, range(len(items))), items, {"maxlen": x.maxlen}

    def make(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new: Any = deque.__new__(cls)
        deque.__init__(new, children, aux["maxlen"])
        return new

    return with_attributes(cls, parts, make)


def of_dataclass(cls: Any) -> Container:
    names = [field.name for field in dataclasses.fields(cls)]

    def parts(x: Any) -> Parts:
        held = {name: getattr(x, name) for name in names if hasattr(x, name)}
        return tuple(held), tuple(held.values()), {}

    def make(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new = object.__new__(cls)
        for name, child in zip(keys, children, strict=True):
            object.__setattr__(new, str(name), child)
        return new

    return with_attributes(cls, parts, make, skipped=names)


BASES: dict[type, Callable[[type], Container]] = {
    defaultdict: _default_dict,
    dict: _dict_like,
    list: _list_like,
    tuple: _tuple_like,
    deque: _deque_like,
}
BUILTIN: dict[type, Container] = {
    dict: _dict_like(dict),
    OrderedDict: _dict_like(OrderedDict),
    defaultdict: _default_dict(defaultdict),
    Counter: _dict_like(Counter),
    deque: _deque_like(deque),
    list: _list_like(list),
    tuple: _tuple_like(tuple),
}
