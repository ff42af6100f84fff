"""How large a tree is that shares its parts, told without walking them twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple, TypeAlias

from sdtree.errors import FileError, UnknownContainer, UnknownLeaf
from sdtree.io.pickles.machine import FEW, Unfinished
from sdtree.tree.containers import ABSENT, LEAF_TYPES, container_of
from sdtree.tree.shape import MOST_DEEP
from sdtree.typing import Key, Tree

LETTERS: Final = 1000
"""How many letters of names there may be for each part that there may be."""


Parts: TypeAlias = tuple[Collection[Key], Collection[Tree]]


class Extent(NamedTuple):
    """How many parts there are, and how many letters their names have together."""

    parts: int = 1
    letters: int = 0


LEAF: Final = Extent()


def check_extent(tree: Tree, worth: int) -> None:
    """Raise ``FileError`` if a tree has more parts than a file of that size is worth.

    A file says a list once that is shared; a walk meets it as often as it is shared.
    """
    most = max(worth, FEW)
    found = _extent(tree, most)
    if found.parts > most:
        raise FileError(f"what is shared in it unfolds to more than {most:,} parts")
    if found.letters > most * LETTERS:
        raise FileError("what is shared in it unfolds to names that are too long")


def _extent(tree: Tree, most: int) -> Extent:
    """Return the extent of a tree, each of its containers looked at once.

    It is counted as far as ``most``. Those that are opened and have none yet are in one
    another.
    """
    opened: dict[int, Parts] = {}
    extents: dict[int, Extent] = {}
    stack = [tree]
    while stack:
        x = stack[-1]
        if id(x) in opened:
            stack.pop()
            if id(x) not in extents:
                extents[id(x)] = _sum(*opened[id(x)], extents, most)
            continue
        _, children = opened[id(x)] = _parts(x)
        if len(opened) - len(extents) > MOST_DEEP:
            raise FileError(f"more than {MOST_DEEP} containers are in one another")
        for child in children:
            if not _is_leaf(child) and id(child) not in extents:
                if id(child) in opened:
                    raise FileError("it has a container that holds itself")
                stack.append(child)
    return extents[id(tree)]


def _is_leaf(x: Tree) -> bool:
    if type(x) in LEAF_TYPES or x is ABSENT:
        return True
    if isinstance(x, Unfinished):
        raise FileError("it has a value of numpy without its state")
    try:
        return container_of(type(x)) is None
    except (UnknownLeaf, UnknownContainer):  # which whoever walks the tree is told
        return True


def _parts(x: Tree) -> Parts:
    """Return the keys and children of a container; a leaf has none."""
    container = None if _is_leaf(x) else container_of(type(x))
    if container is None:
        return (), ()
    try:
        keys, children, _ = container.apart(x)
        return keys, [*children]
    except UnknownContainer:  # of a class that the user allows, and that is no tree
        raise
    except Exception as error:  # of a class that was given another state
        raise FileError(f"a damaged {type(x).__name__}: {error!r:.80}") from error


def _sum(
    keys: Collection[Key],
    children: Collection[Tree],
    extents: Mapping[int, Extent],
    most: int,
) -> Extent:
    """Return the extent of a container, of its keys and the extents of its children."""
    parts, letters = 1, 0
    for key, child in zip(keys, children, strict=True):
        inner = extents.get(id(child), LEAF)
        parts += inner.parts
        size = len(key) if isinstance(key, (str, bytes, tuple)) else 8
        letters += inner.letters + inner.parts * (size + 1)
    return Extent(min(parts, most + 1), min(letters, most * LETTERS + 1))
