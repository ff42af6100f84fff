"""Files that tell how far they have been read or written."""

from __future__ import annotations

from io import BufferedReader, BufferedWriter, FileIO
from pathlib import Path
from typing import Any, Final, NamedTuple

from sdtree.tensors.counting import UNHEARD, Count

PIECE: Final = 2**24
"""How many bytes pass in one go, so that a large tensor is told of in between."""


class Place(NamedTuple):
    """Where files lie that are read together, and what counts the bytes done."""

    path: Path
    done: Count = UNHEARD


class _Counted(FileIO):
    """A file whose bytes are counted as they pass."""

    def __init__(self, path: Path, mode: str, count: Count) -> None:
        super().__init__(path, mode)
        self._count = count

    def readinto(self, buffer: Any, /) -> int:
        done = super().readinto(memoryview(buffer).cast("B")[:PIECE])
        self._count.add(done)
        return done

    def write(self, b: Any, /) -> int:
        done = super().write(memoryview(b).cast("B")[:PIECE])
        self._count.add(done)
        return done


def reading(path: Path, count: Count) -> BufferedReader:
    """Return a file that is open to be read, its bytes counted if anyone is told."""
    if not count.is_heard:
        return path.open("rb")
    return BufferedReader(_Counted(path, "rb", count))


def writing(path: Path, count: Count) -> BufferedWriter:
    """Return a file that is open to be written, its bytes counted if anyone is told."""
    if not count.is_heard:
        return path.open("wb")
    return BufferedWriter(_Counted(path, "wb", count))
