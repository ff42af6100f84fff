"""The bytes of an open file as storages: mapped, or read into memory of their own."""

from __future__ import annotations

import ctypes
import os
from typing import BinaryIO, Final

import torch

from sdtree.errors import FileError
from sdtree.io.disk.target import reopened
from sdtree.io.refusal import gist

SMALL: Final = 2**16
"""Of how many bytes a storage is not worth a view of its memory."""


def size_of(file: BinaryIO) -> int:
    """Return how many bytes a file has."""
    return file.seek(0, os.SEEK_END)


def mapped(file: BinaryIO, shared: bool = False) -> torch.UntypedStorage:
    """Return all of a file as a storage, read when it is looked at.

    It stays that of the open file, whatever takes its place on the disk, and keeps no
    file open. What is written to it goes to the file if it is ``shared``, else nowhere.
    """
    size, path = os.fstat(file.fileno()).st_size, str(reopened(file))
    try:
        whole = torch.from_file(path, shared=shared, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        told = gist(str(error))
        raise OSError(f"{file.name} cannot be mapped: {told}") from error
    return whole.untyped_storage()


def read_at(file: BinaryIO, start: int, size: int) -> torch.UntypedStorage:
    """Return some bytes of a file as a storage of their own."""
    file.seek(start)
    return read_next(file, size)


def read_next(file: BinaryIO, size: int) -> torch.UntypedStorage:
    """Return the next bytes of a file as a storage of their own."""
    storage = torch.UntypedStorage(size, device="cpu")
    fill(storage, file)
    return storage


def fill(storage: torch.UntypedStorage, file: BinaryIO) -> None:
    """Read as many bytes from a file as a storage has."""
    size = storage.nbytes()
    if size < SMALL:
        data = file.read(size)
        ctypes.memmove(storage.data_ptr(), data, len(data))
        done = len(data)
    else:
        done = file.readinto(bytes_of(storage))  # type: ignore[attr-defined]
    if done < size:
        raise FileError(f"it ends {size - done} bytes before the data of a tensor")


def bytes_of(storage: torch.UntypedStorage) -> memoryview:
    """Return the bytes of a storage that has some, to be read and written."""
    room = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    return memoryview(room).cast("B")


def storage_over(room: bytearray) -> torch.UntypedStorage:
    """Return the storage that some memory is, which is kept as long as it is."""
    if not len(room):
        return torch.UntypedStorage(0, device="cpu")
    return torch.frombuffer(room, dtype=torch.uint8).untyped_storage()
