"""Slabs: one stretch of host memory for many tensors, allocated at once.

In a slab that is shared all tensors lie in one storage, so that one descriptor goes to
another process. Where its tensors begin is written at its end: there, too, it is seen
which of them are tied and which only lie side by side.
"""

from __future__ import annotations

import ctypes
import os
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, UntypedStorage

LINE: Final = 64
"""Where a tensor begins in a slab: at a multiple, as torch's own memory does."""

MARK: Final = b"sdtree slab of 1"
"""What a shared slab ends with, behind a table of starts and their number."""


def padded(size: int) -> int:
    """Return how many bytes of a slab so many take.

    >>> padded(1), padded(64), padded(0)
    (64, 64, 0)
    """
    return -(-size // LINE) * LINE


@dataclass(slots=True)
class Slab:
    """Memory that tensors are made in, one after the other.

    Law: each has the size and strides that were asked for and overlaps no other. What
    is not shared has a storage of its own, which keeps the slab alive.
    """

    size: int
    pin: bool = False
    share: bool = False
    memory: Any = None
    storage: UntypedStorage | None = None
    starts: list[int] = field(default_factory=list[int])
    used: int = 0

    @classmethod
    def of(cls, sizes: Sequence[int], *, pin: bool, share: bool) -> Slab:
        """Return a slab for tensors of so many bytes each."""
        size = sum(map(padded, sizes))
        count = sum(map(bool, sizes))
        if share and size:
            storage = shared_storage(size + 8 * count + 8 + len(MARK))
            return cls(size, pin, share, storage=storage)
        room = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pin)
        memory: Any = (ctypes.c_ubyte * size).from_address(room.data_ptr())
        memory.owner = room
        return cls(size, pin, share, memory=memory)

    def strided(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return an unfilled contiguous tensor of the strides of ``like``."""
        flat = self.dense((like.numel(),), like, dtype)
        return flat.as_strided(like.size(), like.stride())

    def dense(self, size: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return an unfilled contiguous tensor."""
        count = prod(size)
        if not count:
            return torch.empty(size, dtype=dtype, device="cpu")
        start, self.used = self.used, self.used + padded(count * dtype.itemsize)
        self.starts.append(start)
        return self._at(start, count, dtype).view(tuple(size))

    def _at(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        if self.storage is None:
            return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=start)
        bare = torch.empty(0, dtype=dtype, device="cpu")
        return bare.set_(self.storage, start // dtype.itemsize, (count,), (1,))

    def close(self) -> None:
        """Write down where the tensors begin; no more are made."""
        if self.storage is not None:
            _mark(self.storage, self.starts)


def rows_of(
    count: int, size: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Return an unfilled tensor of so many rows on the host, and each of these.

    Law: a row has a storage of its own, and shows what is written to the whole.

    >>> whole, rows = rows_of(2, (3,), torch.int8)
    >>> whole.copy_(torch.arange(6).view(2, 3)), rows[1], rows[1].storage_offset()
    (tensor([[0, 1, 2],
            [3, 4, 5]], dtype=torch.int8), tensor([3, 4, 5], dtype=torch.int8), 0)
    """
    nbytes = prod(size) * dtype.itemsize
    slab = Slab.of([nbytes] * count, pin=False, share=False)
    step, memory = padded(nbytes), slab.memory
    flat = [slab._at(k * step, prod(size), dtype) for k in range(count)]
    every = memory.owner.view(count, step).view(dtype)
    return every[:, : prod(size)].view(count, *size), [t.view(size) for t in flat]


def shared_storage(size: int) -> UntypedStorage:
    """Return a storage that other processes can map, of one descriptor.

    Its file has no name where the system has such, so that nothing is left of it
    however its owners end, nor is it bound by the size of ``/dev/shm``.
    """
    if not hasattr(os, "memfd_create"):
        return UntypedStorage._new_shared(size, device="cpu")
    descriptor = os.memfd_create("sdtree")
    try:
        os.ftruncate(descriptor, size)
        made: Any = UntypedStorage
        return made._new_shared_fd_cpu(descriptor, size)
    finally:
        os.close(descriptor)


# -- where tensors begin -----------------------------------------------------------


def _mark(storage: UntypedStorage, starts: Sequence[int]) -> None:
    """Write the table of starts at the end of a shared slab."""
    table = (ctypes.c_int64 * (len(starts) + 1))(*starts, len(starts))
    end = storage.data_ptr() + storage.nbytes() - len(MARK)
    ctypes.memmove(end - ctypes.sizeof(table), table, ctypes.sizeof(table))
    ctypes.memmove(end, MARK, len(MARK))


def starts_in(storage: UntypedStorage) -> Sequence[int]:
    """Return where tensors begin in a storage, nothing unless it is a shared slab.

    >>> starts_in(torch.ones(2).untyped_storage())
    ()
    """
    size = storage.nbytes() - len(MARK) - 8
    if size < 0 or storage.device.type != "cpu" or not storage.is_shared():
        return ()
    end = storage.data_ptr() + size
    if ctypes.string_at(end + 8, len(MARK)) != MARK:
        return ()
    count = ctypes.c_int64.from_address(end).value
    if not 0 <= 8 * count <= size:
        return ()
    table: Any = (ctypes.c_int64 * count).from_address(end - 8 * count)
    return table  # looked into, not copied


def place_in(starts: Sequence[int], offset: int) -> tuple[int, int]:
    """Return between which starts this byte of a slab lies, the last one open.

    >>> place_in([0, 64, 128], 72)
    (64, 128)
    """
    i = max(bisect_right(starts, offset), 1)
    return starts[i - 1], starts[i] if i < len(starts) else sys.maxsize
