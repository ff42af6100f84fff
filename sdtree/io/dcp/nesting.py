"""Trees out of names, as DCP nests them: by paths of keys, and indices of lists."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from sdtree.errors import FileError
from sdtree.io.pickles.machine import FEW
from sdtree.tree.plain_json import shortly
from sdtree.typing import Leaf, Tree


def nested(
    leaves: Mapping[str, Leaf], paths: Mapping[str, tuple[str | int, ...]]
) -> Tree:
    """Return the tree in which leaves stand at the paths of their names.

    Without one a leaf stands at its name. An element of a list that none tells of is
    None, as torch has it.

    >>> nested({"a.b": 1, "a.c.1": 2}, {"a.b": ("a", "b"), "a.c.1": ("a", "c", 1)})
    {'a': {'b': 1, 'c': [None, 2]}}
    """
    _check_lists(paths)
    root: Any = {}
    made, taken = {id(root)}, set[tuple[int, str | int]]()
    for name, leaf in leaves.items():
        path = paths.get(name, (name,))
        here, last = root, path[-1]
        for key, below in pairwise(path):
            if (id(here), key) in taken:
                raise FileError(f"{shortly(name)} stands in what is another leaf")
            here = _inside(name, here, key, {} if type(below) is str else [], made)
        if _get(name, here, last) is not None or (id(here), last) in taken:
            raise FileError(f"{shortly(name)} stands where another does")
        here[last] = leaf
        taken.add((id(here), last))
    return root


def _check_lists(paths: Mapping[str, tuple[str | int, ...]]) -> None:
    """Raise ``FileError`` if lists are much longer than there are leaves for them."""
    lengths: dict[tuple[str | int, ...], int] = {}
    for path in paths.values():
        for depth, key in enumerate(path):
            if type(key) is int:
                before = path[:depth]
                lengths[before] = max(lengths.get(before, 0), key + 1)
    if sum(lengths.values()) > FEW + len(paths):
        raise FileError("its lists have more gaps than they are worth")


def _inside(name: str, here: Any, key: str | int, new: Any, made: set[int]) -> Any:
    """Return the container under a key, which may have to be made first."""
    found = _get(name, here, key)
    if found is None:
        here[key] = found = new
        made.add(id(new))
    if id(found) not in made or type(found) is not type(new):
        raise FileError(f"{shortly(name)} stands in what is no {type(new).__name__}")
    return found


def _get(name: str, here: Any, key: str | int) -> Any:
    """Return what is under a key, None if nothing is; a list is made long enough."""
    if isinstance(here, dict):
        return here.get(key)
    if type(key) is not int or key < 0:
        raise FileError(f"{shortly(name)} stands at {shortly(key)} of a list")
    here.extend([None] * (key + 1 - len(here)))
    return here[key]
