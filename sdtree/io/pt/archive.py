"""The zip archives that torch writes: their records, and the storages in them."""

from __future__ import annotations

import struct
import sys
from typing import Any, BinaryIO, Final
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch

from sdtree.errors import FileError
from sdtree.io.disk.memory import read_at, size_of, storage_over

HEADER: Final = struct.Struct("<4s22xHH")
"""What stands before a record: a mark, and the lengths of two texts that follow."""

ALIGNED: Final = 8
"""Where a record must begin, in bytes, for its data to be used where it is."""

ENCRYPTED: Final = 1
"""The flag of a record that needs a password."""

DENSEST: Final = 100
"""How many times as large as a file that was packed all may be that is in it."""


class Archive:
    """The records of one archive, read from one open file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = size_of(file)
        self.left = self.size
        self.left_packed = self.size * DENSEST
        try:
            self.zip = ZipFile(file)
        except BadZipFile as error:
            raise FileError(f"a damaged zip archive: {error}") from error
        names = self.zip.namelist()
        found = [name for name in names if name.endswith("/data.pkl")]
        if not found:
            raise FileError(f"a zip archive without data.pkl; it holds {names[:3]}")
        self.root = min(found, key=len).removesuffix("data.pkl")
        self.records = {x.filename: x for x in self.zip.infolist()}

    def has(self, name: str) -> bool:
        return self.root + name in self.records

    def record(self, name: str) -> ZipInfo:
        """Return the record of a name."""
        if not self.has(name):
            raise FileError(f"its record {name!r:.40} is missing")
        record = self.records[self.root + name]
        if record.header_offset < 0:
            raise FileError(f"its record {record.filename!r:.60} begins nowhere")
        return record

    def read(self, name: str) -> bytes:
        """Return what a record holds."""
        record = self.record(name)
        if is_packed(record):
            return self.unpacked(record)
        self.file.seek(self.start(record))
        return self.file.read(record.file_size)

    def byte_order(self) -> str:
        """Return in which order the bytes of a number lie, "little" or "big"."""
        order = self.read("byteorder") if self.has("byteorder") else b"little"
        if order not in (b"little", b"big"):
            raise FileError(f"its byte order is {order!r:.40}, and no such is known")
        return order.decode()

    def unpacked(self, record: ZipInfo) -> bytes:
        """Return what a record holds that torch did not write: it is compressed."""
        if record.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise FileError(f"its record {record.filename!r:.60} is oddly compressed")
        self.left_packed -= record.file_size
        if record.compress_size > self.size:
            raise FileError(f"its record {record.filename!r:.60} is not all there")
        if self.left_packed < 0:
            raise FileError("its records are compressed, and too large for the file")
        return self.zip.read(record)

    def start(self, record: ZipInfo) -> int:
        """Return where the data of a record begins, which lies whole in the file."""
        self.file.seek(record.header_offset)
        self.left -= record.compress_size
        if self.left < 0:
            raise FileError("its records lie over each other")
        mark, *lengths = HEADER.unpack(self.file.read(HEADER.size))
        start = record.header_offset + HEADER.size + sum(lengths)
        if mark != b"PK\3\4" or start + record.file_size > self.size:
            raise FileError(f"its record {record.filename!r:.60} is not all there")
        return start


def is_packed(record: ZipInfo) -> bool:
    """Return whether a record is compressed, or may not be read as it is."""
    return record.compress_type != ZIP_STORED or record.flag_bits & ENCRYPTED != 0


class ZipStorages:
    """The storages of an archive, each found once: mapped where that is given.

    Those whose bytes are to be swapped are not: what is written to a mapped page is
    gone when the page is given back.
    """

    def __init__(
        self, archive: Archive, device: torch.device, whole: torch.UntypedStorage | None
    ) -> None:
        self.archive = archive
        self.device = device
        self.whole = whole
        self.is_swapped = archive.byte_order() != sys.byteorder
        self.found: dict[str, torch.UntypedStorage] = {}

    def find(self, key: Any, dtype: torch.dtype, count: int) -> torch.UntypedStorage:
        """Return the storage under a key, which has so many elements."""
        if key not in self.found:
            self.found[key] = self._load(self.archive.record(f"data/{key}"), dtype)
        storage = self.found[key]
        if storage.nbytes() < count * dtype.itemsize:
            told = f"{count} elements in the {storage.nbytes()} bytes of data/{key}"
            raise FileError(told)
        return storage

    def _load(self, record: ZipInfo, dtype: torch.dtype) -> torch.UntypedStorage:
        if self.device.type == "meta":
            return torch.UntypedStorage(record.file_size, device=self.device)
        storage = self._held(record)
        if self.is_swapped:
            storage.byteswap(dtype)
        return storage if self.device.type == "cpu" else storage.to(device=self.device)

    def _held(self, record: ZipInfo) -> torch.UntypedStorage:
        """Return what a record holds: where it lies in the file, or read from there."""
        if is_packed(record):
            return storage_over(bytearray(self.archive.unpacked(record)))
        start, size = self.archive.start(record), record.file_size
        if self.whole is None or self.is_swapped or start % ALIGNED:
            return read_at(self.archive.file, start, size)
        return self.whole[start : start + size]
