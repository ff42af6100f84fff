"""Where shards go: written beside their place, and moved there when all are."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sdtree.io.disk.room import EARLIER, room_for
from sdtree.io.disk.target import Source, check_place
from sdtree.io.hf.finding import INDEX, is_index, set_of
from sdtree.io.hf.splitting import PATTERN

Test = Callable[[Path], bool]


def replacing_weights(target: Source) -> AbstractContextManager[Path]:
    """Yield a folder to write to, whose files take the place of the weights in target.

    While files are moved the index is not there, nor is a tree.
    """
    return replacing_files(target, _is_weights, is_index)


@contextmanager
def replacing_files(target: Source, is_ours: Test, is_head: Test) -> Generator[Path]:
    """Yield a folder to write to, whose files take the place of ours in ``target``.

    Until then, and on any failure, those stay what they were; other files there always
    do. The head of them, without which they are nothing, goes first and comes last.
    """
    path = Path(os.path.realpath(target))
    check_place(path, target)
    _check_files(path, is_ours)
    room_in = path if path.is_dir() else path.parent
    with room_for(path, room_in) as room:
        made = room / path.name
        made.mkdir()
        yield made
        for each in made.iterdir():
            with each.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir():
            old = sorted(filter(is_ours, path.iterdir()), key=is_head, reverse=True)
            new = sorted(made.iterdir(), key=is_head)
            _exchange(path, old, new, room / EARLIER)
        else:
            made.rename(path)


def _check_files(folder: Path, is_ours: Test) -> None:
    """Raise if something that is to be replaced is a folder, of whatever is in it."""
    for each in filter(is_ours, folder.iterdir() if folder.is_dir() else ()):
        if each.is_dir() and not each.is_symlink():
            raise IsADirectoryError(
                f"{each} is a directory, where a file is to be; nothing was written: "
                "move it, or give another folder"
            )


def _exchange(
    path: Path, old: Sequence[Path], new: Sequence[Path], earlier: Path
) -> None:
    """Put new files in the place of the old ones in a folder, or none."""
    earlier.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for source, folder in [*((f, earlier) for f in old), *((f, path) for f in new)]:
            source.rename(folder / source.name)
            moved.append((source, folder / source.name))
    except BaseException:
        for source, place in reversed(moved):
            place.rename(source)
        raise


def _is_weights(path: Path) -> bool:
    """Return whether a file is one of those that are written here."""
    name = path.name.removesuffix(INDEX)
    parts = set_of(name)
    stem, suffix = PATTERN.split("{suffix}")
    return name == stem + suffix or bool(
        parts and (parts[0], parts[2]) == (stem, suffix)
    )
