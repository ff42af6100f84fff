"""Leaves in another dtype: by their local tensors, or as their kind says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.errors import SpecMismatch, UnknownLeaf
from sdtree.kinds.handler import handler_of, kind_of, stands_for_another
from sdtree.path import where, with_place
from sdtree.tensors.bits import same_bits
from sdtree.tensors.remake import in_dtypes, or_own
from sdtree.tensors.storage import identity_of
from sdtree.transform.window import LeafDef, Parts
from sdtree.typing import Leaf, Path

PathOf = Callable[[int], Path]
"""Where the i-th leaf stands."""


class Part(NamedTuple):
    """A leaf, how it came apart, and its local tensors."""

    leaf: Leaf
    leaf_def: LeafDef
    ts: Sequence[Tensor]

    def stays(self) -> Goal:
        """Return what a leaf becomes that stays as it is."""
        return Goal(self.leaf_def, [t.dtype for t in self.ts])


class Goal(NamedTuple):
    """What a leaf becomes: the dtypes of its local tensors, and how it goes together.

    ``made`` are these as its kind makes them, None if they are converted as any tensor.
    """

    leaf_def: LeafDef
    dtypes: Sequence[torch.dtype]
    made: Sequence[Tensor] | None = None


def cast_to(dtype: torch.dtype, parts: Parts, path: PathOf) -> list[Leaf]:
    """Return the leaves, those that are floating-point in a dtype."""
    goals = (_goal(part, dtype) for part in _each(parts))
    return _recast(parts, _told(goals, path))


def cast_like(parts: Parts, wanted: Parts, path: PathOf) -> list[Leaf]:
    """Return the leaves in the dtypes of those wanted, each in that of its partner."""
    if parts.is_bare and wanted.is_bare:
        return in_dtypes(parts.tensors, [t.dtype for t in wanted.tensors])
    goals = map(_goal_like, _each(parts), _each(wanted))
    return _recast(parts, _told(goals, path))


def _told(goals: Iterable[Goal], path: PathOf) -> list[Goal]:
    """Return all goals; an error tells at which path there is none."""
    found: list[Goal] = []
    try:
        found.extend(goals)
    except (UnknownLeaf, SpecMismatch) as error:
        raise type(error)(f"{where(path(len(found)))}: {error}") from None
    except Exception as error:
        raise with_place(error, path(len(found))) from None
    return found


def _each(parts: Parts) -> Iterator[Part]:
    """Yield each leaf as it came apart."""
    rest = iter(parts.tensors)
    for leaf, leaf_def in zip(parts.leaves, parts.defs, strict=True):
        yield Part(leaf, leaf_def, [next(rest) for _ in range(leaf_def.count)])


def _recast(parts: Parts, goals: Sequence[Goal]) -> list[Leaf]:
    """Return the leaves as they become; those that do not change are the same objects.

    Local tensors are converted as any tensors are, so ties are kept; but what a kind
    makes of them otherwise is taken from it.
    """
    new = in_dtypes(parts.tensors, [dtype for goal in goals for dtype in goal.dtypes])
    result = parts.join_changed(new)
    rest = iter(new)
    for i, (leaf_def, goal) in enumerate(zip(parts.defs, goals, strict=True)):
        ours = [next(rest) for _ in range(leaf_def.count)]
        if goal.made is not None:
            ts = _settled(ours, goal.made)
            result[i] = goal.leaf_def.handler.unflatten(goal.leaf_def.aux, ts)
    return result


def _settled(ours: Sequence[Tensor], made: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return our tensors where they are what a kind made, and else what it made."""
    if len(ours) != len(made):
        return made
    return [a if _are_same(a, b) else b for a, b in zip(ours, made, strict=True)]


def _are_same(a: Tensor, b: Tensor) -> bool:
    return identity_of([a]) == identity_of([b]) or same_bits(a, b)


# -- what a leaf becomes -----------------------------------------------------------


def _goal(part: Part, dtype: torch.dtype) -> Goal:
    """Return what a leaf becomes in a floating-point dtype."""
    own = handler_of(part.leaf).cast(part.leaf, dtype)
    if own is None:
        return Goal(part.leaf_def, [or_own(dtype, t) for t in part.ts])
    return _as_made(part, own)


def _as_made(part: Part, own: Leaf) -> Goal:
    """Return what a leaf becomes if its kind makes this of it."""
    if own is part.leaf:
        return part.stays()
    handler = handler_of(part.leaf)
    if type(own) is not type(part.leaf):
        raise UnknownLeaf(
            f"the cast of {handler.kind.__name__} makes a {type(own).__name__} of a "
            f"{type(part.leaf).__name__}; it is to keep the type, or sd.map changes it"
        )
    made, aux = handler.flatten(own)
    alike = [t.shape for t in made] == [t.shape for t in part.ts]
    dtypes = [t.dtype for t in (made if alike else part.ts)]
    return Goal(LeafDef(handler, aux, len(made)), dtypes, made)


def _goal_like(part: Part, other: Part) -> Goal:
    """Return what a leaf becomes that takes the dtype of another."""
    handler, its = handler_of(part.leaf), handler_of(other.leaf)
    here, there = handler.dtype(part.leaf), its.dtype(other.leaf)
    if here is None and (there is None or stands_for_another(part.leaf)):
        return _part_by_part(part, other)
    if here == there:
        return part.stays()
    held = [t.dtype for t in part.ts]
    if isinstance(there, torch.dtype) and _is_carried(there, other.ts):
        own = handler.cast(part.leaf, there)
        if own is None and here in held:
            return Goal(part.leaf_def, [there if t == here else t for t in held])
        if own is not None and handler.dtype(own) == there:
            return _as_made(part, own)
    raise SpecMismatch(
        f"{here} here, and {there} in like=, which no cast makes of it; leave the leaf "
        "out with sd.where, or convert it before with sd.map"
    )


def _is_carried(dtype: torch.dtype, ts: Sequence[Tensor]) -> bool:
    """Return whether tensors can have the dtype that a leaf of these local ones has."""
    return dtype.is_floating_point or dtype in {t.dtype for t in ts}


def _part_by_part(part: Part, other: Part) -> Goal:
    """Return what a leaf becomes that has no dtype as a whole, nor has the other."""
    if not part.ts:
        return part.stays()
    kind, its = kind_of(part.leaf), kind_of(other.leaf)
    alike = kind is its or stands_for_another(part.leaf)
    if not alike or len(part.ts) != len(other.ts):
        raise SpecMismatch(
            f"a {kind.__name__} of {len(part.ts)} local tensors here, and a "
            f"{its.__name__} of {len(other.ts)} in like=; give a leaf of the same kind"
        )
    return Goal(part.leaf_def, [t.dtype for t in other.ts])
