"""Where a file goes: written beside its place, and put there when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sdtree.errors import FileError, one_of
from sdtree.io.hf.finding import weights_in
from sdtree.io.refusal import in_short
from sdtree.io.room import room_for

Source = str | os.PathLike[str]

SUFFIXES = {
    ".pt": "pt",
    ".pth": "pt",
    ".bin": "pt",
    ".ckpt": "pt",
    ".pth.tar": "pt",
    ".safetensors": "safetensors",
}


def path_of(source: Source, verb: str) -> Path:
    """Return the path of a file; raise for what is none, or names none."""
    if isinstance(source, (str, os.PathLike)):
        _check_name(source, verb)
        return Path(source)
    what = "an open file" if hasattr(source, "read") else one_of(type(source))
    raise TypeError(f"{verb} takes the path of a file, not {what}; give its name")


def _check_name(source: Source, verb: str) -> None:
    name = os.fspath(source)
    if not name or "\0" in name:
        raise FileError(f"{verb}: no file has the name {name!r}; give another")


HUB = "huggingface"
"""The format of folders of shards."""

METADATA = ".metadata"
"""The file of DCP that tells of the others."""

DCP = "dcp"
"""The format of the directories of torch.distributed.checkpoint."""


def format_for(target: Source, shard_bytes: int = 0) -> str:
    """Return the format to write, which the suffix of a file tells.

    With ``shard_bytes`` it is a folder, and without a suffix a directory of DCP.
    """
    if not isinstance(target, (str, os.PathLike)):
        raise TypeError(
            f"save takes the tree first, and then the path of a file, here a "
            f"{type(target).__name__}; write sd.save(tree, 'state.pt')"
        )
    _check_name(target, "save")
    name = os.fspath(target).lower()
    found = next((SUFFIXES[suffix] for suffix in SUFFIXES if name.endswith(suffix)), "")
    if shard_bytes and (found or Path(target).is_file()):
        raise FileError(
            f"{target}: shard_bytes=, on the command line --shard-size, writes shards "
            "into a folder, and this is the name of a file; give that of a folder, or "
            "leave it out"
        )
    if shard_bytes:
        _check_free(Path(target), [METADATA] * (Path(target) / METADATA).is_file())
    if found or shard_bytes:
        return found or HUB
    if not Path(target).suffix or (Path(target) / METADATA).is_file():
        if Path(target).is_file():
            raise FileError(
                f"{target}: a name without a suffix is that of a directory, and this "
                "is a file; give another, or a suffix"
            )
        _check_free(Path(target), weights_in(Path(target)))
        return DCP
    raise FileError(
        f"{target}: the suffix tells no format to write; use one of "
        f"{', '.join(SUFFIXES)}, or none for a directory of DCP, or give the size of "
        "shards, for a folder of them, as shard_bytes= or on the command line "
        "--shard-size"
    )


def _check_free(folder: Path, others: Sequence[str]) -> None:
    """Raise ``FileError`` if a folder has a checkpoint of another format."""
    if others:
        raise FileError(
            f"{folder} holds a checkpoint of another format, {in_short(others[0])}; "
            "give another folder, with shard_bytes= for shards and without for DCP, "
            "or on the command line --shard-size"
        )


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
