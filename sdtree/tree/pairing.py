"""How the shape of a tree changes when leaves go, and how two shapes differ."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import compress
from typing import Generic, TypeVar

from sdtree.errors import SpecMismatch
from sdtree.kinds.sides import FULL, SHORT, apart, sides
from sdtree.kinds.values import same_value
from sdtree.path import Keys, exact, where
from sdtree.tree.beside import METADATA, State
from sdtree.tree.containers import ABSENT, is_mapping
from sdtree.tree.deep import Deep, run
from sdtree.tree.shape import count_of, walk
from sdtree.tree.spec import LEAF, Node, Shape, TreeSpec, node_of
from sdtree.typing import Aux, Key, Path

T = TypeVar("T")


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
    if has_only_leaves(spec.shape):
        return [(path, LEAF) for path in spec.every_path]
    return [(path, shape) for path, shape in walk(spec.shape) if _is_atom(shape)]


def has_only_leaves(shape: Shape) -> bool:
    """Return whether a shape is one container of leaves, as most state dicts are."""
    return isinstance(shape, Node) and shape.children is None and bool(shape.keys)


def _is_atom(shape: Shape) -> bool:
    return not isinstance(shape, Node) or not shape.keys


def prune(spec: TreeSpec, keep: Iterable[bool]) -> TreeSpec:
    """Return the spec of what is kept, told for each of its atoms in order.

    A dropped key leaves its mapping, a dropped element leaves ``ABSENT``; a container
    below the root that loses all it held is dropped with it.
    """
    shape = spec.shape
    pruned = run(_prune(shape, iter(keep)))
    if pruned is None and isinstance(shape, Node):
        holes = () if is_mapping(shape.cls) else (ABSENT,) * len(shape.keys)
        pruned = node_of(shape.cls, shape.keys if holes else (), holes, shape.aux)
    return TreeSpec(ABSENT if pruned is None else pruned)


def _prune(shape: Shape, keep: Iterator[bool]) -> Deep[Shape | None]:
    """Return what is left of a shape, None if nothing is."""
    if not isinstance(shape, Node) or not shape.keys:
        return shape if next(keep) else None
    if shape.children is None and is_mapping(shape.cls):
        keys = exact(compress(shape.keys, keep))
        return Node(shape.cls, keys, None, shape.aux) if keys else None
    left: list[tuple[Key, Shape | None]] = []
    for key, child in shape.parts():
        if _is_atom(child):
            left.append((key, child if next(keep) else None))
        else:
            left.append((key, (yield _prune(child, keep))))
    if all(child is None for _, child in left):
        return None
    if is_mapping(shape.cls):
        left = [(key, child) for key, child in left if child is not None]
    keys = tuple(key for key, _ in left) if is_mapping(shape.cls) else shape.keys
    children = [ABSENT if child is None else child for _, child in left]
    return node_of(shape.cls, keys, children, shape.aux)


def closed(spec: TreeSpec, paths: Container[Path]) -> TreeSpec:
    """Return the spec of the tree in which a leaf stands at each of some paths.

    >>> closed(sd.structure({"w": [1, 2], "b": 3}), {("w",)})
    TreeSpec({'w': *, 'b': *})
    """
    return TreeSpec(run(_close((), spec.shape, paths)))


def _close(path: Path, shape: Shape, paths: Container[Path]) -> Deep[Shape]:
    if path in paths:
        return LEAF
    if not isinstance(shape, Node):
        return shape
    children: list[Shape] = []
    for below, (_, child) in zip(shape.paths_below(path), shape.parts(), strict=True):
        children.append((yield _close(below, child, paths)))
    return node_of(shape.cls, shape.keys, children, shape.aux)


def pair(spec: TreeSpec, other: TreeSpec, holder: str) -> Sequence[int]:
    """Return, for each leaf of ``spec``, its position in ``other``, paired by path.

    The type of mappings and the order of their keys are free, and what containers are
    beside their children; anything else that differs raises ``SpecMismatch``, which
    names ``holder``, the tree that ``other`` is the spec of.
    """
    if spec == other:
        return range(len(spec))
    found = mismatch(spec, other, is_paired)
    if found:
        raise SpecMismatch(f"{holder} does not fit the tree; {found}")
    position = {path: i for i, path in enumerate(other.paths())}
    return [position[path] for path in spec.paths()]


Test = Callable[[Node, Node], bool]
"""Whether two containers, whatever they hold, are not to be told of as different."""


def is_same(a: Node, b: Node) -> bool:
    """Return whether two containers are of one type, and alike beside their children.

    >>> state = torch.nn.Linear(1, 1).state_dict()
    >>> is_same(sd.structure(state).shape, sd.structure(dict(state)).shape)
    False
    """
    return a.cls is b.cls and same_value(a.aux, b.aux)


def is_paired(a: Node, b: Node) -> bool:
    """Return whether what two containers hold can go by the same keys.

    >>> state = torch.nn.Linear(1, 1).state_dict()
    >>> is_paired(sd.structure(state).shape, sd.structure(dict(state)).shape)
    True
    """
    return a.cls is b.cls or (is_mapping(a.cls) and is_mapping(b.cls))


def mismatch(spec: TreeSpec, other: TreeSpec, test: Test = is_same) -> str:
    """Return in what two specs differ but the order of keys, empty if in nothing."""
    here, there = set(spec.paths()), set(other.paths())
    if here != there:
        missing = [path for path in spec.paths() if path not in there]
        unexpected = [path for path in other.paths() if path not in here]
        shown = _telling_apart(missing, unexpected)
        text = difference(map(shown, unexpected), map(shown, missing), "", "")
        return text.partition("; ")[2] or "keys that read alike are not the same"
    for path, expected, got in differing_containers(spec.shape, other.shape, test):
        return f"{where(path)}: expected {expected}, got {got}"
    return ""


def _telling_apart(
    some: Sequence[Path], others: Sequence[Path]
) -> Callable[[Path], str]:
    """Return how paths are shown so that none of some reads as one of others does.

    1 and True, or "1", have one name, and a str of another type is shown as one, too.
    """
    for shown in (where, str):
        if {*map(shown, some)}.isdisjoint(map(shown, others)):
            return shown
    return _with_types


def _with_types(path: Path) -> str:
    types = [f"{type(key).__module__}.{type(key).__qualname__}" for key in path]
    return f"{where(path)} by keys of {', '.join(types)}"


def differing_containers(
    a: Shape, b: Shape, test: Test = is_same
) -> Iterator[tuple[Path, str, str]]:
    """Yield where two shapes differ in what is no leaf, and what each has there.

    The order of keys is free, and a container that only one has counts if it is empty:
    else its leaves tell.
    """
    left: list[tuple[Path, Shape | None, Shape | None]] = [((), a, b)]
    while left:
        path, here, there = left.pop()
        if isinstance(here, Node) and isinstance(there, Node):
            if not test(here, there):
                yield path, *_described(here, there)
            left.extend(reversed([*_side_by_side(path, here, there)]))
        elif here is not there and not any(_has_leaf(side) for side in (here, there)):
            yield path, *_described(here, there)


def first_difference(spec: TreeSpec, other: TreeSpec) -> tuple[Path, str]:
    """Return the first path at which two specs differ, and how; the second is ours.

    >>> first_difference(sd.structure({"a": 1}), sd.structure({"a": 1, "b": 2}))
    (('b',), 'it is unexpected')
    >>> first_difference(sd.structure([1]), sd.structure((1,)))
    ((), 'expected list, got tuple')
    """
    for (path, a), (_, b) in zip(walk(spec.shape), walk(other.shape), strict=False):
        if isinstance(a, Node) and isinstance(b, Node):
            if not is_same(a, b):
                return path, "expected {}, got {}".format(*_described(a, b))
            if a.keys != b.keys:
                return _differing_key(path, a, b)
        elif a is not b:
            return path, "expected {}, got {}".format(*_described(a, b))
    return (), "expected another structure"


def _differing_key(path: Path, a: Node, b: Node) -> tuple[Path, str]:
    """Return the path of the first key that differs, and how."""
    there, here = ([*node.paths_below(path)] for node in (a, b))
    for below in here:
        if below not in there:
            return below, "it is unexpected"
    for below in there:
        if below not in here:
            return below, "it is missing"
    pairs = zip(here, there, strict=True)
    return next(x for x, y in pairs if x != y), "it stands in another place"


class Last(Generic[T]):
    """What was found of the last spec, and so is known of one that is equal.

    Of plain containers alone: keys and attributes that are more are passed on as the
    very objects that they are.

    >>> last = Last[int]()
    >>> [last.of(sd.structure({"w": 1}), find) for find in (len, None)]
    [1, 1]
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[TreeSpec, T] | None = None

    def of(self, spec: TreeSpec, find: Callable[[TreeSpec], T]) -> T:
        """Return what is found of a spec, where the last was not equal."""
        last = self._last
        if last is not None and last[0] == spec:
            return last[1]
        found = find(spec)
        if all(type(x.keys) is not Keys and x.aux is None for x in nodes_of(spec)):
            self._last = spec, found
        return found


