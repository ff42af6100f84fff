"""Shapes: what a tree is without its leaves, as plain data.

None of the functions here calls itself, so a shape may be as deep as a tree may.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from operator import is_
from typing import Final, NamedTuple, final

from sdtree.path import Keys, exact
from sdtree.tree.containers import Absent
from sdtree.typing import Aux, Key, Path

MOST_DEEP: Final = 1000
"""How many containers may be nested in one another: paths have as many keys at most."""


@final
class LeafMark:
    """The type of ``LEAF``, which stands in a spec where the tree has a leaf."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "*"

    def __reduce__(self) -> str:
        return "LEAF"


LEAF: Final = LeafMark()


class Node(NamedTuple):
    """One container of a spec. ``children`` is None where all of them are leaves."""

    cls: type
    keys: Sequence[Key]
    children: tuple[Shape, ...] | None
    aux: Aux

    def parts(self) -> Iterator[tuple[Key, Shape]]:
        """Yield each key with what stands there."""
        if self.children is None:
            return ((key, LEAF) for key in self.keys)
        return zip(self.keys, self.children, strict=True)

    def paths_below(self, path: Path) -> list[Path]:
        """Return the paths of what the node holds, if its own is given."""
        found = [(*path, key) for key in self.keys]
        if type(path) is Keys or type(self.keys) is Keys:
            return list(map(Keys, found))
        return found


Shape = Node | LeafMark | Absent


def node_of(
    cls: type, keys: Sequence[Key], children: Sequence[Shape], aux: Aux
) -> Node:
    """Return the node of these parts, in the one form that equals itself."""
    only_leaves = all(map(is_, children, repeat(LEAF)))
    keys = keys if isinstance(keys, range) else exact(keys)
    return Node(cls, keys, None if only_leaves else tuple(children), aux)


def walk(shape: Shape) -> Iterator[tuple[Path, Shape]]:
    """Yield each node, leaf and hole with its path, a node before what it holds.

    >>> [path for path, _ in walk(sd.structure([{"a": 1}]).shape)]
    [(), (0,), (0, 'a')]
    """
    left: list[tuple[Path, Shape]] = [((), shape)]
    while left:
        path, here = left.pop()
        yield path, here
        if isinstance(here, Node):
            children = (child for _, child in here.parts())
            parts = zip(here.paths_below(path), children, strict=True)
            left.extend(reversed([*parts]))


def names_of(shape: Shape, sep: str) -> list[str]:
    """Return the name of every leaf, in order."""
    found: list[str] = []
    append = found.append
    opened: list[Iterator[tuple[str, Shape]]] = [iter([("", shape)])]
    while opened:
        for above, here in opened[-1]:  # with ``sep`` behind it, as far as there is one
            if type(here) is not Node:
                if here is LEAF:
                    append(above[: -len(sep)])
            elif here.children is not None:
                heads = [f"{above}{key!s}{sep}" for key in here.keys]
                opened.append(zip(heads, here.children, strict=True))
                break
            else:
                for key in here.keys:
                    append(f"{above}{key!s}")
        else:
            opened.pop()
    return found


def count_of(shape: Shape) -> int:
    """Return how many leaves there are."""
    total = 0
    left = [shape]
    while left:
        here = left.pop()
        if not isinstance(here, Node):
            total += here is LEAF
        elif here.children is None:
            total += len(here.keys)
        else:
            left += here.children
    return total


# -- in a row ----------------------------------------------------------------------


def rows_of(shape: Shape) -> list[Shape]:
    """Return a shape in a row, each node before its children, which are left out of it.

    A row is as deep as a tree of one container: it goes where recursion is bounded.
    Inverse: ``from_rows``.
    """
    found: list[Shape] = []
    left = [shape]
    while left:
        here = left.pop()
        if isinstance(here, Node) and here.children is not None:
            left.extend(reversed(here.children))
            here = here._replace(children=())
        found.append(here)
    return found


def from_rows(rows: Sequence[Shape]) -> Shape:
    """Return the shape that stands in a row; raise ``ValueError`` if none does.

    >>> shape = sd.structure({"a": [1, {}], "b": 2}).shape
    >>> from_rows(rows_of(shape)) == shape
    True
    """
    made: list[Shape] = []
    for here in reversed(rows):
        if isinstance(here, Node) and here.children is not None:
            missing = len(here.keys) - len(made)
            if missing > 0:
                raise ValueError(f"{missing} of {len(here.keys)} children do not come")
            children = [made.pop() for _ in here.keys]
            here = node_of(here.cls, here.keys, children, here.aux)
        made.append(here)
    if len(made) != 1:
        raise ValueError(f"{len(made)} trees stand in the row of one")
    return made[0]


def same_shape(a: Shape, b: Shape) -> bool:
    """Return whether two shapes are the same: types, keys, order, holes and states."""
    try:
        return a == b
    except RecursionError:  # Python compares what is nested by recursion
        return rows_of(a) == rows_of(b)
