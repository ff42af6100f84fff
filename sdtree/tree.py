"""A state dict is a tree: one walk takes it apart into leaves and a ``TreeSpec``."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, final

from sdtree.container import ABSENT, LEAF_TYPES, Absent, alike, container_of
from sdtree.errors import NameCollision, SpecMismatch, UnknownContainer, UnknownLeaf
from sdtree.path import name_of, reject_collisions, where
from sdtree.typing import Aux, Key, Leaf, Path, Tree


@final
class LeafMark:
    """The type of ``LEAF``, which stands in a spec where the tree has a leaf."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "*"


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


def node_of(cls: type, keys: Sequence[Key], children: Sequence[Shape], aux: Aux) -> Node:
    """Return the node of these parts, in the one form that equals itself."""
    only_leaves = all(child is LEAF for child in children)
    return Node(cls, keys, None if only_leaves else tuple(children), aux)


# -- the walks ---------------------------------------------------------------------


def take(tree: Tree) -> tuple[list[Leaf], TreeSpec]:
    """Return the leaves of a tree in path order, and its spec."""
    leaves: list[Leaf] = []
    try:
        shape = _take(tree, leaves, {})
    except (RecursionError, UnknownLeaf, UnknownContainer):
        _explain_failure(tree)
        raise
    return leaves, TreeSpec(shape, len(leaves))


def _take(x: Tree, leaves: list[Leaf], seen: dict[Sequence[Key], Node]) -> Shape:
    """Append the leaves of ``x`` and return its shape. Dicts of equal keys share one."""
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
        return dict(zip(keys, leaves))  # noqa: B905: the keys end it
    if children is not None:
        values: Iterable[Tree] = [_make(child, leaves) for child in children]
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
        for key, child in zip(shape.keys, shape.children, strict=True):
            head = f"{prefix}{key}{sep}"
            if isinstance(child, Node) and child.children is None:
                for inner in child.keys:
                    found.append(f"{head}{inner}")
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
        """Return the path of every leaf, in order."""
        if self._paths is None:
            self._paths = []
            _add_paths(self.shape, (), self._paths)
        return self._paths

    def names(self, sep: str = ".") -> list[str]:
        """Return the name of every leaf, in order; unlike ``sd.names``, unchecked."""
        if sep != ".":
            return self._find_names(sep)
        if self._names is None:
            self._names = self._find_names(sep)
        return self._names

    def _find_names(self, sep: str) -> list[str]:
        found: list[str] = []
        _add_names(self.shape, "", sep, found)
        return found

    def unique_names(self, sep: str = ".") -> list[str]:
        """Return the name of every leaf; raise ``NameCollision`` if two are alike."""
        found = self.names(sep)
        if len(set(found)) < len(found):
            reject_collisions(found, self.paths())
        return found

    def make(self, leaves: Iterable[Leaf]) -> Tree:
        """Return the tree of this structure with these leaves, given in order."""
        return _make(self.shape, iter(leaves))

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
        """Return the spec that ``to_json`` wrote; nothing is imported or run."""
        from sdtree.portable import load_spec

        return load_spec(text)

    def __len__(self) -> int:
        """Return the number of leaves."""
        if self._count is None:
            self._count = len(self.paths())
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeSpec) and self.shape == other.shape

    def __hash__(self) -> int:
        keys = tuple(self.shape.keys) if isinstance(self.shape, Node) else ()
        return hash((len(self), keys))

    def __repr__(self) -> str:
        return f"TreeSpec({_draw(self.shape)})"


def _draw(shape: Shape) -> str:
    if not isinstance(shape, Node):
        return repr(shape)
    if shape.cls is list or shape.cls is tuple:
        inner = ", ".join(_draw(child) for _, child in shape.parts())
        comma = "," if shape.cls is tuple and len(shape.keys) == 1 else ""
        return f"[{inner}]" if shape.cls is list else f"({inner}{comma})"
    inner = ", ".join(f"{key!r}: {_draw(child)}" for key, child in shape.parts())
    return f"{{{inner}}}" if shape.cls is dict else f"{shape.cls.__name__}({inner})"


# -- the public functions ----------------------------------------------------------


