"""Windows: the parts of a tree that pass all stages of a transform together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Final, TypeVar

from torch import Tensor

from sdtree.errors import UnknownLeaf
from sdtree.kinds.handler import Handler, find_handler, handler_of, of_type
from sdtree.path import named_by, where, with_place
from sdtree.tensors.modes import making
from sdtree.tensors.storage import bytes_of, check_held, tie_groups
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Aux, Leaf, Path, Tree

T = TypeVar("T")

WINDOW_BYTES: Final = 32 * 2**20
"""How much input a window holds where a stage takes it whole."""

SLICE_BYTES: Final = 2**20
"""How much it holds where every stage goes leaf by leaf, so that little is alive."""


@dataclass(frozen=True, slots=True)
class Window:
    """Some leaves of a tree, with their positions among all of them."""

    spec: TreeSpec
    positions: Sequence[int]
    leaves: list[Leaf]

    def path(self, i: int) -> Path:
        """Return the path of the leaf at place ``i`` of the window."""
        return self.spec.every_path[self.positions[i]]

    def paths(self) -> list[Path]:
        """Return the paths of the leaves."""
        every = self.spec.every_path
        return [every[position] for position in self.positions]

    def matches(self, test: Callable[[Path, Leaf], bool]) -> list[bool]:
        """Return for each leaf whether the test of (path, leaf) holds."""
        return [test(p, x) for p, x in zip(self.paths(), self.leaves, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class LeafDef:
    """How one leaf came apart: ``BARE`` and ``PLAIN`` are the two that say it all."""

    handler: Handler
    aux: Aux
    count: int


BARE: Final = LeafDef(
    Handler(Tensor, lambda x: ((x,), None), lambda _, ts: ts[0]), None, 1
)
"""The leaf is its own local tensor."""

PLAIN: Final = LeafDef(Handler(object, lambda x: ((), x), lambda x, _: x), None, 0)
"""The leaf has no local tensors and never changes: it stays what it is."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The local tensors of many leaves in one list, and the way back.

    ``is_bare``: every one of its ``defs`` is ``BARE``.
    """

    leaves: Sequence[Leaf]
    tensors: list[Tensor]
    defs: list[LeafDef]
    is_bare: bool = False

    def join(self, tensors: Sequence[Tensor]) -> list[Leaf]:
        """Return the leaves over other local tensors, given in the same order."""
        if self.is_bare:
            return list(tensors)
        rest = iter(tensors)
        return [
            next(rest)
            if leaf_def is BARE
            else leaf
            if leaf_def is PLAIN
            else leaf_def.handler.unflatten(
                leaf_def.aux, [next(rest) for _ in range(leaf_def.count)]
            )
            for leaf, leaf_def in zip(self.leaves, self.defs, strict=True)
        ]

    def join_changed(self, tensors: Sequence[Tensor]) -> list[Leaf]:
        """Return the leaves over other local tensors, themselves where none changed.

        Data that was on its way has arrived, which is a change.
        """
        if self.is_bare:
            return list(tensors)
        made: list[Leaf] = []
        start = 0
        for leaf, leaf_def in zip(self.leaves, self.defs, strict=True):
            stop = start + leaf_def.count
            old, new = self.tensors[start:stop], tensors[start:stop]
            start = stop
            stays = leaf_def.handler.keeps_type and all(map(is_, old, new))
            made.append(
                leaf if stays else leaf_def.handler.unflatten(leaf_def.aux, new)
            )
        return made

    def owners(self) -> Sequence[int]:
        """Return for each local tensor the place of its leaf."""
        if self.is_bare:
            return range(len(self.tensors))
        return [
            i for i, leaf_def in enumerate(self.defs) for _ in range(leaf_def.count)
        ]


def apart(leaves: Sequence[Leaf], path: Callable[[int], Path]) -> Parts:
    """Return the local tensors of the leaves; ``path`` tells where the i-th stands."""
    tensors: list[Tensor] = []
    defs: list[LeafDef] = []
    simple = simple_types(leaves)
    if simple.keys() >= {*map(type, leaves)}:
        return _simple_parts(leaves, simple)
    for i, leaf in enumerate(leaves):
        leaf_def = simple.get(type(leaf))
        if leaf_def is not None:
            tensors.extend((leaf,) * leaf_def.count)
        else:
            ts, leaf_def = _apart(leaf, i, path)
            tensors.extend(ts)
        defs.append(leaf_def)
    return Parts(leaves, tensors, defs)


def _apart(
    leaf: Leaf, i: int, path: Callable[[int], Path]
) -> tuple[Sequence[Tensor], LeafDef]:
    """Return the local tensors of a leaf; an error tells where it stands."""
    try:
        handler = handler_of(leaf)
        ts, aux = handler.flatten(leaf)
        for t in ts:
            check_held(t, t.untyped_storage().nbytes())
    except UnknownLeaf as error:
        raise UnknownLeaf(f"{where(path(i))}: {error}") from None
    except Exception as error:
        error.add_note(f"at {where(path(i))}")
        raise
    return ts, LeafDef(handler, aux, len(ts))


def blame(leaves: Sequence[Leaf], path: Callable[[int], Path]) -> None:
    """Raise what keeps a leaf from coming apart, with its path; return if all do.

    Leaves that are taken for simple are not asked before something fails.
    """
    for i, leaf in enumerate(leaves):
        _apart(leaf, i, path)


def handled(work: Callable[[], T], *trees: Tree) -> T:
    """Return what some work on the leaves of trees comes to, whatever modes are set.

    What does not come apart is told by its path.
    """
    try:
        with making():
            return work()
    except (UnknownLeaf, RuntimeError):
        for tree in trees:
            leaves, spec = take(tree)
            blame(leaves, spec.every_path.__getitem__)
        raise


Remaker = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""What becomes of the local tensors of a window: as many, in the same order."""

