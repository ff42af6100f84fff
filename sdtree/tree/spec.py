"""A ``TreeSpec`` is what is left of a tree without its leaves; how both come apart.

None of the functions here calls itself, so a tree may be as deep as ``MOST_DEEP``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from importlib import import_module
from itertools import chain, islice, repeat
from operator import is_
from typing import Any, Final, final

from sdtree.errors import UnknownContainer, UnknownLeaf
from sdtree.path import PLAIN_KEYS, Keys, check_sep, name_of, reject_collisions, where
from sdtree.text.showing import html_of, text_of
from sdtree.tree.beside import State, with_own_metadata
from sdtree.tree.containers import ABSENT, LEAF_TYPES, container_of
from sdtree.tree.plain_json import parse
from sdtree.tree.shape import LEAF as LEAF
from sdtree.tree.shape import (
    MOST_DEEP,
    count_of,
    from_rows,
    names_of,
    rows_of,
    same_shape,
)
from sdtree.tree.shape import Node as Node
from sdtree.tree.shape import Shape as Shape
from sdtree.tree.shape import node_of as node_of
from sdtree.typing import Aux, Key, Leaf, Path, Tree

SAID_IN: Final = "sdtree.tree.portable"
"""The module that says a shape as JSON, which stands above."""


def take(tree: Tree) -> tuple[list[Leaf], TreeSpec]:
    """Return the leaves of a tree in path order, and its spec."""
    leaves: list[Leaf] = []
    try:
        shape = _shape_of(tree, leaves)
    except Exception:
        _explain_failure(tree)
        raise
    return leaves, TreeSpec(shape, len(leaves))


@final
class TreeSpec:
    """The structure of a tree without its leaves: containers, keys, order, holes.

    Two specs are equal if types, keys, key order and what containers are beside their
    children (attributes, ``default_factory``, ``maxlen``) are.

    >>> sd.structure({"a": 1, "b": [2, 3]})
    TreeSpec({'a': *, 'b': [*, *]})
    """

    __slots__ = ("_count", "_names", "_paths", "shape")

    def __init__(self, shape: Shape, count: int | None = None) -> None:
        self.shape: Final = shape
        self._count = count
        self._paths: tuple[Path, ...] | None = None
        self._names: tuple[str, ...] | None = None

    @property
    def every_path(self) -> tuple[Path, ...]:
        """Return the path of every leaf, in order; found once, and kept.

        >>> sd.structure({"a": 1, "b": [2]}).every_path
        (('a',), ('b', 0))
        """
        if self._paths is None:
            self._paths = tuple(_paths_of(self.shape))
        return self._paths

    def paths(self) -> list[Path]:
        """Return the path of every leaf, in order.

        >>> sd.structure({"a": 1, "b": [2]}).paths()
        [('a',), ('b', 0)]
        """
        return list(self.every_path)

    def names(self, sep: str = ".") -> list[str]:
        """Return the name of every leaf, in order; unlike ``sd.names``, unchecked.

        >>> sd.structure({0: 1, "0": 2}).names()
        ['0', '0']
        """
        if sep != ".":
            check_sep(sep)
            return names_of(self.shape, sep)
        if self._names is None:
            self._names = tuple(names_of(self.shape, sep))
        return list(self._names)

    def unique_names(self, sep: str = ".") -> list[str]:
        """Return the name of every leaf; raise ``NameCollision`` if two are alike.

        >>> sd.structure({"a": 1, "b": [2]}).unique_names()
        ['a', 'b.0']
        """
        found = self.names(sep)
        if len(set(found)) < len(found):
            reject_collisions(found, self.paths())
        return found

    def make(self, leaves: Iterable[Leaf]) -> Tree:
        """Return the tree of this structure with these leaves, given in order.

        >>> sd.structure({"a": 1, "b": [2]}).make([3, 4])
        {'a': 3, 'b': [4]}
        """
        given = leaves if isinstance(leaves, Sized) else list(leaves)
        if len(given) != len(self):
            raise ValueError(f"the spec has {len(self)} leaves, and {len(given)} came")
        return _make_of(self.shape, iter(given))

    def beside(self, count: int) -> TreeSpec:
        """Return the spec of a tuple of a tree of this structure and as many leaves.

        >>> sd.structure({"a": 1}).beside(1).make([2, 3])
        ({'a': 2}, 3)
        """
        children = self.shape, *[LEAF] * count
        return TreeSpec(node_of(tuple, range(len(children)), children, None))

    def to_json(self) -> str:
        """Return the spec as JSON text, which ``TreeSpec.from_json`` reads.

        Keys and attributes that JSON cannot say, and classes that were not given to
        ``register_container``, are refused by name.

        >>> sd.TreeSpec.from_json(sd.structure({0: [1]}).to_json())
        TreeSpec({0: [*]})
        """
        return json.dumps(_portable().dump_shape(self.shape))

    @staticmethod
    def from_json(text: str) -> TreeSpec:
        """Return the spec that ``to_json`` wrote; nothing is imported or run.

        >>> spec = sd.structure({"betas": (0.9, 0.999)})
        >>> sd.TreeSpec.from_json(spec.to_json()) == spec
        True
        """
        try:
            return TreeSpec(_portable().load_shape(parse(text)))
        except ValueError as error:
            raise ValueError(f"not the JSON of a TreeSpec: {error}") from error
        except RecursionError:
            raise ValueError("the JSON of a TreeSpec that is nested too deep") from None

    def __len__(self) -> int:
        """Return the number of leaves."""
        if self._count is None:
            self._count = count_of(self.shape)
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeSpec) and same_shape(self.shape, other.shape)

    def __hash__(self) -> int:
        return hash(tuple(x[:2] if isinstance(x, Node) else x for x in self._rows()))

    def __reduce__(self) -> tuple[object, ...]:
        return TreeSpec._of, (self._rows(),)

    def _rows(self) -> list[Shape]:
        return rows_of(self.shape)

    @staticmethod
    def _of(rows: Sequence[Shape]) -> TreeSpec:
        return TreeSpec(from_rows(rows))

    def __repr__(self) -> str:
        return f"TreeSpec({text_of(self)})"

    def _repr_html_(self) -> str:  # pyright: ignore[reportUnusedFunction]
        return html_of(self)


def lasting(spec: TreeSpec) -> TreeSpec:
    """Return the spec as it is now, whatever is written into its tree from now on."""
    rows = rows_of(spec.shape)
    own = [*map(_with_own_metadata, rows)]
    is_same = all(map(is_, own, rows))
    return spec if is_same else TreeSpec(from_rows(own), len(spec))


def _with_own_metadata(shape: Shape) -> Shape:
    if not isinstance(shape, Node) or not isinstance(shape.aux, State):
        return shape
    own = with_own_metadata(shape.aux)
    return shape if own is shape.aux else shape._replace(aux=own)


def _portable() -> Any:
    return import_module(SAID_IN)


def _paths_of(shape: Shape) -> list[Path]:
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


# -- a tree comes apart ------------------------------------------------------------

are_leaves: Final = LEAF_TYPES.issuperset
are_plain: Final = PLAIN_KEYS.issuperset
are_dicts: Final = frozenset({dict}).issuperset

Opened = tuple[type, Sequence[Key], Aux, Iterator[Tree], list[Shape]]
"""A container on the way: what it is, its children to come, shapes of those before."""

Making = tuple[Node | None, Iterator[Shape], list[Tree]]
"""A node on the way: its children to come, and the trees made of those before."""


def _shape_of(tree: Tree, leaves: list[Leaf]) -> Shape:
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
                dicts = _shapes_of_dicts(values, leaves, seen)
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


def _shapes_of_dicts(
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


def _make_of(shape: Shape, leaves: Iterator[Leaf]) -> Tree:
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
