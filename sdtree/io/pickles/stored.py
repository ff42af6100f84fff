"""Storages in a pickle, and the tensors that lie in them, seen to lie in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from sdtree.errors import FileError
from sdtree.io.pickles.foreign import Foreign
from sdtree.tree.plain_json import FAR

STORAGES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "UntypedStorage": torch.uint8,
}
"""How pickles call the storages of each dtype."""


class Stored(Foreign):
    """A storage: what tensors are made of, and by itself no leaf that is known."""

    __slots__ = ("dtype", "storage")

    def __init__(
        self, name: str, storage: torch.UntypedStorage, dtype: torch.dtype
    ) -> None:
        raw = torch.empty(0, dtype=torch.uint8, device=storage.device)
        super().__init__(name, (raw.set_(storage),))
        self.storage = storage
        self.dtype = dtype

    def empty(self, dtype: torch.dtype) -> Tensor:
        """Return a tensor of no elements where the storage is."""
        return torch.empty(0, dtype=dtype, device=self.storage.device)


def as_numbers(*groups: Any) -> list[tuple[int, ...]]:
    """Return groups of numbers as tuples, seen to be sizes, strides or offsets."""
    found = [tuple(group) for group in groups]
    for number in (number for group in found for number in group):
        if type(number) is not int or not 0 <= number < FAR:
            raise FileError(f"a tensor with a size or stride of {number!r:.40}")
    return found


def check_lies(
    offset: int, size: Sequence[int], stride: Sequence[int], room: int
) -> None:
    """Raise unless a tensor lies in as many elements as there is room for."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
    is_odd = len(size) != len(stride) or math.prod(size) >= FAR
    if is_odd or (0 not in size and last >= room):
        raise FileError(
            f"a tensor of shape {size} and stride {stride} at {offset}, beyond the "
            f"{room} elements of its storage"
        )


def lying(empty: Tensor, stored: Stored, offset: Any, size: Any, stride: Any) -> Tensor:
    """Return an empty tensor made one that lies in a storage."""
    (offset,), size, stride = as_numbers([offset], size, stride)
    check_lies(offset, size, stride, stored.storage.nbytes() // empty.itemsize)
    return empty.set_(stored.storage, offset, size, stride)
