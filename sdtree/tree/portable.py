"""Shapes as JSON, and back without importing or running what a text names.

The text may come from anyone: whatever is wrong with it is one ``ValueError`` that
tells where, and no more is done for it than its length allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, Final, cast

from sdtree.path import exact, same_key, where
from sdtree.tree.attributes import takes_attribute
from sdtree.tree.builtin import BUILTIN
from sdtree.tree.containers import (
    ABSENT,
    State,
    container_of,
    is_mapping,
    is_portable,
    type_name,
    type_named,
)
from sdtree.tree.plain_json import Json as Json
from sdtree.tree.plain_json import dump as dump
from sdtree.tree.plain_json import expect, shortly
from sdtree.tree.plain_json import load as load
from sdtree.tree.shape import (
    LEAF,
    MOST_DEEP,
    Node,
    Shape,
    from_rows,
    node_of,
)
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Key, Path

FACTORIES: dict[str, Any] = {
    cls.__name__: cls for cls in (list, dict, int, float, str, bytes, bool, set, tuple)
}
MOST: Final = 2**31
"""How many elements a sequence has at most."""

TRIED: Final = 1000
"""With how many elements a sequence is tried; its text is as long for any number."""


def dump_shape(shape: Shape, path: Path = ()) -> list[Json]:
    """Return a shape as JSON data; raise ``TypeError`` naming what JSON lacks.

    That is a row for each part, a container before what it holds, unless that is leaves
    alone: text would be nested as deep as the tree, and readers go less deep.
    """
    rows: list[Json] = []
    left = [(path, shape)]
    while left:
        place, here = left.pop()
        if not isinstance(here, Node):
            rows.append("leaf" if here is LEAF else "absent")
            continue
        rows.append(_dump_node(here, place))
        if here.children is not None:
            rows[-1]["children"] = len(here.children)
            parts = zip(here.paths_below(place), here.children, strict=True)
            left.extend(reversed([*parts]))
    return rows


def _dump_node(node: Node, path: Path) -> dict[str, Json]:
    if not is_portable(node.cls):
        name = node.cls.__qualname__
        raise TypeError(
            f"{where(path)}: the container {name} can be read back only by a process "
            f"that registered it; call sd.register_container({name})"
        )
    for name in (node.aux or {}).get("attributes", ()):
        if not _takes(node.cls, name):
            raise TypeError(
                f"{where(path)}: JSON cannot say the attribute {name} of this "
                f"{node.cls.__qualname__}, which stands in for what its class does; "
                "delete it, or give it another name"
            )
    data: dict[str, Json] = {"type": type_name(node.cls)}
    if isinstance(node.keys, range):
        data["size"] = len(node.keys)
    else:
        data["keys"] = [_dump_key(key, path) for key in node.keys]
    if node.aux:
        data["state"] = {
            name: _dump_state(name, value, path) for name, value in node.aux.items()
        }
    return data


def load_shape(data: Json, path: Path = ()) -> Shape:
    """Return the shape that ``dump_shape`` wrote; its rows may be nested, too.

    Raise ``ValueError`` that tells at which path the data is none, ``UnknownContainer``
    where it names a class that was not registered.
    """
    rows: list[Shape] = []
    levels = [Level((None,))]
    for row in _in_rows(data):
        if not _to_next(levels):
            raise ValueError(f"{where(path)}: more stands there than one tree has")
        try:
            here = _load_row(row)
            if isinstance(here, Node) and len(levels) > MOST_DEEP:
                raise ValueError(f"it is nested deeper than {MOST_DEEP} containers")
        except ValueError as error:
            raise ValueError(f"{_place(path, levels)}: {error}") from error
        rows.append(here)
        if isinstance(here, Node) and here.children is not None:
            levels.append(Level(here.keys))
    if _to_next(levels):
        raise ValueError(f"{_place(path, levels)}: nothing stands there")
    return from_rows(rows)


@dataclass(slots=True)
class Level:
    """The keys of a container for which rows are to come, and how many have."""

    keys: Sequence[Any]
    count: int = 0


def _to_next(levels: list[Level]) -> bool:
    """Go on to the next key for which a row is to come; return whether there is one."""
    while levels and levels[-1].count == len(levels[-1].keys):
        levels.pop()
    if levels:
        levels[-1].count += 1
    return bool(levels)


def _place(path: Path, levels: Sequence[Level]) -> str:
    """Return where the row stands that has come last."""
    return where((*path, *(level.keys[level.count - 1] for level in levels[1:])))


def _in_rows(data: Json) -> Iterator[Json]:
    """Yield the rows of a shape, also where containers stand nested in each other."""
    left: list[Json] = [data] if not isinstance(data, list) else data[::-1]
    while left:
        row = left.pop()
        children = row.get("children") if isinstance(row, dict) else None
        if isinstance(children, list):
            left.extend(reversed(children))
            row = {**row, "children": len(children)}
        yield row


def _load_row(row: Json) -> Shape:
    """Return the shape of a row; its children are () if rows follow for them."""
    if row in ("leaf", "absent"):
        return LEAF if row == "leaf" else ABSENT
    rest = dict(expect(row, dict))
    if not isinstance(rest.get("type"), str) or ("keys" in rest) == ("size" in rest):
        raise ValueError(f"neither a leaf nor a container: {shortly(row)}")
    cls = type_named(rest.pop("type"))
    keys = _load_keys(cls, rest)
    aux = _load_state(cls, rest.pop("state", {}))
    count = expect(rest.pop("children"), int) if "children" in rest else None
    if rest:
        raise ValueError(f"a container has no {shortly(next(iter(rest)))}")
    if count is not None and count != len(keys):
        raise ValueError(f"{len(keys)} keys and {count} children")
    children = None if count is None else ()
    return node_of(cls, _tried(cls, keys, aux), (), aux)._replace(children=children)


def _load_keys(cls: type, data: dict[str, Json]) -> Sequence[Any]:
    """Return the keys of a container: those that stand there, or its indices."""
    if "keys" in data:
        return tuple(map(_load_key, expect(data.pop("keys"), list)))
    size = expect(data.pop("size"), int)
    if is_mapping(cls) or not 0 <= size < MOST:
        raise ValueError(f"a {cls.__name__} of size {shortly(size)}")
    return range(size)


def _tried(cls: type, keys: Sequence[Any], aux: State | None) -> Sequence[Any]:
    """Return the keys of a container as it says them itself, once it is made of them.

    Raise ``ValueError`` if none can be made, or if it has other parts.
    """
    container = container_of(cls)
    some = keys[:TRIED] if isinstance(keys, range) else keys
    given: list[list[None]] = [[] for _ in some]
    try:
        assert container is not None
        made = container.together(some, given, aux)
        own, children, beside = container.apart(made)
        is_kept = exact(own) == exact(some) and len(children) == len(given)
        is_kept &= all(map(is_, children, given))
        is_kept &= isinstance(own, range) or not isinstance(keys, range)
    except Exception as error:  # a class of the user can raise anything
        told = f"no {cls.__name__} can be made of what stands there"
        raise ValueError(f"{told}: {error!r:.200}") from error
    room = aux.get("maxlen") if aux else None
    is_short = isinstance(room, int) and room < len(keys)
    if is_short or type(made) is not cls or not (is_kept and beside == aux):
        raise ValueError(f"a {cls.__name__} has not the parts that stand there")
    return range(len(keys)) if isinstance(own, range) else keys


def _load_key(data: Json) -> Any:
    key = load(data)
    if _is_found_again(key, data):
        return key
    raise ValueError(f"a key that is found by itself alone: {shortly(data)}")


def _is_found_again(key: Any, data: Json) -> bool:
    """Return whether a key is the same as what its data is read as."""
    try:
        return not isinstance(data, dict) or same_key(key, load(data))
    except TypeError:  # it cannot be hashed
        return False


def _dump_key(key: Key, path: Path) -> Json:
    try:
        data = dump(key)
    except TypeError:
        data = None
    if (data is None and key is not None) or not _is_found_again(key, data):
        raise TypeError(
            f"{where((*path, key))}: JSON cannot say the key {key!r} of type "
            f"{type(key).__qualname__}; rename it to a str or an int"
        )
    return data


def _dump_state(name: str, value: object, path: Path) -> Json:
    """Return a part of a container's state: a factory by name, the rest as a tree."""
    if name == "default_factory":
        return _factory_name(value, path)
    if name == "data":
        cls, state = cast("tuple[type, State | None]", value)
        return _dump_node(Node(cls, (), None, state), path)
    found, spec = take(value)
    places = [(*path, f"<{name}>", *inner) for inner in spec.every_path]
    return {
        "spec": dump_shape(spec.shape, path),
        "leaves": [
            dump(leaf, place) for leaf, place in zip(found, places, strict=True)
        ],
    }


