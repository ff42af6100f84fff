"""Forms of many tensors: what they are but for their data, in a column each trait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

from sdtree.tensors.storage import storage_keys, tie_groups

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
        return cls(
            list(map(Tensor.data_ptr, ts)),
            [*map(_offset, ts)],
            list(map(UntypedStorage.nbytes, map(Tensor.untyped_storage, ts))),
        )


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


@dataclass(frozen=True, slots=True)
class Forms:
    """What tensors are but for their data: buffers of equal forms fit."""

    sizes: list[Any]
    strides: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    metas: list[bool]
    ties: list[Tie]

    @classmethod
    def of(cls, ts: Sequence[Tensor]) -> Forms:
        """Return the forms of tensors that have all their memory."""
        keys = storage_keys(ts)
        return cls(
            list(map(Tensor.size, ts)),
            list(map(Tensor.stride, ts)),
            list(map(_dtype, ts)),
            [t.is_meta for t in ts] if 0 in keys else [],
            [_tie(group, ts) for group in tie_groups(ts, keys)],
        )


class Recurring:
    """The forms of tensors that come again: those that lie where the last lay have its.

    >>> ts = [torch.ones(2)]
    >>> forms = Recurring()
    >>> [forms.of(ts) for _ in range(3)][2] == Forms.of(ts)
    True
    """

    __slots__ = ("_forms", "_guard", "_lay")

    def __init__(self) -> None:
        self._forms: Forms | None = None
        self._guard: Guard | None = None
        self._lay: Lay | None = None

    def of(self, ts: Sequence[Tensor]) -> Forms:
        """Return the forms of tensors: one and the same object while they lie there."""
        is_known = self._guard is not None and self._guard(ts)
        if is_known and self._forms is not None and self._lay == Lay.of(ts):
            return self._forms
        found = Forms.of(ts)
        if found != self._forms:
            self._forms, self._guard, self._lay = found, None, None
            return found
        self._forms, self._lay = found, Lay.of(ts)
        self._guard = self._guard or guard_of(ts)
        return found


def _tie(group: Sequence[int], ts: Sequence[Tensor]) -> Tie:
    """Return which tensors a tie has, and how they lie in it."""
    low = min(ts[i].data_ptr() for i in group)
    return tuple(
        (i, ts[i].data_ptr() - low, ts[i].is_conj(), ts[i].is_neg()) for i in group
    )
