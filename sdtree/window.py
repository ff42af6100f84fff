"""Windows: the parts of a tree that pass all stages of a transform together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from torch import Tensor

from sdtree.arena import bytes_of, tie_groups
from sdtree.errors import UnknownLeaf
from sdtree.leaf import Handler, find_handler, handler_of
from sdtree.path import where
from sdtree.tree import TreeSpec
from sdtree.typing import Aux, Leaf, Path

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
        return self.spec.paths()[self.positions[i]]

    def paths(self) -> list[Path]:
        """Return the paths of the leaves."""
        every = self.spec.paths()
        return [every[position] for position in self.positions]


class Joint(NamedTuple):
    """How one leaf came apart. It is ``BARE`` if the leaf is its own local tensor."""

    handler: Handler
    aux: Aux
    count: int


BARE: Final = Joint(Handler(Tensor, lambda x: ((x,), None), lambda _, ts: ts[0]), None, 1)


@dataclass(frozen=True, slots=True)
class Parts:
    """The local tensors of many leaves in one list, and the way back."""

    tensors: list[Tensor]
    joints: list[Joint]
    is_bare: bool

    def join(self, tensors: Sequence[Tensor]) -> list[Leaf]:
        """Return the leaves over other local tensors, given in the same order."""
        if self.is_bare:
            return list(tensors)
        rest = iter(tensors)
        return [
            next(rest)
            if joint is BARE
            else joint.handler.unflatten(
                joint.aux, [next(rest) for _ in range(joint.count)]
            )
            for joint in self.joints
        ]

    def owners(self) -> Sequence[int]:
        """Return for each local tensor the place of its leaf."""
        if self.is_bare:
            return range(len(self.tensors))
        return [i for i, joint in enumerate(self.joints) for _ in range(joint.count)]


def apart(leaves: Sequence[Leaf], path: Callable[[int], Path]) -> Parts:
    """Return the local tensors of the leaves; ``path`` tells where the i-th stands."""
    tensors: list[Tensor] = []
    joints: list[Joint] = []
    try:
        bare = _bare_types(leaves)
        if bare and bare.issuperset(map(type, leaves)):
            return Parts(list(leaves), [BARE] * len(leaves), True)
        for leaf in leaves:
            if type(leaf) in bare:
                joints.append(BARE)
                tensors.append(leaf)
                continue
            handler = handler_of(leaf)
            ts, aux = handler.flatten(leaf)
            tensors.extend(ts)
            joints.append(Joint(handler, aux, len(ts)))
    except UnknownLeaf as error:
        raise UnknownLeaf(f"{where(path(len(joints)))}: {error}") from None
    except Exception as error:
        error.add_note(f"at {where(path(len(joints)))}")
        raise
    return Parts(tensors, joints, False)


def _bare_types(leaves: Sequence[Leaf]) -> set[type]:
    """Return the types of which all leaves are their own local tensors."""
    found: set[type] = set()
    for cls in {*map(type, leaves)}:
        handler = find_handler(cls)
        if handler is not None and handler.are_bare(
            [leaf for leaf in leaves if type(leaf) is cls]
        ):
            found.add(cls)
    return found


def cut(
    order: Sequence[int], leaves: Sequence[Leaf], path: Callable[[int], Path], limit: int
) -> Iterator[list[int]]:
    """Yield the positions of ``order`` window by window, each of about ``limit`` bytes.

    The members of a tie come together, at the place of the first.
    """
    parts = apart([leaves[i] for i in order], lambda k: path(order[k]))
    sizes = [0] * len(order)
    for owner, t in zip(parts.owners(), parts.tensors, strict=True):
        sizes[owner] += bytes_of(t)
    window: list[int] = []
    total = 0
    for group in _groups(parts, len(order)):
        size = sum(sizes[k] for k in group)
        if window and total + size > limit:
            yield window
            window, total = [], 0
        window += [order[k] for k in group]
        total += size
    if window:
        yield window


def _groups(parts: Parts, count: int) -> Iterable[Sequence[int]]:
    """Return the leaves in order, those that share storage as one group."""
    owners = parts.owners()
    ties = [{owners[i] for i in group} for group in tie_groups(parts.tensors)]
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
