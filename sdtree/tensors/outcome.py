"""What becomes of tensors that are remade: what they take, and which stay tied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sdtree.tensors.storage import extent, stretch, tie_groups


def bytes_made(ts: Sequence[Tensor]) -> list[int]:
    """Return how many bytes each takes when all are remade; a tie's are its first's.

    >>> flat = torch.zeros(100, dtype=torch.uint8)
    >>> bytes_made([flat[2:4], flat[8:9], flat.clone()])
    [7, 0, 100]
    """
    made = [*map(bytes_taken, ts)]
    for first, *others in tied_still(ts, tie_groups(ts), None):
        made[first] = tie_bytes([ts[i] for i in (first, *others)])
        for i in others:
            made[i] = 0
    return made


def bytes_taken(t: Tensor) -> int:
    """Return how many bytes a tensor that is tied to none takes when it is remade."""
    if t.is_contiguous():
        return t.nbytes
    return (t.numel() if is_sparse(t) else extent(t)) * t.itemsize


def is_sparse(t: Tensor) -> bool:
    """Return whether a tensor fills less than half of the memory that it lies in."""
    return not t.is_contiguous() and 2 * t.numel() < extent(t)


def tie_bytes(ts: Sequence[Tensor]) -> int:
    """Return how many bytes a tie spans, from the first that it covers to the last."""
    starts, stops = zip(*map(stretch, ts), strict=True)
    return max(stops) - min(starts)


def tied_still(
    ts: Sequence[Tensor],
    ties: Sequence[Sequence[int]],
    dtypes: Sequence[torch.dtype] | None,
) -> list[list[int]]:
    """Return the positions of tensors that stay tied when they are remade."""
    outcomes = (part for tie in ties for part in _by_outcome(tie, ts, dtypes))
    return [members for members in outcomes if len(members) > 1]


def _by_outcome(
    group: Sequence[int], ts: Sequence[Tensor], dtypes: Sequence[torch.dtype] | None
) -> Iterable[list[int]]:
    """Split a tie into the parts that stay tied: one per bit and per change of dtype.

    Members that keep their dtype stay together whatever it is, as views of bytes.
    """
    parts: defaultdict[object, list[int]] = defaultdict(list)
    for i in group:
        t = ts[i]
        bits, dtype = (t.is_conj(), t.is_neg()), dtype_of(i, ts, dtypes)
        changes = any(bits) or dtype != t.dtype
        parts[(*bits, t.dtype, dtype) if changes else None].append(i)
    return parts.values()


def dtype_of(
    i: int, ts: Sequence[Tensor], dtypes: Sequence[torch.dtype] | None
) -> torch.dtype:
    """Return what becomes of the dtype of one of some tensors."""
    return ts[i].dtype if dtypes is None else dtypes[i]