def is_data(spec: TreeSpec) -> bool:
    """Return whether a tree of an equal spec has equal keys and containers, no more.

    Other keys, and attributes, are passed on as the very objects that they are.

    >>> state = torch.nn.Linear(1, 1).state_dict()
    >>> is_data(sd.structure(state)), is_data(sd.structure({1.5: 0}))
    (True, False)
    """
    return all(type(x.keys) is not Keys and _is_bare(x.aux) for x in nodes_of(spec))


def nodes_of(spec: TreeSpec) -> Iterator[Node]:
    """Yield the containers of a spec, in no order that matters."""
    left = [spec.shape]
    while left:
        here = left.pop()
        if isinstance(here, Node):
            yield here
            left += here.children or ()


def _is_bare(aux: Aux) -> bool:
    """Return whether a container is no more than its children, but for metadata."""
    if type(aux) is not State:
        return aux is None
    return aux.keys() == {"attributes"} and aux["attributes"].keys() == {METADATA}


def _side_by_side(
    path: Path, a: Node, b: Node
) -> Iterator[tuple[Path, Shape | None, Shape | None]]:
    """Yield what stands below two nodes at each path, None where one has nothing."""
    others = dict(zip(b.paths_below(path), b.parts(), strict=True))
    for inner, (_, child) in zip(a.paths_below(path), a.parts(), strict=True):
        _, other = others.pop(inner, (None, None))
        yield inner, child, other
    for inner, (_, child) in others.items():
        yield inner, None, child


def _has_leaf(shape: Shape | None) -> bool:
    return shape is not None and count_of(shape) > 0


def _described(a: Shape | None, b: Shape | None) -> tuple[str, str]:
    if isinstance(a, Node) and isinstance(b, Node) and a.cls is b.cls:
        ours, theirs = dict(a.aux or {}), dict(b.aux or {})
        keys = [key for key in ours if not same_value(ours[key], theirs.get(key))]
        if ours.keys() == theirs.keys() and len(keys) == 1:
            label = f"{a.cls.__name__} with {keys[0]}"
            return sides(label, ours[keys[0]], theirs[keys[0]])
    return apart((_describe(a), _describe(b)), (_describe(a, FULL), _describe(b, FULL)))


def _describe(shape: Shape | None, say: Callable[[object], str] = SHORT) -> str:
    if shape is None:
        return "nothing"
    if not isinstance(shape, Node):
        return "a leaf" if shape is LEAF else "ABSENT"
    beside = f" with {say(dict(shape.aux))}" if shape.aux else ""
    return f"{shape.cls.__name__}{beside}"


Move = Callable[[TreeSpec], tuple[TreeSpec, Sequence[int]]]
"""A rearrangement: the new spec, and for each of its leaves the old position."""
