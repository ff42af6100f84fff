"""Fresh tensors: many of one form, made at once of what has come for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Final

import torch
from torch import Tensor

from sdtree.tensors.storage import dense_strides
from sdtree.wire.messages import Chunk, Column

_apart: Callable[[Tensor], Sequence[Tensor]] = torch.unbind_copy  # pyright: ignore[reportAssignmentType]

BLOCK: Final = 2**20
"""About how many bytes are put together at a time: no more than stay at hand."""


class Fresh(Column):
    """Tensors of one form that are not there until all parts of them have come.

    Law: each has a storage of its own, and the parts that came where they belong. To
    put some together and have torch copy them apart takes half as long as to make each,
    and to copy part by part into it.

    >>> fresh = Fresh(2, (2,), torch.float32)
    >>> part = Chunk((1,), torch.float32, 2, fresh, (1,))
    >>> part.receive(torch.ones(2, 1))
    >>> part._replace(offset=(0,)).take([torch.zeros(1), torch.ones(1)])
    >>> fresh.made()
    [tensor([0., 1.]), tensor([1., 1.])]
    """

    __slots__ = ("_come", "_count", "_dtype")

    def __init__(self, count: int, size: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__((), size)
        self._count, self._dtype = count, dtype
        self._come: list[tuple[Chunk, Callable[[slice], Tensor]]] = []

    def take(self, part: Chunk, own: Sequence[Tensor]) -> None:
        """Note what is here of a part; it must stay as it is until all are made."""
        self._come.append((part, lambda rows: torch.stack([*own[rows]])))

    def receive(self, part: Chunk, come: Tensor) -> None:
        """Note what has come of a part; it must stay as it is until all are made."""
        self._come.append((part, come.__getitem__))

    def made(self) -> list[Tensor]:
        """Return the tensors; what had come is let go of."""
        come, self._come = self._come, []
        size, found = self.size or (), list[Tensor]()
        step = max(1, BLOCK // max(1, prod(size) * self._dtype.itemsize))
        rows = min(step, self._count), *size
        room = torch.empty(rows, dtype=self._dtype, device="cpu")
        for start in range(0, self._count, step):
            block = room[: self._count - start]
            for part, rows in come:
                _put(block, part, rows(slice(start, start + step)))
            found += _apart(block)
        return found


def _put(block: Tensor, part: Chunk, data: Tensor) -> None:
    """Copy a part of each of some tensors to where it belongs in a block of them."""
    size, strides, start = part.within(dense_strides(block.shape[1:]))
    size, strides = (len(block), *size), (block.stride(0), *strides)
    block.as_strided(size, strides, start).copy_(data)
