"""The bits of two tensors side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have one shape, dtype and all bits in common."""
    if a.shape != b.shape or a.dtype != b.dtype or a.is_meta != b.is_meta:
        return False
    return a.is_meta or torch.equal(_bits(a), _bits(b).to(a.device))


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(t: Tensor) -> Tensor:
    """Return the bits of a tensor as integers."""
    t = t.detach().resolve_conj().resolve_neg()
    if t.itemsize == 16:
        t = torch.view_as_real(t)
    return t.view(_INTEGERS[t.itemsize])


class Gap(NamedTuple):
    """How many elements differ in a bit, and by how much at most."""

    differing: int
    most: float

    def worse_of(self, other: Gap) -> Gap:
        """Return the greater of each."""
        most = largest([self.most, other.most])
        return Gap(max(self.differing, other.differing), most)


def gap_between(a: Tensor, b: Tensor) -> Gap:
    """Return how far two tensors of one form are apart."""
    return Gap(_count(a, b), _distance(a, b))


def _count(a: Tensor, b: Tensor) -> int:
    return int((_bits(a) != _bits(b).to(a.device)).sum())


SLICE = 2**20
"""How many elements are widened at a time, so that a large leaf takes little room."""


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference; nan where only one of two is nan."""
    pairs = zip(
        a.detach().flatten().split(SLICE), b.flatten().split(SLICE), strict=True
    )
    return largest(_distance_of_slices(x, y) for x, y in pairs if x.numel())


def largest(distances: Iterable[float]) -> float:
    """Return the largest of the distances, nan if one of them is."""
    return float(torch.tensor([0.0, *distances], dtype=torch.float64).max())


def _distance_of_slices(a: Tensor, b: Tensor) -> float:
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = a.to(wide), b.detach().to(a.device, wide)
    apart_by = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs())
    return float(apart_by.max())
