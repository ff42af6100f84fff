"""The bits of two tensors side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
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
    check_held(t, t.untyped_storage().nbytes())
    t = t.detach().resolve_conj().resolve_neg()
    if t.itemsize == 16:
        t = torch.view_as_real(t)
    return t.view(_INTEGERS[t.itemsize])


def has_value(dtype: torch.dtype, value: float) -> bool:
    """Return whether a dtype has a number, or else the one that it is rounded to.

    >>> has_value(torch.float16, 0.1), has_value(torch.float16, 1e6)
    (True, False)
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        known = None if dtype == torch.bool else torch.iinfo(dtype)
        least, most = (known.min, known.max) if known else (0, 1)
        is_whole = isinstance(value, int) or value.is_integer()
        return is_whole and least <= value <= most
    try:
        filled = torch.full((), value, dtype=dtype, device="cpu")
        found = filled.to(torch.complex128).real.item()
        form = torch.finfo(dtype)
    except (RuntimeError, OverflowError):  # it overflows, or torch fills none
        return False
    if not value or not math.isfinite(value):
        return found == value or (found != found and value != value)
    return abs(found - value) <= form.eps * max(abs(value), form.tiny)


Distance = int | float | None
"""How far two elements are apart; None for what are no numbers."""


class Tolerance(NamedTuple):
    """Numbers are close where they are apart by ``atol + rtol * abs(b)`` at most."""

    rtol: float = 0.0
    atol: float = 0.0


class Spread(NamedTuple):
    """How far apart elements are: at most, and all together.

    ``norm`` is the 2-norm of the differences, ``scale`` that of the finite elements of
    the second tensor.
    """

    most: Distance = 0
    norm: float = 0.0
    scale: float = 0.0

    @classmethod
    def joined(cls, spreads: Iterable[Spread]) -> Spread:
        """Return that of all elements."""
        every = [*spreads]
        norm, scale = _hypot(x.norm for x in every), _hypot(x.scale for x in every)
        return cls(largest(x.most for x in every), norm, scale)


class Gap(NamedTuple):
    """How many elements differ in a bit, and how far apart they are.

    Integers exactly. It may be by nothing: 0.0 and -0.0, or two sorts of nan, differ in
    bits alone. ``of`` is how many elements there are; ``beyond`` how many differ by
    more than a tolerance, or at all if there is none.
    """

    differing: int
    most: Distance
    of: int
    norm: float
    scale: float
    beyond: int

    @classmethod
    def counted(
        cls, differs: Tensor, beyond: Tensor, spread: Spread, of: int | None = None
    ) -> Gap:
        """Return the gap of elements of which it is known which differ."""
        count = differs.numel() if of is None else of
        return cls(
            int(differs.sum()),
            spread.most,
            count,
            spread.norm,
            spread.scale,
            int(beyond.sum()),
        )

    @classmethod
    def joined(cls, gaps: Iterable[Gap]) -> Gap:
        """Return the gap of all elements."""
        every = [*gaps]
        spread = Spread.joined(Spread(x.most, x.norm, x.scale) for x in every)
        differing = sum(x.differing for x in every)
        of, beyond = sum(x.of for x in every), sum(x.beyond for x in every)
        return cls(differing, spread.most, of, spread.norm, spread.scale, beyond)

    def worse_of(self, other: Gap) -> Gap:
        """Return the greater of each."""
        return Gap(
            max(self.differing, other.differing),
            largest([self.most, other.most]),
            self.of,
            _greater(self.norm, other.norm),
            max(self.scale, other.scale),
            max(self.beyond, other.beyond),
        )


NO_NUMBERS: Final = Gap(1, None, 1, 0.0, 0.0, 1)
"""How far plain values are apart that are no numbers."""


def gap_between(a: Tensor, b: Tensor, tolerance: Tolerance | None = None) -> Gap:
    """Return how far two tensors of one form are apart."""
    differs = differing(a, b)
    beyond = outside(a, b, differs, tolerance)
    return Gap.counted(differs, beyond, spread_between(a, b))


def differing(a: Tensor, b: Tensor) -> Tensor:
    """Return of each element of two tensors of one form whether it differs in a bit."""
    differs = bits_of(a) != bits_of(b).to(a.device)
    return differs.any(-1) if a.itemsize == 16 else differs


