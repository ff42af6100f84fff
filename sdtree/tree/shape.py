"""Shapes: what a tree is without its leaves, and how it comes apart and together.

None of the functions here calls itself, so a shape may be as deep as a tree may.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice, repeat
from operator import is_
from typing import Final, NamedTuple, final

from sdtree.errors import UnknownContainer, UnknownLeaf
from sdtree.path import PLAIN_KEYS, Keys, exact, name_of, where
from sdtree.tree.containers import ABSENT, LEAF_TYPES, Absent, container_of
from sdtree.typing import Aux, Key, Leaf, Path, Tree

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


def paths_of(shape: Shape) -> list[Path]:
    """Return the path of every leaf, in order."""
    found: list[Path] = []
    append = found.append
    opened: list[Iterator[tuple[Path, Shape]]] = [iter([((), shape)])]
    while opened:
        for path, here in opened[-1]:
            if type(here) is not Node:
                if here is LEAF:
                    append(path)
            elif here.children is not None:
                opened.append(zip(here.paths_below(path), here.children, strict=True))
                break
            elif type(here.keys) is Keys or type(path) is Keys:
                found += here.paths_below(path)
            else:
                for key in here.keys:
                    append((*path, key))
        else:
            opened.pop()
    return found


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
                heads = [f"{above}{key}{sep}" for key in here.keys]
                opened.append(zip(heads, here.children, strict=True))
                break
            else:
                for key in here.keys:
                    append(f"{above}{key}")
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


# -- a tree comes apart ------------------------------------------------------------

are_leaves: Final = LEAF_TYPES.issuperset
are_plain: Final = PLAIN_KEYS.issuperset
are_dicts: Final = frozenset({dict}).issuperset

Opened = tuple[type, Sequence[Key], Aux, Iterator[Tree], list[Shape]]
"""A container on the way: what it is, its children to come, shapes of those before."""

Making = tuple[Node | None, Iterator[Shape], list[Tree]]
"""A node on the way: its children to come, and the trees made of those before."""


def take_apart(tree: Tree) -> tuple[list[Leaf], Shape]:
    """Return the leaves of a tree in path order, and its shape."""
    leaves: list[Leaf] = []
    try:
        shape = _take(tree, leaves)
    except Exception:
        _explain_failure(tree)
        raise
    return leaves, shape


def _take(tree: Tree, leaves: list[Leaf]) -> Shape:
    """Append the leaves of a tree, return its shape; dicts of the same keys share one.

    ``opened`` are the containers that hold others, from the root down: what they are,
    the children to come, and the shapes of those before.
    """
    seen: dict[Sequence[Key], Node] = {}
    opened: list[Opened] = [(list, (), None, iter((tree,)), [])]
    while True:
        cls, keys, aux, children, shapes = opened[-1]
        for x in children:
            kind = type(x)
            if kind is dict:
                inner, values, state = tuple(x), x.values(), None
            elif x is ABSENT:
                shapes.append(ABSENT)
                continue
            elif (container := container_of(kind)) is not None:
                inner, values, state = container.apart(x)
            else:
                leaves.append(x)
                shapes.append(LEAF)
                continue
            if type(inner) is not range and not are_plain(map(type, inner)):
                inner = Keys(inner)
            if len(opened) > MOST_DEEP:
                raise RecursionError
            if are_leaves(map(type, values)):
                leaves += values
                shapes.append(Node(kind, inner, None, state))
                continue
            has_room = len(opened) < MOST_DEEP
            if has_room and are_dicts(map(type, values)):
                dicts = _take_dicts(values, leaves, seen)
                if dicts is not None:
                    shapes.append(Node(kind, inner, tuple(dicts), state))
                    continue
            opened.append((kind, inner, state, iter(values), []))
            break
        else:
            opened.pop()
            if not opened:
                return shapes[0]
            only_leaves = all(map(is_, shapes, repeat(LEAF)))
            node = Node(cls, keys, None if only_leaves else tuple(shapes), aux)
            opened[-1][-1].append(node)


def _take_dicts(
    dicts: Collection[Tree], leaves: list[Leaf], seen: dict[Sequence[Key], Node]
) -> list[Shape] | None:
    """Append the leaves of dicts of leaves and return their shapes; None of others.

    Most containers are such dicts, and stand side by side: they are taken at once.
    """
    found = list(chain.from_iterable(map(dict.values, dicts)))
    if not are_leaves(map(type, found)):
        return None
    if not are_plain(map(type, chain.from_iterable(dicts))):
        return None
    leaves += found
    shapes: list[Shape] = []
    for keys in map(tuple, dicts):
        node = seen.get(keys)
        if node is None:
            node = seen[keys] = Node(dict, keys, None, None)
        shapes.append(node)
    return shapes


def _explain_failure(tree: Tree) -> None:
    """Raise what stopped a walk again, with the path at which it happened."""
    above: list[int] = []
    stack: list[tuple[Path, Tree] | None] = [((), tree)]
    while stack:
        here = stack.pop()
        if here is None:
            above.pop()
            continue
        path, x = here
        try:
            container = None if x is ABSENT else container_of(type(x))
            keys, children, _ = container.apart(x) if container else ((), (), None)
        except (UnknownLeaf, UnknownContainer) as error:
            raise type(error)(f"{where(path)}: {error}") from None
        except Exception as error:
            error.add_note(f"at {where(path)}, where a {type(x).__name__} comes apart")
            raise
        if container is None:
            continue
        if id(x) in above:
            start = where(path[: above.index(id(x))])
            raise ValueError(
                f"{_shorten(path)}: the container holds itself, it is the one at "
                f"{start}; a tree has no cycles, cut it there"
            )
        if len(path) >= MOST_DEEP:
            raise ValueError(
                f"{_shorten(path)}: more than {MOST_DEEP} containers are nested in one "
                "another here; keep what is chained so in a list"
            )
        above.append(id(x))
        stack.append(None)
        pairs = list(zip(keys, children, strict=True))
        stack.extend(((*path, key), child) for key, child in reversed(pairs))


def _shorten(path: Path) -> str:
    return where(path) if len(path) <= 12 else f"{name_of(path[:12])}..."


# -- and together ------------------------------------------------------------------


def make_of(shape: Shape, leaves: Iterator[Leaf]) -> Tree:
    """Return the tree of a shape, with these leaves, of which there are enough.

    ``opened`` are nodes that hold others, as above.
    """
    opened: list[Making] = [(None, iter((shape,)), [])]
    while True:
        node, children, values = opened[-1]
        append = values.append
        for child in children:
            if type(child) is not Node:
                append(next(leaves) if child is LEAF else ABSENT)
                continue
            cls, keys, inner, _ = child
            if inner is not None:
                opened.append((child, iter(inner), []))
                break
            if cls is dict:
                append(dict(zip(keys, leaves)))  # noqa: B905, the keys end it
            else:
                append(_together(child, list(islice(leaves, len(keys)))))
        else:
            opened.pop()
            if node is None:
                return values[0]
            opened[-1][-1].append(_together(node, values))


def _together(node: Node, values: Sequence[Tree]) -> Tree:
    cls, keys, _, aux = node
    if cls is dict:
        return dict(zip(keys, values, strict=True))
    container = container_of(cls)
    assert container is not None
    return container.together(keys, values, aux)
