"""One walk takes a tree apart into its leaves and a ``TreeSpec``, the rest of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Final, NamedTuple, final

from sdtree.container import ABSENT, LEAF_TYPES, Absent, container_of
from sdtree.errors import UnknownContainer, UnknownLeaf
from sdtree.path import check_sep, name_of, reject_collisions, where
from sdtree.typing import Aux, Key, Leaf, Path, Tree


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


Shape = Node | LeafMark | Absent


def node_of(
    cls: type, keys: Sequence[Key], children: Sequence[Shape], aux: Aux
) -> Node:
    """Return the node of these parts, in the one form that equals itself."""
    only_leaves = all(child is LEAF for child in children)
    return Node(cls, keys, None if only_leaves else tuple(children), aux)


# -- the walks ---------------------------------------------------------------------


def take(tree: Tree) -> tuple[list[Leaf], TreeSpec]:
    """Return the leaves of a tree in path order, and its spec."""
    leaves: list[Leaf] = []
    try:
        shape = _take(tree, leaves, {})
    except (UnknownLeaf, UnknownContainer):
        _explain_failure(tree)
        raise
    except RecursionError:
        _explain_failure(tree)
        raise ValueError(
            "the tree is nested deeper than Python recurses; flatten it level by "
            "level, or raise sys.setrecursionlimit"
        ) from None
    return leaves, TreeSpec(shape, len(leaves))


def _take(x: Tree, leaves: list[Leaf], seen: dict[Sequence[Key], Node]) -> Shape:
    """Append the leaves of ``x``, return its shape; dicts of equal keys share one."""
    cls = type(x)
    if cls is dict:
        keys, values, aux = tuple(x), x.values(), None
    else:
        container = container_of(cls) if x is not ABSENT else None
        if container is None:
            if x is ABSENT:
                return ABSENT
            leaves.append(x)
            return LEAF
        keys, values, aux = container.apart(x)
    if LEAF_TYPES.issuperset(map(type, values)):
        leaves.extend(values)
        return Node(cls, keys, None, aux)
    children: list[Shape] = []
    for value in values:
        # Most containers are dicts of leaves: they are taken here, without a call.
        if type(value) is dict and LEAF_TYPES.issuperset(map(type, value.values())):
            leaves += value.values()
            inner = tuple(value)
            node = seen.get(inner)
            if node is None:
                node = seen[inner] = Node(dict, inner, None, None)
            children.append(node)
        else:
            children.append(_take(value, leaves, seen))
    return node_of(cls, keys, children, aux)


def _make(shape: Shape, leaves: Iterator[Leaf]) -> Tree:
    if shape is LEAF:
        return next(leaves)
    if not isinstance(shape, Node):
        return ABSENT
    cls, keys, children, aux = shape
    if cls is dict and children is None:
        return dict(zip(keys, leaves))  # noqa: B905, the keys end it
    if children is not None:
        values: list[Tree] = []
        for child in children:
            # Most containers are dicts of leaves: they are made here, without a call.
            if type(child) is Node and child[0] is dict and child[2] is None:
                values.append(dict(zip(child[1], leaves)))  # noqa: B905
            else:
                values.append(_make(child, leaves))
    else:
        values = list(islice(leaves, len(keys)))
    if cls is dict:
        return dict(zip(keys, values, strict=True))
    container = container_of(cls)
    assert container is not None
    return container.together(keys, values, aux)


def _add_paths(shape: Shape, prefix: Path, found: list[Path]) -> None:
    if not isinstance(shape, Node):
        if shape is LEAF:
            found.append(prefix)
    elif shape.children is None:
        found.extend([(*prefix, key) for key in shape.keys])
    else:
        for key, child in zip(shape.keys, shape.children, strict=True):
            _add_paths(child, (*prefix, key), found)


def _add_names(shape: Shape, prefix: str, sep: str, found: list[str]) -> None:
    """Append the names below ``prefix``, which ends in ``sep`` or is empty."""
    if not isinstance(shape, Node):
        if shape is LEAF:
            found.append(prefix[: -len(sep)])
    elif shape.children is None:
        found.extend([f"{prefix}{key}" for key in shape.keys])
    else:
        append = found.append
        for key, child in zip(shape.keys, shape.children, strict=True):
            head = f"{prefix}{key}{sep}"
            # Most containers hold leaves alone: they are named here, without a call.
            if type(child) is Node and child[2] is None:
                for inner in child[1]:
                    append(f"{head}{inner}")
            else:
                _add_names(child, head, sep, found)


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
        except (UnknownLeaf, UnknownContainer) as error:
            raise type(error)(f"{where(path)}: {error}") from None
        if container is None:
            continue
        if id(x) in above:
            start = where(path[: above.index(id(x))])
            raise ValueError(
                f"{_shorten(path)}: the container holds itself, it is the one at "
                f"{start}; a tree has no cycles, cut it there"
            )
        above.append(id(x))
        keys, children, _ = container.apart(x)
        stack.append(None)
        pairs = list(zip(keys, children, strict=True))
        stack.extend(((*path, key), child) for key, child in reversed(pairs))


def _shorten(path: Path) -> str:
    return where(path) if len(path) <= 12 else f"{name_of(path[:12])}..."


def _count(shape: Shape) -> int:
    if not isinstance(shape, Node):
        return int(shape is LEAF)
    if shape.children is None:
        return len(shape.keys)
    return sum(map(_count, shape.children))


# -- the spec ----------------------------------------------------------------------


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
        self._paths: list[Path] | None = None
        self._names: list[str] | None = None

    def paths(self) -> list[Path]:
        """Return the path of every leaf, in order.

        >>> sd.structure({"a": 1, "b": [2]}).paths()
        [('a',), ('b', 0)]
        """
        if self._paths is None:
            self._paths = []
            _add_paths(self.shape, (), self._paths)
        return self._paths

    def names(self, sep: str = ".") -> list[str]:
        """Return the name of every leaf, in order; unlike ``sd.names``, unchecked.

        >>> sd.structure({0: 1, "0": 2}).names()
        ['0', '0']
        """
        if sep != ".":
            return self._find_names(sep)
        if self._names is None:
            self._names = self._find_names(sep)
        return self._names

    def _find_names(self, sep: str) -> list[str]:
        check_sep(sep)
        found: list[str] = []
        _add_names(self.shape, "", sep, found)
        return found

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
        return _make(self.shape, iter(given))

    def to_json(self) -> str:
        """Return the spec as JSON text, which ``TreeSpec.from_json`` reads.

        Keys and attributes that JSON cannot say, and classes that were not given to
        ``register_container``, are refused by name.

        >>> sd.TreeSpec.from_json(sd.structure({0: [1]}).to_json())
        TreeSpec({0: [*]})
        """
        from sdtree.portable import dump_spec

        return dump_spec(self)

    @staticmethod
    def from_json(text: str) -> TreeSpec:
        """Return the spec that ``to_json`` wrote; nothing is imported or run.

        >>> spec = sd.structure({"betas": (0.9, 0.999)})
        >>> sd.TreeSpec.from_json(spec.to_json()) == spec
        True
        """
        from sdtree.portable import load_spec

        return load_spec(text)

    def __len__(self) -> int:
        """Return the number of leaves."""
        if self._count is None:
            self._count = _count(self.shape)
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeSpec) and self.shape == other.shape

    def __hash__(self) -> int:
        keys = tuple(self.shape.keys) if isinstance(self.shape, Node) else ()
        return hash((len(self), keys))

    def __repr__(self) -> str:
        from sdtree.skeleton import spec_text

        return f"TreeSpec({spec_text(self)})"

    def _repr_html_(self) -> str:  # pyright: ignore[reportUnusedFunction]
        from sdtree.skeleton import spec_html

        return spec_html(self)
