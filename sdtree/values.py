"""When two plain values are the same: of one type, and alike in every bit."""

from __future__ import annotations

import struct
from typing import Any

from torch import Tensor

from sdtree.bits import same_bits


def same_value(a: Any, b: Any) -> bool:
    """Return whether two values have one type and the same bits; nan equals nan.

    >>> nan = float("nan")
    >>> same_value(nan, nan), same_value(0.0, -0.0), same_value(1, True)
    (True, False, False)
    """
    if type(a) is not type(b):
        return False
    if isinstance(a, (float, complex)):
        return _bits(a) == _bits(b)
    if hasattr(a, "tobytes"):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, Tensor):
        return same_bits(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_value(a[k], b[k]) for k in a)
    return bool(a == b)


def _bits(x: complex) -> bytes:
    return struct.pack("<dd", x.real, x.imag)
