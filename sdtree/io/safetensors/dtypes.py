"""The dtypes of the safetensors format: what it calls them, and what torch does."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

DTYPES: Final[dict[torch.dtype, str]] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float4_e2m1fn_x2: "F4",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}
"""What the format calls the dtypes that it shares with torch."""

_OF_TORCH: Final = {name: dtype for dtype, name in DTYPES.items()}
_PACKED: Final = torch.float4_e2m1fn_x2
"""Whose elements are two of the format, side by side in the last dimension."""

BITS: Final[dict[str, int]] = {
    **{name: 8 * dtype.itemsize for dtype, name in DTYPES.items()},
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Of how many bits an element of the format is, also where torch has no such dtype."""


def stored_shape(t: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor as a file tells it.

    >>> stored_shape(torch.zeros(2, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
    (2, 6)
    """
    if t.dtype is not _PACKED:
        return tuple(t.shape)
    return (*t.shape[:-1], 2 * t.shape[-1])


def form_in_torch(
    name: str, shape: tuple[int, ...]
) -> tuple[torch.dtype, tuple[int, ...]] | None:
    """Return dtype and shape that torch has for those of a file, None if it has none.

    >>> form_in_torch("F4", (2, 6)), form_in_torch("F6_E2M3", (4,))
    ((torch.float4_e2m1fn_x2, (2, 3)), None)
    """
    dtype = _OF_TORCH.get(name)
    if dtype is None:
        return None
    if dtype is not _PACKED:
        return dtype, shape
    *outer, last = shape or (1,)
    return None if last % 2 else (dtype, (*outer, last // 2))


def is_unpackable(t: Tensor) -> bool:
    """Return whether a tensor has no dimension along which a file unpacks it."""
    return t.dtype is _PACKED and not t.dim()
