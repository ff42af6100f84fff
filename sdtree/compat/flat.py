"""Torch's flat form of a state dict: names, and for each the path that it stands for.

Dicts have keys of text there, and what is not a dict is a list; empty ones vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from itertools import pairwise
from typing import Any

from sdtree.errors import NameCollision

PathOfKeys = tuple[str | int, ...]


def traverse_state_dict(
    state_dict: dict[str, Any], visitor: Callable[[PathOfKeys, Any], None]
) -> None:
    """Call a function with the path of each value, and the value.

    >>> sd.compat.traverse_state_dict({"a": {0: 1}, "b": [2]}, print)
    ('a', '0') 1
    ('b', 0) 2
    """
    for key, value in state_dict.items():
        _traverse((str(key),), value, visitor)


def _traverse(
    path: PathOfKeys, value: Any, visitor: Callable[[PathOfKeys, Any], None]
) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _traverse((*path, str(key)), inner, visitor)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _traverse((*path, i), inner, visitor)
    else:
        visitor(path, value)


def flatten_state_dict(
    state_dict: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, PathOfKeys]]:
    """Return the values by dotted names, and the path that each name stands for.

    Two values of one name raise ``NameCollision``, a ValueError.

    >>> sd.compat.flatten_state_dict({"a": {"b": 1}, "c": [2]})
    ({'a.b': 1, 'c.0': 2}, {'a.b': ('a', 'b'), 'c.0': ('c', 0)})
    """
    flat: dict[str, Any] = {}
    paths: dict[str, PathOfKeys] = {}

    def put(path: PathOfKeys, value: Any) -> None:
        name = ".".join(map(str, path))
        if name in flat:
            raise NameCollision(
                f"duplicated flatten key {name}: the name of {paths[name]} and of "
                f"{path}; sd.structure keeps paths, whatever their names"
            )
        flat[name], paths[name] = value, path

    traverse_state_dict(state_dict, put)
    return flat, paths


def set_element(root_dict: dict[str, Any], path: PathOfKeys, value: Any) -> None:
    """Write a value into nested dicts and lists, which are made as far as need be.

    >>> tree = {}
    >>> sd.compat.set_element(tree, ("a", 1, "b"), 3)
    >>> tree
    {'a': [None, {'b': 3}]}
    """
    here: Any = root_dict
    for key, following in pairwise(path):
        new = [] if type(following) is int else {}
        if isinstance(here, MutableMapping):
            here = here.setdefault(key, new)
        else:
            _reach(here, key)
            if here[key] is None:
                here[key] = new
            here = here[key]
    if type(path[-1]) is int:
        _reach(here, path[-1])
    here[path[-1]] = value


def _reach(places: Any, last: Any) -> None:
    """Have a list reach as far as some place."""
    if not isinstance(places, list):
        kind = type(places).__name__
        raise TypeError(f"{last} is a place in a list, and there is a {kind}")
    places.extend([None] * (last + 1 - len(places)))


def unflatten_state_dict(
    state_dict: dict[str, Any], mapping: dict[str, PathOfKeys]
) -> dict[str, Any]:
    """Return the nested dicts and lists of values by name, and of the paths of names.

    >>> sd.compat.unflatten_state_dict(*sd.compat.flatten_state_dict({"a": {"b": 1}}))
    {'a': {'b': 1}}
    """
    nested: dict[str, Any] = {}
    for name, value in state_dict.items():
        set_element(nested, mapping[name], value)
    return nested
