"""Pickling by torch of trees that are nested deeper than Python recurses.

A pickle may bring a part before it is used. What lies deep in a tree is brought first,
from below, so that nothing is met far below what is being written.
"""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch

from sdtree.tree.containers import ABSENT, container_of
from sdtree.typing import Tree

STEP: Final = 50
"""How many containers are pickled within one another, by recursion."""


def save(tree: Tree, target: Path | BinaryIO) -> None:
    """Write a tree as ``torch.save`` does, however deep it is."""
    torch.save(tree, target, pickle_module=sys.modules[__name__])


class Pickler(pickle.Pickler):
    """What torch derives its pickler from, for protocols without frames."""

    def __init__(self, file: BinaryIO, protocol: int) -> None:
        self._file, self._written = file, io.BytesIO()
        super().__init__(self._written, protocol)

    def dump(self, obj: Any, /) -> None:
        """Write a tree. What comes before it stays in a list that nobody asks for."""
        first, *others = [*_from_below(obj), obj]
        start, body = self._pickled(first)
        self._file.write(start + (pickle.EMPTY_LIST if others else b"") + body)
        for x in others:
            self._file.write(pickle.APPEND + self._pickled(x)[1])
        self._file.write(pickle.STOP)

    def _pickled(self, x: object) -> tuple[bytes, bytes]:
        """Return how a pickle begins, and how it goes on up to its end."""
        self._written.seek(0)
        self._written.truncate()
        super().dump(x)
        found = self._written.getvalue()
        return found[:2], found[2:-1]


def _from_below(tree: Tree) -> list[Tree]:
    """Return the containers of each ``STEP`` levels of a tree, the deepest first."""
    found: list[tuple[int, Tree]] = []
    left: list[tuple[int, Tree]] = [(0, tree)]
    while left:
        depth, x = left.pop()
        container = None if x is ABSENT else container_of(type(x))
        if container is not None:
            if depth and depth % STEP == 0:
                found.append((depth, x))
            left.extend((depth + 1, child) for child in container.apart(x)[1])
    return [x for _, x in sorted(found, key=lambda step: -step[0])]
