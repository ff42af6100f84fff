"""How the shape of a tree changes when leaves go, and how two shapes differ."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from sdtree.container import ABSENT, container_of
from sdtree.errors import SpecMismatch
from sdtree.path import where
from sdtree.treespec import LEAF, Node, Shape, TreeSpec, node_of
from sdtree.typing import Path
from sdtree.unpacking import alike


def difference(
    got: Iterable[str], wanted: Iterable[str], holder: str, other: str
) -> str:
    """Return the message that lists what two sets of names do not share."""
    here, there = dict.fromkeys(got), dict.fromkeys(wanted)
    parts = [
        f"{len(found)} {word}: {_listing(found)}"
        for word, found in (
            ("missing", [name for name in there if name not in here]),
            ("unexpected", [name for name in here if name not in there]),
        )
        if found
    ]
    return f"{holder} does not fit {other}; " + "; ".join(parts)


def _listing(found: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, found[:most]))
    return shown if len(found) <= most else f"{shown} and {len(found) - most} more"


Atom = tuple[Path, Shape]
"""A path, and what stands there and holds nothing further."""


def atoms(spec: TreeSpec) -> list[Atom]:
    """Return each leaf, each ``ABSENT`` and each empty container, with its path."""
    found: list[Atom] = []
    _add_atoms(spec.shape, (), found)
    return found


def _add_atoms(shape: Shape, prefix: Path, found: list[Atom]) -> None:
    if not isinstance(shape, Node) or not shape.keys:
        found.append((prefix, shape))
    elif shape.children is None:
        found.extend([((*prefix, key), LEAF) for key in shape.keys])
    else:
        for key, child in zip(shape.keys, shape.children, strict=True):
            _add_atoms(child, (*prefix, key), found)


def prune(spec: TreeSpec, keep: Iterable[bool]) -> TreeSpec:
    """Return the spec of what is kept, told for each of its atoms in order.

    A dropped key leaves its mapping, a dropped element leaves ``ABSENT``; a container
    below the root that loses all it held is dropped with it.
    """
    shape = spec.shape
    pruned = _prune(shape, iter(keep))
    if pruned is None and isinstance(shape, Node):
        holes = () if is_mapping(shape.cls) else (ABSENT,) * len(shape.keys)
        pruned = node_of(shape.cls, shape.keys if holes else (), holes, shape.aux)
    return TreeSpec(ABSENT if pruned is None else pruned)


def _prune(shape: Shape, keep: Iterator[bool]) -> Shape | None:
    """Return what is left of a shape, None if nothing is."""
    if not isinstance(shape, Node) or not shape.keys:
        return shape if next(keep) else None
    left = [(key, _prune(child, keep)) for key, child in shape.parts()]
    if all(child is None for _, child in left):
        return None
    if is_mapping(shape.cls):
        left = [(key, child) for key, child in left if child is not None]
    keys = tuple(key for key, _ in left) if is_mapping(shape.cls) else shape.keys
    children = [ABSENT if child is None else child for _, child in left]
    return node_of(shape.cls, keys, children, shape.aux)


def is_mapping(cls: type) -> bool:
    """Return whether a dropped child of such a container takes its key along."""
    container = container_of(cls)
    return container is not None and container.is_mapping


def pair(spec: TreeSpec, other: TreeSpec, holder: str) -> Sequence[int]:
    """Return, for each leaf of ``spec``, its position in ``other``, paired by path.

    The order of keys in mappings is free; anything else that differs raises
    ``SpecMismatch``, which names ``holder``, the tree that ``other`` is the spec of.
    """
    if spec == other:
        return range(len(spec))
    found = mismatch(spec, other)
    if found:
        raise SpecMismatch(f"{holder} does not fit the tree; {found}")
    position = {path: i for i, path in enumerate(other.paths())}
    return [position[path] for path in spec.paths()]


def mismatch(spec: TreeSpec, other: TreeSpec) -> str:
    """Return what keeps two specs from being paired by path, empty if nothing."""
    here, there = set(spec.paths()), set(other.paths())
    if here != there:
        missing = [where(path) for path in spec.paths() if path not in there]
        unexpected = [where(path) for path in other.paths() if path not in here]
        text = difference(unexpected, missing, "", "")
        return text.partition("; ")[2]
    for path, expected, got in differing_containers(spec.shape, other.shape):
        return f"{where(path)}: expected {expected}, got {got}"
    return ""


def differing_containers(
    a: Shape | None, b: Shape | None, path: Path = ()
) -> Iterator[tuple[Path, str, str]]:
    """Yield where two shapes differ in what is no leaf, and what each has there.

    The order of keys is free, and a container that only one has counts if it is empty:
    else its leaves tell.
    """
    if isinstance(a, Node) and isinstance(b, Node):
        if a.cls is not b.cls or not alike(a.aux, b.aux, in_order=False):
            yield path, _describe(a), _describe(b)
        others = dict(b.parts())
        for key, child in a.parts():
            yield from differing_containers(child, others.pop(key, None), (*path, key))
        for key, child in others.items():
            yield from differing_containers(None, child, (*path, key))
    elif a is not b and not any(_has_leaf(side) for side in (a, b)):
        yield path, _describe(a), _describe(b)


def _has_leaf(shape: Shape | None) -> bool:
    if not isinstance(shape, Node):
        return shape is LEAF
    return any(_has_leaf(child) for _, child in shape.parts())


def _describe(shape: Shape | None) -> str:
    if shape is None:
        return "nothing"
    if not isinstance(shape, Node):
        return "a leaf" if shape is LEAF else "ABSENT"
    beside = f" with {reprlib.repr(dict(shape.aux))}" if shape.aux else ""
    return f"{shape.cls.__name__}{beside}"


Move = Callable[[TreeSpec], tuple[TreeSpec, Sequence[int]]]
"""A rearrangement: the new spec, and for each of its leaves the old position."""