Filler = Callable[[Window, Parts], list[Leaf]]
"""What becomes of the leaves of a window that came apart."""


def put(filler: Filler, window: Window, of_bare: Remaker | None = None) -> list[Leaf]:
    """Return the leaves of a window over other local tensors, whatever modes are set.

    ``of_bare`` is what becomes of leaves that are all no more than tensors. What does
    not come apart, or fails, is told by its path.
    """
    try:
        with making():
            parts = apart(window.leaves, window.path)
            if parts.is_bare and of_bare is not None:
                return [*of_bare(parts.tensors)]
            return filler(window, parts)
    except (RuntimeError, TypeError) as error:
        blame(window.leaves, window.path)
        _locate(error, window, lambda one: put(filler, one, of_bare))
        raise


def _locate(error: Exception, window: Window, act: Callable[[Window], object]) -> None:
    """Find the leaf that an error of a whole window came from, and tell its path."""
    if len(window.leaves) == 1:
        if isinstance(error, UnknownLeaf) and named_by(error, [window.path(0)]) is None:
            raise UnknownLeaf(f"{where(window.path(0))}: {error}") from None
        with_place(error, window.path(0))
        return
    for position, leaf in zip(window.positions, window.leaves, strict=True):
        act(Window(window.spec, [position], [leaf]))


def apart_in(spec: TreeSpec, leaves: Sequence[Leaf]) -> Parts:
    """Return the local tensors of all leaves of a tree."""
    return apart(leaves, lambda i: spec.every_path[i])


def _simple_parts(leaves: Sequence[Leaf], simple: Mapping[type, LeafDef]) -> Parts:
    if all(leaf_def is BARE for leaf_def in simple.values()):
        return Parts(leaves, list(leaves), [BARE] * len(leaves), True)
    defs = [simple[type(leaf)] for leaf in leaves]
    tensors = [leaf for leaf in leaves if simple[type(leaf)] is BARE]
    return Parts(leaves, tensors, defs)


def simple_types(leaves: Sequence[Leaf]) -> dict[type, LeafDef]:
    """Return the types of which every leaf comes apart in one and the same way."""
    found: dict[type, LeafDef] = {}
    types = {*map(type, leaves)}
    for cls in types:
        handler = find_handler(cls)
        if handler is None:
            continue
        own = leaves if len(types) == 1 else of_type(cls, leaves)
        if handler.is_plain:
            found[cls] = PLAIN
        elif handler.are_bare(own):
            found[cls] = BARE
    return found


def cut(
    order: Sequence[int],
    leaves: Sequence[Leaf],
    path: Callable[[int], Path],
    limit: int,
) -> Iterator[list[int]]:
    """Yield the positions of ``order`` window by window, each of about ``limit`` bytes.

    The members of a tie come together, at the place of the first.
    """
    sizes, groups = _sizes_and_groups(
        [leaves[i] for i in order], lambda k: path(order[k])
    )
    window: list[int] = []
    total = 0
    for group in groups:
        size = sum(sizes[k] for k in group)
        if window and total + size > limit:
            yield window
            window, total = [], 0
        window += [order[k] for k in group]
        total += size
    if window:
        yield window


def _sizes_and_groups(
    leaves: Sequence[Leaf], path: Callable[[int], Path]
) -> tuple[list[int], Iterable[Sequence[int]]]:
    """Return how many bytes each leaf has, and in groups which must come together."""
    sizes = [0] * len(leaves)
    try:
        with making():
            parts = apart(leaves, path)
            for owner, t in zip(parts.owners(), parts.tensors, strict=True):
                sizes[owner] += bytes_of(t)
            return sizes, _groups(parts, len(leaves))
    except (UnknownLeaf, RuntimeError):
        blame(leaves, path)
        raise


def _groups(parts: Parts, count: int) -> Iterable[Sequence[int]]:
    """Return the leaves in order, those that share storage as one group."""
    return sharing(parts.tensors, parts.owners(), count)


def sharing(
    ts: Sequence[Tensor], owners: Sequence[int], count: int
) -> Iterable[Sequence[int]]:
    """Return so many owners of tensors in order, those that share storage as one group.

    >>> t = torch.zeros(2)
    >>> [*sharing([t, torch.ones(2), t], [0, 1, 2], 3)]
    [[0, 2], [1]]
    """
    ties = [{owners[i] for i in group} for group in tie_groups(ts)]
    if not ties:
        return ((k,) for k in range(count))
    leader = list(range(count))
    for tie in ties:
        _unite(leader, tie)
    groups: dict[int, list[int]] = {}
    for k in range(count):
        groups.setdefault(_find(leader, k), []).append(k)
    return groups.values()


def _find(leader: list[int], k: int) -> int:
    while leader[k] != k:
        leader[k] = leader[leader[k]]
        k = leader[k]
    return k


def _unite(leader: list[int], members: Iterable[int]) -> None:
    roots = {_find(leader, k) for k in members}
    first = min(roots)
    for root in roots:
        leader[root] = first
