"""Whether the local tensors of a rank are those that a layout speaks of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdtree.layout.boxes import Box, overlaps, shown


def misplaced(
    boxes: Sequence[Box],
    sizes: Sequence[tuple[int, ...]],
    shape: tuple[int, ...],
    me: int,
) -> str:
    """Return why boxes are not all that the local tensors hold, empty if they are.

    What lies beyond them would be cut off, and what they speak of must be there.
    """
    for k in sorted({box.tensor for box in boxes} or {0}):
        local = sizes[k] if k < len(sizes) else ()
        held = [box for box in boxes if box.tensor == k and box.numel]
        numel = sum(box.numel for box in held)
        ends = [tuple(map(int.__add__, box.local, box.size)) for box in held]
        size = tuple(map(max, zip(*ends, strict=True)))
        starts = [start for box in held for start in box.local]
        fits = not held or len(size) == len(local)
        fits = fits and min(starts, default=0) >= 0
        fits = fits and all(map(int.__le__, size, local))
        if not fits or numel != math.prod(local):
            holds = f"{size}, {numel} elements" if held else "nothing"
            return (
                f"rank {me} has a local tensor of shape {local}, and by its layout it "
                f"holds {holds} of the tensor of shape {shape}; make the leaf "
                "anew, on all ranks, with the shape that its parts have together"
            )
        for a, b in overlaps(sorted((box.local, box.size) for box in held)):
            return (
                f"rank {me} has two boxes that overlap in a local tensor, {shown(*a)} "
                f"and {shown(*b)}; each is to have a place of its own"
            )
    return ""