def outside(
    a: Tensor, b: Tensor, differs: Tensor, tolerance: Tolerance | None
) -> Tensor:
    """Return of each element whether it differs by more than a tolerance.

    That is for floating-point numbers; integers have none. Bools that differ in bits
    alone differ by nothing.
    """
    if tolerance is None or not (a.is_floating_point() or a.is_complex()):
        is_by_value = tolerance is not None and a.dtype == torch.bool
        return differs & (a != b.to(a.device)) if is_by_value else differs
    far = [
        ~(_gaps(p, q) <= tolerance.atol + tolerance.rtol * _sizes(q))
        for p, q in _slices(a, b)
    ]
    every = torch.cat([x.any(-1) if x.dim() > 1 else x for x in far])
    return differs & every.view(differs.shape)


SLICE = 2**20
"""How many elements are widened at a time, so that a large leaf takes little room."""


def spread_between(a: Tensor, b: Tensor) -> Spread:
    """Return how far elements are apart; nan where only one of two is nan."""
    return Spread.joined(_spread(p, q) for p, q in _slices(a, b))


def _slices(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = (bits_of(t).flatten().view(t.dtype) for t in (a, b))
    for p, q in zip(x.split(SLICE), y.split(SLICE), strict=True):
        yield p, q.to(p.device)


def largest(distances: Iterable[Distance]) -> Distance:
    """Return the largest of the distances, None or else nan if one of them is."""
    every = [0, *distances]
    found = [x for x in every if x is not None]
    if len(found) < len(every):
        return None
    return math.nan if any(map(math.isnan, found)) else max(found)


def _greater(x: float, y: float) -> float:
    return math.nan if math.isnan(x) or math.isnan(y) else max(x, y)


def _hypot(lengths: Iterable[float]) -> float:
    found = [*lengths]
    return math.nan if any(map(math.isnan, found)) else math.hypot(*found)


def _spread(a: Tensor, b: Tensor) -> Spread:
    if not a.numel():
        return Spread()
    gaps, sizes = _gaps(a, b), _sizes(b)
    is_exact = not (a.is_floating_point() or a.is_complex())
    most = _integers_apart(*map(_widened, (a, b))) if is_exact else float(gaps.max())
    return Spread(most, norm_of(gaps), norm_of(sizes))


def norm_of(lengths: Tensor) -> float:
    """Return the 2-norm of lengths, however large or small their squares are."""
    most = float(lengths.max())
    if not most or not math.isfinite(most):
        return most
    return most * float(lengths.div(most).square().sum().sqrt())


def _gaps(a: Tensor, b: Tensor) -> Tensor:
    """Return how far elements are apart, in float64."""
    if a.is_complex():
        parts = (torch.view_as_real(t.to(torch.complex128)) for t in (a, b))
        return torch.hypot(*_apart(*parts).unbind(-1))
    if a.is_floating_point():
        return _apart(*(_decoded(t).to(torch.float64) for t in (a, b)))
    apart = _wrapped(*map(_widened, (a, b)))
    return apart.to(torch.float64) + (apart < 0) * 2.0**64


def _sizes(t: Tensor) -> Tensor:
    """Return the absolute values of elements in float64, 0 for those not finite."""
    if t.is_complex():
        t = torch.hypot(*torch.view_as_real(t.to(torch.complex128)).unbind(-1))
    elif t.is_floating_point():
        t = _decoded(t)
    sizes = t.to(torch.float64).abs()
    return torch.where(sizes.isfinite(), sizes, 0.0)


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
    return int((_wrapped(x, y) ^ LEAST).max()) - LEAST


def _wrapped(x: Tensor, y: Tensor) -> Tensor:
    """Return how far integers are apart, as the bits of unsigned ones."""
    return torch.maximum(x, y) - torch.minimum(x, y)


E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three bits behind the sign of a float4 stand for."""


def _decoded(t: Tensor) -> Tensor:
    """Return floats that torch converts; of a float4 there are two in a byte."""
    if t.dtype is not torch.float4_e2m1fn_x2:
        return t
    signed = torch.tensor((*E2M1, *(-x for x in E2M1)), device=t.device)
    raw = t.view(torch.uint8)
    return signed[torch.stack([raw & 15, raw >> 4], -1).long()]
