"""What is often given in the place of a tree or a leaf, and what to do instead."""

from __future__ import annotations

import io
import os
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Final

_OURS: Final[dict[type, str]] = {}
"""Classes of this package that are no trees."""

ONCE: Final = "it gives what it has once; make it a list, or a dict"

COMMON: Final[dict[type, str]] = {
    os.PathLike: "sd.load(path) reads the tree that lies in a file",
    io.IOBase: "sd.load(path) reads the tree that lies in a file",
    Iterator: ONCE,
    KeysView: ONCE,
    ItemsView: ONCE,
    ValuesView: ONCE,
    FunctionType: "call it, or take it out of the tree",
    BuiltinFunctionType: "call it, or take it out of the tree",
    MethodType: "call it, or take it out of the tree",
}

NAMES: Final = (str, os.PathLike)
"""What the name of a file is."""

FILES: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pth.tar")
"""How the names of files end that hold a tree."""


def add_stranger(cls: type, advice: str) -> None:
    """Have a class of this package taken for no tree, even if it could come apart."""
    _OURS[cls] = advice


def is_ours(cls: type) -> bool:
    """Return whether a class was given to ``add_stranger``."""
    return cls in _OURS


def advice_on(cls: type) -> str | None:
    """Return what to do with what is no leaf, None if it is none of the common ones.

    >>> advice_on(type(iter([])))
    'it gives what it has once; make it a list, or a dict'
    """
    if hasattr(cls, "state_dict"):
        return "give its state_dict()"
    for base, advice in {**_OURS, **COMMON}.items():
        if issubclass(cls, base):
            return advice
    return None


def reject_file_names(*trees: object) -> None:
    """Raise a TypeError if the name of a file stands where the tree in it is meant.

    A str or a path is a leaf, and so a tree; what ends as a checkpoint does is a slip.
    """
    for tree in trees:
        is_name = isinstance(tree, NAMES)
        if is_name and str(tree).lower().endswith(FILES):
            raise TypeError(
                f"{str(tree)!r} is the name of a file and not the tree in it; "
                f"give sd.load({str(tree)!r})"
            )
