"""How many bytes tensors take when they are remade."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdtree.tensors.storage import extent, stretch


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