def _factory_name(factory: Any, path: Path) -> str | None:
    name = getattr(factory, "__name__", "")
    if factory is None or FACTORIES.get(name) is factory:
        return name or None
    raise TypeError(
        f"{where(path)}: JSON cannot say the default_factory {factory!r}; "
        f"use one of {', '.join(FACTORIES)}"
    )


def _load_state(cls: type, data: Json) -> State | None:
    """Return what a container is beside its children."""
    state = State()
    for name, part in expect(data, dict).items():
        try:
            state[name] = LOADS.get(name, _load_tree)(part)
        except ValueError as error:
            raise ValueError(f"its {shortly(name)}: {error}") from error
    attributes = expect(state.get("attributes", {}), dict)
    for name in attributes:
        if not _takes(cls, name):
            raise ValueError(f"a {cls.__name__} takes no attribute {shortly(name)}")
    return state or None


def _takes(cls: type, name: object) -> bool:
    """Return whether a text may tell an attribute; those of some are their items."""
    is_items = name == "__dict__" and issubclass(cls, dict) and cls not in BUILTIN
    return is_items or takes_attribute(cls, name)


def _load_factory(data: Json) -> Any:
    if data is None:
        return None
    if expect(data, str) not in FACTORIES:
        raise ValueError(f"{shortly(data)} is none of {', '.join(FACTORIES)}")
    return FACTORIES[data]


def _load_inner(data: Json) -> tuple[type, State | None]:
    """Return what is wrapped: its type, and what it is beside its children."""
    node = _load_row(data)
    if not isinstance(node, Node) or len(node.keys):
        raise ValueError(f"no empty container: {shortly(data)}")
    return node.cls, node.aux


def _load_tree(data: Json) -> Any:
    """Return the tree that stands whole in a text, its leaves beside its spec."""
    if expect(data, dict).keys() != {"spec", "leaves"}:
        raise ValueError(f"no tree: {shortly(data)}")
    leaves = [load(leaf) for leaf in expect(data["leaves"], list)]
    spec = TreeSpec(load_shape(data["spec"]))
    if len(spec) != len(leaves):
        raise ValueError(f"{len(spec)} leaves in its spec, and {len(leaves)} came")
    return spec.make(leaves)


LOADS: Final[dict[str, Callable[[Json], Any]]] = {
    "default_factory": _load_factory,
    "data": _load_inner,
}
