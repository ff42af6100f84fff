"""Where shards go: written beside their place, and moved there when all are."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sdtree.io.hf.finding import INDEX, is_index, set_of
from sdtree.io.hf.splitting import PATTERN
from sdtree.io.target import Source, check_place


@contextmanager
def replacing_weights(target: Source) -> Generator[Path]:
    """Yield a folder to write to, whose files take the place of the weights in target.

    Until then, and on any failure, the weights in ``target`` stay what they were; other
    files there always do. While files are moved the index is not there, nor is a tree.
    """
    path = Path(os.path.realpath(target))
    check_place(path, target)
    room_in = path if path.is_dir() else path.parent
    with TemporaryDirectory(prefix=f".{path.name}.", dir=room_in) as room:
        made = Path(room) / path.name
        made.mkdir()
        yield made
        for each in made.iterdir():
            with each.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir():
            _exchange(path, made, Path(room) / "earlier")
        else:
            made.rename(path)


def _exchange(path: Path, made: Path, earlier: Path) -> None:
    """Put the files of a folder in the place of the weights of another, or none."""
    earlier.mkdir()
    old = sorted(filter(_is_weights, path.iterdir()), key=is_index, reverse=True)
    new = sorted(made.iterdir(), key=is_index)
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
