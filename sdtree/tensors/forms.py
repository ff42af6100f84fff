"""Forms of many tensors: what they are but for their data, in a column each trait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter, call, is_
from typing import Any, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor, UntypedStorage

from sdtree.tensors.storage import blocks, storage_keys, tie_groups

T = TypeVar("T")

Tie = tuple[tuple[int, int, bool, bool], ...]
"""Which tensors share memory, how far in it each begins, and its bits."""

_dtype = attrgetter("dtype")
_offset: Callable[[Tensor], int] = Tensor.storage_offset  # pyright: ignore[reportAssignmentType]


class Lay(NamedTuple):
    """Where tensors lie: where each begins, how far in its storage, of so many bytes.

    Tensors of one form that lie where others did are tied as those were.
    """

    starts: list[int]
    offsets: list[int]
    sizes: list[int]

    @classmethod
    def of(cls, ts: Sequence[Tensor]) -> Lay:
        """Return where tensors lie; raise for those that have no storage."""
        starts, offsets, sizes = found = cls([], [], [])
        for part in blocks(len(ts)):
            own = ts[part]
            starts += map(Tensor.data_ptr, own)
            offsets += map(_offset, own)
            sizes += map(len, map(Tensor.untyped_storage, own))
        return found


Guard = Callable[[Sequence[Tensor]], bool]
"""Whether tensors are of known forms, seen at once. A no means that each is asked."""


def guard_of(ts: Sequence[Tensor]) -> Guard:
    """Return what tells whether tensors have type, shape, dtype and device of these.

    And strides. The compiler's own test asks all of it in one call, where torch has it.
    """
    count = len(ts)
    sizes = [list(map(int, t.size())) for t in ts]
    strides = [list(map(int, t.stride())) for t in ts]
    try:
        guards: Any = torch._C._dynamo.guards  # pyright: ignore[reportAttributeAccessIssue]
        test = guards.TensorGuards(
            *ts, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
        )
    except Exception:
        return lambda _: False

    def are_alike(found: Sequence[Tensor]) -> bool:
        return len(found) == count > 0 and bool(test.check(*found))

    return are_alike


class One(dict[T, T]):
    """Of what is equal one and the same object, so that few are kept.

    Python looks for garbage among the more, the more there are.

    >>> x, y = One().of([(1, 2), tuple([1, 2])])
    >>> x is y
    True
    """

    __slots__ = ()

    def of(self, xs: Iterable[T]) -> Iterable[T]:
        """Return for each the first that was equal."""
        found = list(xs)
        return map(self.setdefault, found, found)


@dataclass(frozen=True, slots=True)
class Forms:
    """What tensors are but for their data: buffers of equal forms fit.

    ``metas`` are the places of those on meta.
    """

    sizes: list[Any]
    strides: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    metas: list[int]
    ties: list[Tie]

    @classmethod
    def of(cls, ts: Sequence[Tensor]) -> Forms:
        """Return the forms of tensors that have all their memory."""
        keys = storage_keys(ts)
        metas = [i for i, t in enumerate(ts) if t.is_meta] if 0 in keys else []
        found = cls([], [], [], metas, ties_of(ts, keys))
        sizes, strides = One(), One()
        for part in blocks(len(ts)):
            own = ts[part]
            found.sizes.extend(sizes.of(map(Tensor.size, own)))
            found.strides.extend(strides.of(map(Tensor.stride, own)))
            found.dtypes.extend(map(_dtype, own))
        return found


class Spot(NamedTuple):
    """Where some tensors begin, and in which storages they lie, of so many bytes.

    Nothing is kept alive. A storage that lives is one and the same object, so what
    begins where others did, in the same storages, is tied as those were.
    """

    starts: list[int]
    storages: list[Callable[[], UntypedStorage | None]]
    sizes: list[int]

    @classmethod
    def of(cls, ts: Sequence[Tensor]) -> Spot:
        """Return where tensors lie; raise for those that have no storage."""
        every = list(map(Tensor.untyped_storage, ts))
        starts = list(map(Tensor.data_ptr, ts))
        return cls(starts, list(map(ref, every)), list(map(len, every)))

    def holds(self, ts: Sequence[Tensor]) -> bool:
        """Return whether tensors lie where those did, of which they have the forms."""
        if list(map(Tensor.data_ptr, ts)) != self.starts:
            return False
        every = list(map(Tensor.untyped_storage, ts))
        same = all(map(is_, every, map(call, self.storages)))
        return same and list(map(len, every)) == self.sizes


@dataclass(frozen=True, slots=True)
class Footing:
    """The forms of tensors, and where they lay; whatever comes later, it stays.

    >>> ts = [torch.ones(2)]
    >>> footing = Footing.of(ts)
    >>> footing.holds([ts[0].detach()]), footing.holds([torch.ones(2)])
    (True, False)
    """

    guards: list[Guard]
    spots: list[Spot]
    count: int

    @classmethod
    def of(cls, ts: Sequence[Tensor]) -> Footing:
        """Return it for tensors that have storages."""
        parts = [ts[part] for part in blocks(len(ts))]
        return cls([*map(guard_of, parts)], [*map(Spot.of, parts)], len(ts))

    def holds(self, ts: Sequence[Tensor]) -> bool:
        """Return whether tensors have these forms, and lie there."""
        if len(ts) != self.count:
            return False
        parts = [ts] if len(self.guards) == 1 else [ts[x] for x in blocks(len(ts))]
        every = zip(self.guards, self.spots, parts, strict=True)
        return all(guard(own) and spot.holds(own) for guard, spot, own in every)


class Ground:
    """The forms of tensors, and where those lay that came last.

    >>> ts = [torch.ones(2)]
    >>> ground = Ground(ts)
    >>> ground.lay = ground.lay_of(ts)
    >>> [ground.lay_of(ts) is ground.lay for _ in range(2)], ground.lay_of([ts[0][1:]])
    ([True, True], None)
    """

    __slots__ = ("_count", "_guards", "_seen", "lay", "place")

    def __init__(self, ts: Sequence[Tensor]) -> None:
        self._count = len(ts)
        self._guards = [guard_of(ts[part]) for part in blocks(len(ts))]
        self._seen: tuple[Lay, list[Spot]] | None = None
        self.lay: Lay | None = None
        self.place: object = None

    def lay_of(self, ts: Sequence[Tensor]) -> Lay | None:
        """Return where tensors lie, None if they have other forms.

        It is ``lay`` itself if they lie there. As long as they do in the same storages
        ``place`` is one and the same object, and None if that is not known.
        """
        if len(ts) != self._count:
            return None
        parts = [ts[part] for part in blocks(len(ts))]
        seen, lay = self._seen, self.lay  # another thread may look at others meanwhile
        if seen is not None and self._hold(parts, seen[1]):
            return seen[0]
        self._seen, self.place = None, None
        if not all(guard(own) for guard, own in zip(self._guards, parts, strict=True)):
            return None
        found = Lay.of(ts)
        if lay is None or found != lay:
            return found
        self._seen, self.place = (lay, list(map(Spot.of, parts))), object()
        return lay

    def is_of(self, ts: Sequence[Tensor]) -> bool:
        """Return whether tensors lie where those did that came last."""
        lay = self.lay_of(ts)
        return lay is not None and lay is self.lay

    def _hold(self, parts: Sequence[Sequence[Tensor]], spots: Sequence[Spot]) -> bool:
        every = zip(self._guards, spots, parts, strict=True)
        return all(guard(own) and spot.holds(own) for guard, spot, own in every)


class Recurring:
    """The forms of tensors that come again: those that lie where the last lay have its.

    >>> ts = [torch.ones(2)]
    >>> forms = Recurring()
    >>> [forms.of(ts) for _ in range(3)][2] == Forms.of(ts)
    True
    """

    __slots__ = ("_forms", "_ground")

    def __init__(self) -> None:
        self._forms: Forms | None = None
        self._ground: Ground | None = None

    def known(self, ts: Sequence[Tensor]) -> Forms | None:
        """Return the forms of tensors if they lie where the last lay."""
        ground = self._ground
        is_there = ground is not None and ground.is_of(ts)
        return self._forms if is_there else None

    def of(self, ts: Sequence[Tensor]) -> Forms:
        """Return the forms of tensors: one and the same object while they lie there."""
        ground = self._ground
        lay = None if ground is None else ground.lay_of(ts)
        if ground is not None and lay is not None and lay is ground.lay:
            assert self._forms is not None
            return self._forms
        found = Forms.of(ts)
        if found != self._forms:
            self._forms, self._ground = found, None
            return found
        self._forms, self._ground = found, ground or Ground(ts)
        self._ground.lay = Lay.of(ts) if lay is None else lay
        return found


def ties_of(ts: Sequence[Tensor], keys: Sequence[int] | None = None) -> list[Tie]:
    """Return the ties of tensors that have all their memory; see ``tie_groups``."""
    return [_tie(group, ts) for group in tie_groups(ts, keys)]


def _tie(group: Sequence[int], ts: Sequence[Tensor]) -> Tie:
    """Return which tensors a tie has, and how they lie in it."""
    low = min(ts[i].data_ptr() for i in group)
    return tuple(
        (i, ts[i].data_ptr() - low, ts[i].is_conj(), ts[i].is_neg()) for i in group
    )
