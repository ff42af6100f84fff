"""Hidden folders beside a target, in which it is made; those of the dead are cleared.

A process that is killed leaves its folder, which may be as large as a checkpoint. The
next that writes the same target takes it away, if it is sure that nobody is in there: a
lock on a file in it ends with its process.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

try:
    import fcntl
except ImportError:  # a system without such locks, on which nothing is cleared
    fcntl = None

EARLIER: Final = "earlier"
"""Where in a room there is what was in the target, while that is exchanged."""


@contextmanager
def room_for(path: Path, folder: Path) -> Generator[Path]:
    """Yield a hidden folder to make a target in, which is gone in the end.

    So are those of processes that are dead: before, if they had not begun to move what
    was there, and else when this has come to its end.
    """
    folders = {folder, path.parent}
    left = [*_left(path, folders)]
    _clear(room for room in left if not (room / EARLIER).exists())
    with TemporaryDirectory(prefix=_prefix(path), dir=folder) as room, _held(room):
        yield Path(room)
    _clear(left)


def _prefix(path: Path) -> str:
    return f".{path.name}."


def _mark(room: Path) -> Path:
    """Return the file of a room that is locked by who is in there."""
    return room / f"{room.name}.owner"


@contextmanager
def _held(room: str) -> Generator[None]:
    """Have others know that somebody is in a room, which they see when it is so."""
    mark = _mark(Path(room))
    with mark.with_suffix(".new").open("w") as file:
        file.write(socket.gethostname())
        file.flush()
        if _lock(file.fileno()):
            Path(file.name).replace(mark)  # whoever sees it sees it locked
        yield


def _lock(file: int) -> bool:
    """Return whether a file is locked now; not all disks have locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _left(path: Path, folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the rooms for a target, in which somebody may be or not."""
    for room in (room for folder in folders for room in folder.iterdir()):
        rest = room.name.removeprefix(_prefix(path))
        if rest != room.name and "." not in rest:
            yield room


def _clear(rooms: Iterable[Path]) -> None:
    """Remove those in which a process of this machine was that is dead."""
    for room in rooms:
        try:
            with _mark(room).open("r+") as file:
                if file.read() == socket.gethostname() and _lock(file.fileno()):
                    shutil.rmtree(room)
        except OSError:  # it has no mark, or is not ours, or another clears it
            continue
