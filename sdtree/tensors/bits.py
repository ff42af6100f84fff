"""The bits of two tensors side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdtree.tensors.storage import check_held


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have one shape, dtype and all bits in common."""
    if a.shape != b.shape or a.dtype != b.dtype or a.is_meta != b.is_meta:
        return False
    return a.is_meta or torch.equal(bits_of(a), bits_of(b).to(a.device))


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(t: Tensor) -> Tensor:
    """Return the bits of a tensor as integers."""
    if (size := t.untyped_storage().nbytes()) != t.nbytes:
        check_held(t, size)
    t = t.detach().resolve_conj().resolve_neg()
    if t.itemsize == 16:
        t = torch.view_as_real(t)
    return t.view(_INTEGERS[t.itemsize])


class Gap(NamedTuple):
    """How many elements differ in a bit, and by how much at most: of integers exactly.

    It may be by nothing: 0.0 and -0.0, or two sorts of nan, differ in bits alone. What
    are no numbers are apart by None. ``of`` is how many elements there are.
    """

    differing: int
    most: Distance
    of: int

    def worse_of(self, other: Gap) -> Gap:
        """Return the greater of each."""
        most = largest([self.most, other.most])
        return Gap(max(self.differing, other.differing), most, self.of)


Distance = int | float | None
"""How far two elements are apart; None for what are no numbers."""


def gap_between(a: Tensor, b: Tensor) -> Gap:
    """Return how far two tensors of one form are apart."""
    return Gap(int(differing(a, b).sum()), distance(a, b), a.numel())


def differing(a: Tensor, b: Tensor) -> Tensor:
    """Return of each element of two tensors of one form whether it differs in a bit."""
    differs = bits_of(a) != bits_of(b).to(a.device)
    return differs.any(-1) if a.itemsize == 16 else differs


SLICE = 2**20
"""How many elements are widened at a time, so that a large leaf takes little room."""


def distance(a: Tensor, b: Tensor) -> Distance:
    """Return the largest absolute difference; nan where only one of two is nan."""
    x, y = (bits_of(t).flatten().view(t.dtype) for t in (a, b))
    pairs = zip(x.split(SLICE), y.split(SLICE), strict=True)
    return largest(_distance_of_slices(p, q.to(p.device)) for p, q in pairs)


def largest(distances: Iterable[Distance]) -> Distance:
    """Return the largest of the distances, None or else nan if one of them is."""
    every = [0, *distances]
    found = [x for x in every if x is not None]
    if len(found) < len(every):
        return None
    return math.nan if any(map(math.isnan, found)) else max(found)


def _distance_of_slices(a: Tensor, b: Tensor) -> int | float:
    if not a.numel():
        return 0
    if a.is_complex():
        parts = (torch.view_as_real(t.to(torch.complex128)) for t in (a, b))
        return float(torch.hypot(*_apart(*parts).unbind(-1)).max())
    if not a.is_floating_point():
        return _integers_apart(*map(_widened, (a, b)))
    return float(_apart(*(_decoded(t).to(torch.float64) for t in (a, b))).max())


def _apart(x: Tensor, y: Tensor) -> Tensor:
    """Return how far the elements are apart; inf and inf, nan and nan are not."""
    return torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs())


LEAST: Final = -(2**63)


def _widened(t: Tensor) -> Tensor:
    """Return integers as signed ones of 64 bits, equally far apart."""
    if t.dtype is torch.uint64:
        return t.view(torch.int64) ^ LEAST
    return t.to(torch.int64)


def _integers_apart(x: Tensor, y: Tensor) -> int:
    """Return the largest difference, which a signed integer of 64 bits may not hold."""
    wrapped = torch.maximum(x, y) - torch.minimum(x, y)
    return int((wrapped ^ LEAST).max()) - LEAST


E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three bits behind the sign of a float4 stand for."""


def _decoded(t: Tensor) -> Tensor:
    """Return floats that torch converts; of a float4 there are two in a byte."""
    if t.dtype is not torch.float4_e2m1fn_x2:
        return t
    signed = torch.tensor((*E2M1, *(-x for x in E2M1)), device=t.device)
    raw = t.view(torch.uint8)
    return signed[torch.stack([raw & 15, raw >> 4], -1).long()]
