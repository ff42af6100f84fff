"""The checksums of a zip archive whose records were filled after it was laid out.

torch does not look at them, but unzip and whatever else opens such a file does.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile, ZipInfo

CHUNK_BYTES = 2**20
DESCRIPTOR = b"PK\x07\x08"
"""What stands between the bytes of a record and the first place of its checksum."""


def write_checksums(path: Path) -> None:
    """Write the checksum of each record that has none, in both of its places."""
    with path.open("r+b") as file, ZipFile(file) as archive:
        entry = archive.start_dir
        for record in archive.infolist():
            if record.file_size and not record.CRC:
                _write_checksum(file, record, entry)
            entry += 46 + sum(_lengths(file, entry + 28, "<3H"))


def _write_checksum(file: BinaryIO, record: ZipInfo, entry: int) -> None:
    """Write a checksum after the record, and into its entry of the directory."""
    names = sum(_lengths(file, record.header_offset + 26, "<2H"))
    file.seek(record.header_offset + 30 + names)
    checksum, left = 0, record.file_size
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    if file.read(4) == DESCRIPTOR:
        file.seek(0, 1)
        file.write(struct.pack("<I", checksum))
    file.seek(entry + 16)
    file.write(struct.pack("<I", checksum))


def _lengths(file: BinaryIO, place: int, form: str) -> tuple[int, ...]:
    file.seek(place)
    return struct.unpack(form, file.read(struct.calcsize(form)))