def structure(tree: Tree, /) -> TreeSpec:
    """Return the structure of a tree.

    Law: ``unflatten(flatten(tree), spec=structure(tree))`` is ``tree``.

    >>> sd.structure({"model": {"w": 1.0}, "step": 3})
    TreeSpec({'model': {'w': *}, 'step': *})
    """
    return take(tree)[1]


def leaves(tree: Tree, /) -> list[Leaf]:
    """Return the leaves of a tree in path order. ``None`` is a leaf.

    >>> sd.leaves({"a": 1, "b": [2, None]})
    [1, 2, None]
    """
    return take(tree)[0]


def paths(tree: Tree, /) -> list[Path]:
    """Return the path of every leaf: a tuple of dict keys, indices and field names.

    Law: paths are unique.

    >>> sd.paths({"state": {0: {"step": 1}}, "lrs": [0.1]})
    [('state', 0, 'step'), ('lrs', 0)]
    """
    return take(tree)[1].paths()


def names(tree: Tree, /, *, sep: str = ".") -> list[str]:
    """Return the name of every leaf; raise ``NameCollision`` if two share one.

    >>> sd.names({"state": {0: {"step": 1}}, "lrs": [0.1]})
    ['state.0.step', 'lrs.0']
    """
    return take(tree)[1].unique_names(sep)


def items(tree: Tree, /) -> list[tuple[Path, Leaf]]:
    """Return every leaf with its path, in path order.

    >>> sd.items({"a": 1, "b": [2]})
    [(('a',), 1), (('b', 0), 2)]
    """
    found, spec = take(tree)
    return list(zip(spec.paths(), found, strict=True))


def flatten(tree: Tree, /, sep: str = ".") -> dict[str, Leaf]:
    """Return one level of dotted names.

    Inverse: ``unflatten(flat, spec=structure(tree))``. Two leaves of one name raise
    ``NameCollision``.

    >>> sd.flatten({"a": {"b": 1}, "c": [2, 3]})
    {'a.b': 1, 'c.0': 2, 'c.1': 3}
    """
    found, spec = take(tree)
    flat = dict(zip(spec.names(sep), found, strict=True))
    if len(flat) < len(found):
        spec.unique_names(sep)
    return flat


def unflatten(
    flat: Mapping[str, Leaf], /, *, spec: TreeSpec | None = None, sep: str = "."
) -> Tree:
    """Return the tree whose flat form is given.

    With ``spec`` it is the very tree that ``flatten`` was given; names that are missing
    or unexpected raise ``SpecMismatch``. Without, names are split at ``sep`` into
    nested dicts with str keys.

    >>> sd.unflatten({"a.b": 1, "c": 2})
    {'a': {'b': 1}, 'c': 2}
    >>> sd.unflatten({"a.0": 1}, spec=sd.structure({"a": [0]}))
    {'a': [1]}
    """
    if not isinstance(flat, Mapping):
        raise TypeError(
            f"unflatten takes a mapping from names to leaves, not a "
            f"{type(flat).__name__}; flatten(tree) returns one"
        )
    if spec is None:
        return _nest(flat, sep)
    if list(flat) == spec.names(sep):
        return spec.make(flat.values())
    wanted = spec.unique_names(sep)
    if len(flat) != len(wanted) or not all(map(flat.__contains__, wanted)):
        raise SpecMismatch(difference(flat, wanted, "the flat dict", "the spec"))
    return spec.make([flat[name] for name in wanted])


def _nest(flat: Mapping[str, Leaf], sep: str) -> dict[str, Tree]:
    tree: dict[str, Tree] = {}
    branches = {id(tree)}
    for name, leaf in flat.items():
        *above, last = name.split(sep)
        here = tree
        for key in above:
            if key not in here:
                here[key] = {}
                branches.add(id(here[key]))
            here = here[key]
            if id(here) not in branches:
                raise _blocked(name)
        if last in here:
            raise _blocked(name)
        here[last] = leaf
    return tree


def _blocked(name: str) -> NameCollision:
    return NameCollision(
        f"{name!r}: a leaf and a branch would stand in one place; rename one of them, "
        "or give spec="
    )


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


# -- shapes as they change ---------------------------------------------------------


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
