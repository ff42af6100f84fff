"""How far the elements of two numpy arrays are apart, whatever dtype these have."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdtree.tensors.bits import Distance, Gap, differing, distance, largest

Array = np.ndarray[Any, Any]
Part = tuple[Array, Tensor]
"""An array, and the tensor over its memory, which may be one of bytes."""


def gap_between_parts(ours: Sequence[Part], theirs: Sequence[Part]) -> Gap:
    """Return how far two arrays are apart that have other arrays beside them.

    What stands in one place of arrays of one shape, as an element and whether it is
    masked, is one element.
    """
    places: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    apart: list[Distance] = []
    for (x, t), (y, u) in zip(ours, theirs, strict=True):
        differs = differing(t, u)
        differs = differs.any(-1) if t.dim() > x.ndim else differs
        places[x.shape].append(differs)
        apart.append(_distance(x, y) if differs.any() else 0)
    count = sum(int(torch.stack(found).any(0).sum()) for found in places.values())
    return Gap(count, largest(apart), sum(map(math.prod, places)))


def _distance(x: Array, y: Array) -> Distance:
    """Return by how much arrays differ at most: integers exactly, moments in counts."""
    native = x.dtype.newbyteorder("=")
    x, y = (np.array(a, native, subok=False, order="C") for a in (x, y))
    match native.kind:
        case "m" | "M":
            gone = bool((np.isnat(x) != np.isnat(y)).any())
            return math.nan if gone else _of_tensors(x.view("i8"), y.view("i8"))
        case "f" | "c" if native.char in "gG":
            most = _apart(x, y).max()
            return max(float(most), math.ulp(0.0)) if most else 0.0
        case "b" | "i" | "u" | "f" | "c":
            return _of_tensors(x, y)
        case _:
            return None


def _of_tensors(x: Array, y: Array) -> Distance:
    return distance(torch.from_numpy(x), torch.from_numpy(y))


def _apart(x: Array, y: Array) -> Any:
    """Return how far long doubles are apart; inf and inf, nan and nan are not."""
    if np.iscomplexobj(x):
        return np.hypot(_apart(x.real, y.real), _apart(x.imag, y.imag))
    with np.errstate(all="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        return np.where(same, 0, abs(x - y))
