"""Storage: which tensors share it, and what they cover of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate

from torch import Tensor

ALIGNMENT = 16
"""Where a span of bytes begins: at a multiple of the largest element."""


@lru_cache(maxsize=4096)
def dense_strides(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor.

    >>> dense_strides((2, 3))
    (3, 1)
    """
    return (
        tuple([*accumulate(size[:0:-1], int.__mul__, initial=1)][::-1]) if size else ()
    )


def extent(t: Tensor) -> int:
    """Return how many elements of storage lie from the first of ``t`` to its last."""
    if t.is_contiguous() or not t.numel():
        return t.numel()
    return 1 + sum(
        (size - 1) * step for size, step in zip(t.size(), t.stride(), strict=True)
    )


def span(t: Tensor) -> tuple[int, int]:
    """Return the bytes of its storage that ``t`` covers, as [start, stop)."""
    start = int(t.storage_offset()) * t.itemsize
    return start, start + extent(t) * t.itemsize


def storage_keys(ts: Iterable[Tensor]) -> list[int]:
    """Return for each tensor where its storage begins, 0 if that holds nothing."""
    return [t.untyped_storage().data_ptr() for t in ts]


def tie_groups(
    ts: Sequence[Tensor], keys: Sequence[int] | None = None
) -> list[list[int]]:
    """Return the positions of tensors that share storage, group by group.

    Zero-size and meta tensors have no storage to share. ``keys`` are the storage keys
    where they are known.
    """
    keys = storage_keys(ts) if keys is None else keys
    if len(set(keys)) == len(keys):
        return []
    first: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    for i, key in enumerate(keys):
        leader = first.setdefault(key, i)
        if leader != i and key:
            groups.setdefault(key, [leader]).append(i)
    found = ([i for i in group if ts[i].numel()] for group in groups.values())
    return [group for group in found if len(group) > 1]


def covered_bytes(ts: Sequence[Tensor]) -> int:
    """Return how many bytes the tensors cover together, shared ones counted once."""
    groups = tie_groups(ts)
    tied = {i for group in groups for i in group}
    total = sum(bytes_of(t) for i, t in enumerate(ts) if i not in tied)
    return total + sum(union_of([span(ts[i]) for i in group]) for group in groups)


def bytes_of(t: Tensor) -> int:
    """Return the bytes of a tensor; an expanded one counts what it covers."""
    size = t.nbytes
    return size if t.is_contiguous() else min(size, extent(t) * t.itemsize)


def union_of(spans: Iterable[tuple[int, int]]) -> int:
    """Return how many bytes some spans of one storage cover together.

    >>> union_of([(0, 8), (4, 12), (20, 24)])
    16
    """
    total, reached = 0, 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
