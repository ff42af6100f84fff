"""The bytes of an open file as storages: mapped, or read into memory of their own."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import BinaryIO

import torch

from sdtree.errors import FileError


def size_of(file: BinaryIO) -> int:
    """Return how many bytes a file has."""
    return file.seek(0, os.SEEK_END)


def mapped(file: BinaryIO, shared: bool = False) -> torch.UntypedStorage:
    """Return all of a file as a storage, read when it is looked at.

    It stays that of the open file, whatever takes its place on the disk. What is
    written to it goes to the file if it is ``shared``, else nowhere.
    """
    access = mmap.ACCESS_WRITE if shared else mmap.ACCESS_COPY
    return storage_over(mmap.mmap(file.fileno(), 0, access=access))


def storage_over(room: bytearray | mmap.mmap) -> torch.UntypedStorage:
    """Return the storage that some memory is, which is kept as long as it is."""
    if not len(room):
        return torch.UntypedStorage(0, device="cpu")
    return torch.frombuffer(room, dtype=torch.uint8).untyped_storage()


def read_at(file: BinaryIO, start: int, size: int) -> torch.UntypedStorage:
    """Return some bytes of a file as a storage of their own."""
    storage = torch.UntypedStorage(size, device="cpu")
    file.seek(start)
    fill(storage, file)
    return storage


def fill(storage: torch.UntypedStorage, file: BinaryIO) -> None:
    """Read as many bytes from a file as a storage has."""
    size = storage.nbytes()
    room = (ctypes.c_char * size).from_address(storage.data_ptr()) if size else b""
    left = memoryview(room).cast("B")
    while left:
        count = file.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise FileError(f"it ends {len(left)} bytes before the data of a tensor")
        left = left[count:]
