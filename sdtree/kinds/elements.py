"""How far the elements of two numpy arrays are apart, whatever dtype these have."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sdtree.tensors.bits import (
    Gap,
    Spread,
    Tolerance,
    differing,
    norm_of,
    outside,
    spread_between,
)

Array = np.ndarray[Any, Any]
Part = tuple[Array, Tensor]
"""An array, and the tensor over its memory, which may be one of bytes."""


LONG: Final = 10 if np.finfo(np.longdouble).nmant == 63 else np.longdouble().itemsize
"""How many bytes of a long double are its own; behind them there may be anything."""


def told_alone(x: Array) -> Array:
    """Return an array without what lies between its fields, or behind long doubles.

    Law: arrays of one dtype have the same bytes then if all that they hold is the same.

    >>> told_alone(np.ones(2)).tolist()
    [1.0, 1.0]
    """
    tells = _tells(x.dtype)
    if all(tells):
        return x
    made = np.array(x, order="C", subok=True)
    raw = np.ndarray.view(made, np.ndarray)[..., None].view("u1")
    raw[..., ~np.array(tells)] = 0
    return made


@lru_cache(maxsize=1024)
def _tells(dtype: np.dtype[Any]) -> tuple[bool, ...]:
    """Return of each byte of an element whether it tells anything."""
    if dtype.subdtype is not None:
        inner, shape = dtype.subdtype
        return _tells(inner) * math.prod(shape)
    if dtype.fields is not None:
        told = np.zeros(dtype.itemsize, bool)
        for inner, start, *_ in dtype.fields.values():
            told[start : start + inner.itemsize] |= _tells(inner)
        return tuple(told.tolist())
    if dtype.char not in "gG":
        return (True,) * dtype.itemsize
    size = np.longdouble().itemsize
    one = (True,) * LONG + (False,) * (size - LONG)
    return (one if dtype.isnative else one[::-1]) * (dtype.itemsize // size)


def gap_between_parts(
    ours: Sequence[Part], theirs: Sequence[Part], tolerance: Tolerance | None
) -> Gap:
    """Return how far two arrays are apart that have other arrays beside them.

    What stands in one place of arrays of one shape, as an element and whether it is
    masked, is one element.
    """
    places: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    beyond: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    spreads: list[Spread] = []
    for (x, t), (y, u) in zip(ours, theirs, strict=True):
        differs = differing(t, u)
        differs = differs.any(-1) if t.dim() > x.ndim else differs
        places[x.shape].append(differs)
        beyond[x.shape].append(_outside(x, y, differs, tolerance))
        spreads.append(_spread(x, y, bool(differs.any())))
    every, far = map(_in_any, (places, beyond))
    return Gap.counted(every, far, Spread.joined(spreads))


def _in_any(places: Mapping[tuple[int, ...], Sequence[Tensor]]) -> Tensor:
    """Return of each place whether it is marked by any of those who look at it."""
    return torch.cat(
        [torch.stack([*each]).any(0).flatten() for each in places.values()]
    )


def _native(x: Array) -> Array:
    return np.array(x, x.dtype.newbyteorder("="), subok=False, order="C")


def _spread(x: Array, y: Array, differs: bool) -> Spread:
    """Return by how much arrays differ: integers exactly, moments in counts."""
    x, y = map(_native, (x, y))
    match x.dtype.kind:
        case "m" | "M":
            gone = bool((np.isnat(x) != np.isnat(y)).any())
            found = _of_tensors(x.view("i8"), y.view("i8"))
            return found._replace(most=math.nan, norm=math.nan) if gone else found
        case "f" | "c" if x.dtype.char in "gG":
            return _of_long(_apart(x, y), y)
        case "b" | "i" | "u" | "f" | "c":
            return _of_tensors(x, y)
        case _:
            return Spread(None) if differs else Spread()


def _of_long(gaps: Array, y: Array) -> Spread:
    """Return by how much long doubles differ, of which float64 cannot hold all."""
    with np.errstate(all="ignore"):
        sizes = np.where(np.isfinite(y), abs(y), 0)
        lengths = [torch.from_numpy(z.astype("f8").reshape(-1)) for z in (gaps, sizes)]
    most = max(float(gaps.max()), math.ulp(0.0)) if gaps.any() else 0.0
    return Spread(most, *(norm_of(x) if x.numel() else 0.0 for x in lengths))


def _of_tensors(x: Array, y: Array) -> Spread:
    x, y = (z.view(z.dtype.str) for z in (x, y))  # torch knows one of two such types
    return spread_between(torch.from_numpy(x), torch.from_numpy(y))


def _outside(
    x: Array, y: Array, differs: Tensor, tolerance: Tolerance | None
) -> Tensor:
    """Return of each element whether it differs by more than a tolerance."""
    if tolerance is None or x.dtype.kind not in "fc":
        return differs
    x, y = map(_native, (x, y))
    if x.dtype.char not in "gG":
        return outside(torch.from_numpy(x), torch.from_numpy(y), differs, tolerance)
    sizes = np.where(np.isfinite(y), abs(y), 0)
    far = ~(_apart(x, y) <= tolerance.atol + tolerance.rtol * sizes)
    return differs & torch.from_numpy(np.asarray(far))


def _apart(x: Array, y: Array) -> Any:
    """Return how far long doubles are apart; inf and inf, nan and nan are not."""
    if np.iscomplexobj(x):
        return np.hypot(_apart(x.real, y.real), _apart(x.imag, y.imag))
    with np.errstate(all="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        return np.where(same, 0, abs(x - y))
