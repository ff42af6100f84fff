"""What torch wrote before it wrote zip archives: pickles, and then the storages."""

from __future__ import annotations

import sys
from typing import Any, BinaryIO, Final

import torch

from sdtree.errors import FileError, one_of
from sdtree.io.disk.memory import fill, size_of

MAGIC: Final = 0x1950A86A20F9469CFC6C


class OldStorages:
    """The storages of a file, made when they are named, and filled in the end."""

    def __init__(self, file: BinaryIO, device: torch.device) -> None:
        self.file = file
        self.device = device
        self.left = size_of(file)
        self.found: dict[Any, torch.UntypedStorage] = {}
        self.dtypes: dict[Any, torch.dtype] = {}
        self.views: dict[Any, torch.UntypedStorage] = {}

    def find(
        self, key: Any, dtype: torch.dtype, count: int, view: Any = None
    ) -> torch.UntypedStorage:
        """Return the storage under a key, or a view into it."""
        if key not in self.found:
            self.left -= count * dtype.itemsize
            if self.left < 0:
                raise FileError("it has less data than its tensors")
            nbytes = count * dtype.itemsize
            self.found[key] = torch.UntypedStorage(nbytes, device=self.device)
            self.dtypes[key] = dtype
        storage = self.found[key]
        if self.dtypes[key] != dtype or storage.nbytes() != count * dtype.itemsize:
            raise FileError(f"two storages under the key {key!r:.40}")
        return storage if view is None else self._view(storage, dtype, *view)

    def _view(
        self, storage: torch.UntypedStorage, dtype: torch.dtype, key: Any, *place: Any
    ) -> torch.UntypedStorage:
        start, count = place
        if type(key) not in (str, int):
            raise FileError(f"a view of a storage under {one_of(type(key))}")
        if not 0 <= start <= start + count <= storage.nbytes() // dtype.itemsize:
            raise FileError(f"a view of {count} elements at {start} beyond its storage")
        if (key, start, count) not in self.views:
            stop = start + count
            part = storage[start * dtype.itemsize : stop * dtype.itemsize]
            self.views[key, start, count] = part
        return self.views[key, start, count]

    def fill(self, keys: Any) -> None:
        """Read the data of the storages, which stands in the order of their keys."""
        are_keys = all(type(key) in (str, int) for key in keys)
        if not are_keys or sorted(map(str, keys)) != sorted(map(str, self.found)):
            raise FileError("it has not the data of the tensors that it names")
        for key in keys:
            storage, dtype = self.found[key], self.dtypes[key]
            head = self.file.read(8)
            count = int.from_bytes(head, "little")
            if len(head) < 8 or count * dtype.itemsize != storage.nbytes():
                raise FileError(f"{count} elements for {storage.nbytes()} bytes")
            self._read(storage, dtype)

    def _read(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        is_here = storage.device.type == "cpu"
        data = (
            storage if is_here else torch.UntypedStorage(storage.nbytes(), device="cpu")
        )
        fill(data, self.file)
        if sys.byteorder == "big":
            data.byteswap(dtype)
        if not is_here and storage.device.type != "meta":
            storage.copy_(data)
