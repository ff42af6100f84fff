"""Containers: how one level of a tree comes apart into children, and together again.

The built-in ones are taken apart here; any other is asked of optree's registry, and
what is not there but a namedtuple, a dataclass or a subclass of a built-in container
is rebuilt without running its ``__init__``, its instance attributes kept.
"""

from __future__ import annotations

import dataclasses
from collections import UserDict, UserList
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeVar, final

import optree

from sdtree.errors import UnknownContainer
from sdtree.kinds.handler import find_handler, unknown
from sdtree.kinds.registry import change, era, keep, on_change
from sdtree.kinds.strangers import is_ours
from sdtree.tree.beside import State
from sdtree.tree.builtin import (
    BASES,
    BUILTIN,
    Container,
    Keys,
    Parts,
    counted,
    of_dataclass,
    with_attributes,
)
from sdtree.tree.registered import of_functions
from sdtree.typing import Aux, Tree

T = TypeVar("T", bound=type)
NAMESPACE: Final = "sdtree"


@final
class Absent:
    """The type of ``ABSENT``, which holds the place of a dropped element."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()
"""What a dropped element leaves in its list, tuple or dataclass.

It is structure, not a leaf: it has no path, and is never mapped or counted.

>>> sd.drop(["a", "b"], "0")
[ABSENT, 'b']
"""


LEAF_TYPES: Final[set[type]] = set()
"""The types met so far that are no containers: what the walk asks first."""

_CONTAINERS: dict[type, Container] = {}
_REGISTERED: dict[str, type] = {}


def register_container(
    cls: T,
    *,
    flatten: Callable[[Any], tuple[Any, ...]] | None = None,
    unflatten: Callable[[Any, Any], Any] | None = None,
) -> T:
    """Register a container class and return it (so it also works as a decorator).

    A namedtuple, dataclass or subclass of a built-in container needs no functions: it
    is known already, and registering it lets files and JSON name it. Any other class
    gives the pair that optree asks for: ``flatten(x) -> (children, metadata)`` or
    ``(children, metadata, entries)``, and ``unflatten(metadata, children)``, which
    makes of any children the container that comes apart into them: the first that is
    met is tried so. Entries are the keys of paths, each another.

    >>> @sd.register_container
    ... class Point(typing.NamedTuple):
    ...     x: int
    ...     y: int
    >>> spec = sd.TreeSpec.from_json(sd.structure(Point(1, 2)).to_json())
    >>> sd.unflatten({"x": 3, "y": 4}, spec=spec)
    Point(x=3, y=4)
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_container takes a class, not {cls!r}")
    if (flatten is None) != (unflatten is None):
        raise TypeError("register_container takes flatten= and unflatten= together")
    if flatten is not None and unflatten is not None:
        _check_functions(cls, flatten, unflatten)
    elif _resolve(cls) is None:
        raise _unknown(cls)
    change(lambda: _register(cls, flatten, unflatten))
    return cls


def _register(cls: type, flatten: Any, unflatten: Any) -> None:
    if flatten is not None:
        if _REGISTERED.get(type_name(cls)) is cls:  # a cell that is run again, say
            optree.unregister_pytree_node(cls, namespace=NAMESPACE)
        optree.register_pytree_node(cls, flatten, unflatten, namespace=NAMESPACE)
    _REGISTERED[type_name(cls)] = cls


def _check_functions(cls: type, flatten: object, unflatten: object) -> None:
    if not (callable(flatten) and callable(unflatten)):
        raise TypeError(
            f"register_container({cls.__name__}): flatten and unflatten are functions; "
            "flatten(x) returns (children, metadata), unflatten(metadata, children) "
            "the container"
        )


def container_of(cls: type) -> Container | None:
    """Return how ``cls`` comes apart, or None if a leaf kind serves it."""
    known = _CONTAINERS.get(cls)
    if known is not None or cls in LEAF_TYPES:
        return known
    since = era()
    if type_name(cls) not in _REGISTERED and find_handler(cls) is not None:
        keep(since, lambda: LEAF_TYPES.add(cls))
        return None
    found = None if is_ours(cls) else _resolve(cls)
    if found is None:
        raise _unknown(cls) if issubclass(cls, (Mapping, Sequence)) else unknown(cls)
    keep(since, lambda: _CONTAINERS.update({cls: found}))
    return found


