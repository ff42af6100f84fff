"""How the built-in containers and their subclasses come apart, and together again.

They are rebuilt without running ``__init__``, their instance attributes kept.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sdtree.typing import Aux, Key, Tree
from sdtree.values import same_value

Keys = Sequence[Key]


class State(dict[str, Any]):
    """What a container is beside its children. Equal if its values are the same."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return False
        return same_value(dict(self), dict(other), in_order=True)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]


class Container(NamedTuple):
    """How the containers of one type come apart and together.

    ``apart(x)`` is ``(keys, children, aux)``; ``together(keys, children, aux)`` is
    ``x`` again. In a mapping a dropped child takes its key along. ``portable`` tells
    whether a spec that is read from text may name the type.
    """

    apart: Callable[[Any], tuple[Keys, Collection[Tree], Aux]]
    together: Callable[[Keys, Sequence[Tree], Aux], Any]
    is_mapping: bool = False


# -- instance state ---------------------------------------------------------------


def _attributes(x: object) -> dict[str, Any]:
    """Return the instance attributes of ``x``, from its ``__dict__`` and its slots."""
    found: dict[str, Any] = dict(getattr(x, "__dict__", ()))
    for base in type(x).__mro__:
        slots: str | Collection[str] = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = _mangled(base, slot)
            if name not in ("__dict__", "__weakref__") and hasattr(x, name):
                found[name] = getattr(x, name)
    return found


def _mangled(cls: type, name: str) -> str:
    """Return the name under which a private slot of a class is kept."""
    private = name.startswith("__") and not name.endswith("__")
    return f"_{cls.__name__.lstrip('_')}{name}" if private else name


def _restore(x: Any, attributes: Mapping[str, Any]) -> Any:
    for name, value in attributes.items():
        object.__setattr__(x, name, value)
    return x


def _aux(x: object, **own: Any) -> Aux:
    """Return what ``x`` is beside its children, None if nothing."""
    return _state(_attributes(x), **own)


def _state(attributes: Mapping[str, Any], **own: Any) -> State | None:
    if attributes:
        own["attributes"] = attributes
    return State(own) if own else None


def _finish(x: Any, aux: Aux) -> Any:
    return _restore(x, aux.get("attributes", {})) if aux else x


# -- the built-in containers and their subclasses ----------------------------------


def _dict_like(cls: Any) -> Container:
    base: Any = OrderedDict if issubclass(cls, OrderedDict) else dict

    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        return tuple(base.keys(x)), base.values(x), _aux(x)

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new = base.__new__(cls)
        base.update(new, zip(keys, children, strict=True))
        return _finish(new, aux)

    return Container(apart, together, is_mapping=True)


def _default_dict(cls: Any) -> Container:
    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        aux = _aux(x, default_factory=x.default_factory)
        return tuple(dict.keys(x)), dict.values(x), aux

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new: Any = defaultdict.__new__(cls)
        defaultdict.__init__(new, aux["default_factory"])
        dict.update(new, zip(keys, children, strict=True))
        return _finish(new, aux)

    return Container(apart, together, is_mapping=True)


def _user_dict(cls: Any) -> Container:
    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        keys, children = tuple(x.data), tuple(x.data.values())
        return keys, children, _without_data(x)

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new = object.__new__(cls)
        new.data = dict(zip(keys, children, strict=True))
        return _finish(new, aux)

    return Container(apart, together, is_mapping=True)


def _user_list(cls: Any) -> Container:
    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        return range(len(x.data)), x.data, _without_data(x)

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new = object.__new__(cls)
        new.data = list(children)
        return _finish(new, aux)

    return Container(apart, together)


def _without_data(x: object) -> Aux:
    return _state({k: v for k, v in _attributes(x).items() if k != "data"})


def _list_like(cls: Any) -> Container:
    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        return range(len(x)), list[Any](x), _aux(x)

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new: Any = list.__new__(cls)
        list.extend(new, children)
        return _finish(new, aux)

    return Container(apart, together)


def _tuple_like(cls: Any) -> Container:
    fields: tuple[str, ...] | None = getattr(cls, "_fields", None)

    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        return fields or range(len(x)), tuple[Any, ...](x), _aux(x)

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        return _finish(tuple.__new__(cls, children), aux)

    return Container(apart, together)


def _deque_like(cls: Any) -> Container:
    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        return range(len(x)), tuple(x), _aux(x, maxlen=x.maxlen)

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        new: Any = deque.__new__(cls)
        deque.__init__(new, children, aux["maxlen"])
        return _finish(new, aux)

    return Container(apart, together)


def of_dataclass(cls: Any) -> Container:
    names = [field.name for field in dataclasses.fields(cls)]

    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        attributes = _attributes(x)
        keys = tuple(name for name in names if name in attributes)
        children = tuple(attributes.pop(key) for key in keys)
        return keys, children, _state(attributes)

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        fields = dict(zip(keys, children, strict=True))
        return _finish(_restore(object.__new__(cls), fields), aux)  # type: ignore[arg-type]

    return Container(apart, together)


BASES: dict[type, Callable[[type], Container]] = {
    defaultdict: _default_dict,
    dict: _dict_like,
    list: _list_like,
    tuple: _tuple_like,
    deque: _deque_like,
    UserDict: _user_dict,
    UserList: _user_list,
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
