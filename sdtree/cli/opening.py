"""Checkpoints that are looked at: opened, and what is chosen of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copyfileobj
from tempfile import NamedTemporaryFile
from typing import Final, NamedTuple

from sdtree.cli import console
from sdtree.cli.recipe import Miss, Recipe
from sdtree.errors import FileError, NoMatch
from sdtree.io import Opened, open_file
from sdtree.tree.flattening import structure
from sdtree.typing import Tree


class Look(NamedTuple):
    """A checkpoint, and the tree of what is chosen of it."""

    path: Path
    opened: Opened
    tree: Tree
    misses: Sequence[Miss]

    @classmethod
    def at(cls, path: Path, recipe: Recipe) -> Look:
        """Return the checkpoint at a path."""
        opened = opened_at(path)
        misses = [*recipe.misses(structure(opened.tree))]
        return cls(path, opened, recipe.transform()(opened.tree), misses)

    def notes(self) -> Iterator[str]:
        """Yield what is to be noted of it."""
        yield from self.opened.notes
        yield from (miss.text for miss in self.misses)


def looks(paths: Sequence[Path], recipe: Recipe) -> list[Look]:
    """Return checkpoints, opened, and print each note on them once.

    A glob of --select that matches in none of them is an error: nothing that would be
    printed says that what it asks for is not there.
    """
    found = [Look.at(path, recipe) for path in paths]
    for miss in found[0].misses:
        others = [{(m.option, m.glob) for m in look.misses} for look in found]
        if miss.option == "--select" and all(miss[:2] in each for each in others):
            raise NoMatch(miss.text)
    for text in dict.fromkeys(text for look in found for text in look.notes()):
        console.note(text)
    return found


STDIN: Final = "-"


def opened_at(path: Path) -> Opened:
    """Return the checkpoint at a path, opened; that of stdin is kept in a file first.

    A file is mapped, and its parts are read in any order, for which a pipe has no way.
    """
    if str(path) != STDIN:
        return open_file(path)
    with NamedTemporaryFile(prefix="sdtree-") as file:
        copyfileobj(sys.stdin.buffer, file)
        file.flush()
        try:
            return open_file(file.name)  # what is mapped stays when the name is gone
        except FileError as error:
            raise FileError(str(error).replace(file.name, STDIN)) from None
