"""Where a file goes: written beside its place, and put there when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sdtree.errors import FileError, one_of
from sdtree.io.disk.room import room_for

Source = str | os.PathLike[str]


def path_of(source: Source, verb: str) -> Path:
    """Return the path of a file; raise for what is none, or names none."""
    if isinstance(source, (str, os.PathLike)):
        check_name(source, verb)
        return Path(source)
    what = "an open file" if hasattr(source, "read") else one_of(type(source))
    raise TypeError(f"{verb} takes the path of a file, not {what}; give its name")


def check_name(source: Source, verb: str) -> None:
    """Raise ``FileError`` if a name can be that of no file."""
    name = os.fspath(source)
    if not name or "\0" in name:
        raise FileError(f"{verb}: no file has the name {name!r}; give another")


@contextmanager
def replacing(target: Source) -> Generator[Path]:
    """Yield a path to write to, which takes the place of ``target`` in the end.

    Until then, and on any failure, ``target`` stays what it was. Where it is a link,
    the file behind it is replaced.
    """
    path = Path(os.path.realpath(target))
    if path.is_dir():
        raise IsADirectoryError(
            f"{target} is a directory; give the name of a file, or shard_bytes= for "
            "shards in it"
        )
    check_place(path, target)
    with room_for(path, path.parent) as room:
        temporary = room / path.name
        yield temporary
        like = path
        if not path.exists():
            like = room / "mode"  # that of a new file, which the umask tells
            like.touch()
        shutil.copymode(like, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


def check_place(path: Path, target: Source) -> None:
    """Raise unless there is a place where a file or a folder may be written."""
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{target}: there is no directory {path.parent}; make it first"
        )
    for place in (path, path.parent):
        if place.exists() and _is_read_only(place):
            raise PermissionError(f"{target} was not written: {place} is read-only")


def _is_read_only(path: Path) -> bool:
    """Return whether a path is not to be written, for the superuser too."""
    return not os.access(path, os.W_OK) or not path.stat().st_mode & 0o222


def reserve(file: BinaryIO, size: int) -> None:
    """Give a file its size, and room on the disk: there may be none later."""
    file.truncate(size)
    file.flush()
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


def reopened(file: BinaryIO) -> Path:
    """Return a path under which the very file that is open is opened once more.

    Whatever has taken its place meanwhile. A system that has no such paths keeps the
    place of a file that is open.
    """
    for folder in (Path("/proc/self/fd"), Path("/dev/fd")):
        if folder.exists():
            return folder / str(file.fileno())
    return Path(file.name)