def _resolve(cls: type) -> Container | None:
    """Find out how a class that is not built in comes apart."""
    entry = optree.register_pytree_node.get(cls, namespace=NAMESPACE)
    if cls in BUILTIN:
        return BUILTIN[cls]
    if entry is not None and entry.type is cls:
        return of_functions(cls, entry.flatten_func, entry.unflatten_func)
    if optree.is_structseq_class(cls):
        return _struct_sequence(cls) if "__new__" in vars(cls) else None
    for base, make in {**BASES, **WRAPPERS}.items():
        if issubclass(cls, base):
            return None if dataclasses.is_dataclass(cls) else make(cls)
    return of_dataclass(cls) if dataclasses.is_dataclass(cls) else None


def _unknown(cls: type) -> UnknownContainer:
    name = cls.__qualname__
    return UnknownContainer(
        f"{name} is a container that cannot be rebuilt; say how with "
        f"sd.register_container({name}, flatten=..., unflatten=...)"
    )


def type_name(cls: type) -> str:
    """Return the name of a class in a spec: bare if built in, else with its module."""
    if cls in BUILTIN:
        return cls.__name__
    return f"{cls.__module__}:{cls.__qualname__}"


def type_named(name: str) -> type:
    """Return the container class of that name; only known ones, never an import."""
    for cls in BUILTIN:
        if cls.__name__ == name:
            return cls
    if name in _REGISTERED:
        return _REGISTERED[name]
    short = name.rpartition(":")[2]
    raise UnknownContainer(
        f"the spec names the container {name}, which this process has not registered; "
        f"import it and call sd.register_container({short}) first"
    )


def registered() -> list[type]:
    """Return the classes that ``register_container`` was called for."""
    return list(_REGISTERED.values())


def is_mapping(cls: type) -> bool:
    """Return whether a dropped child of such a container takes its key along."""
    container = container_of(cls)
    return container is not None and container.is_mapping


def is_portable(cls: type) -> bool:
    """Return whether a spec with this class can be read back from text."""
    return cls in BUILTIN or type_name(cls) in _REGISTERED


def _struct_sequence(cls: Any) -> Container:
    """Return how a tuple of named fields comes apart, and those that are no items."""
    named = set(vars(cls))
    fields = [
        name if name in named else i
        for i, name in enumerate(optree.structseq_fields(cls))
    ]

    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        _, (items, hidden) = x.__reduce__()
        return tuple(fields), items, State(hidden=hidden) if hidden else None

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        return cls(tuple(children), aux["hidden"] if aux else {})

    return Container(apart, together)


def _wrapper(cls: Any) -> Container:
    """Return how a class comes apart whose items are those of its ``data``.

    The type of ``data`` and its state are kept, unless it is of the usual type.
    """
    is_mapping = issubclass(cls, UserDict)
    plain = dict if is_mapping else list

    def parts(x: Any) -> Parts:
        data = getattr(x, "data", None)
        inner = container_of(type(data))
        fits = isinstance(data, list) or (inner is not None and inner.is_mapping)
        if inner is None or not fits or isinstance(data, list) == is_mapping:
            raise _unknown(cls)
        keys, children, aux = inner.apart(data)
        if type(data) is plain:
            return counted(x, keys), children, {}
        return counted(x, keys), children, {"data": (type(data), aux)}

    def make(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        kind, state = (aux or {}).get("data", (plain, None))
        inner = container_of(kind)
        assert inner is not None
        new = object.__new__(cls)
        new.data = inner.together(keys, children, state)
        return new

    return with_attributes(cls, parts, make, is_mapping=is_mapping, skipped=["data"])


WRAPPERS: Final[dict[type, Callable[[type], Container]]] = {
    UserDict: _wrapper,
    UserList: _wrapper,
}


def whatever_is_in(tree: Tree) -> list[object]:
    """Return what is in a tree, as optree takes it apart: also what is no leaf.

    >>> whatever_is_in({"a": [1, object], "b": None})
    [1, <class 'object'>, None]
    """
    return optree.tree_leaves(tree, none_is_leaf=True, namespace=NAMESPACE)


_CONTAINERS.update(BUILTIN)


def _forget() -> None:
    """Let what is newly registered win over what a type was taken for."""
    LEAF_TYPES.clear()
    _CONTAINERS.clear()
    _CONTAINERS.update(BUILTIN)


on_change(_forget)
