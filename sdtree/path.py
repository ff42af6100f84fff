"""Paths are the identity of leaves; names are the dotted view of them for people."""

import re
from collections.abc import Iterable

from sdtree.errors import NameCollision
from sdtree.typing import Path


def name_of(path: Path, sep: str = ".") -> str:
    """Return the name of ``path``: its keys as text, joined by ``sep``.

    >>> name_of(("optimizer", "state", 0, "exp_avg"))
    'optimizer.state.0.exp_avg'
    """
    return sep.join(map(str, path))


def check_sep(sep: object) -> None:
    """Raise unless ``sep`` can stand between the keys of a name."""
    if not isinstance(sep, str) or not sep:
        raise TypeError(f"sep={sep!r}: keys are joined by a str that is not empty")


def where(path: Path) -> str:
    """Return ``path`` as messages show it; the root has a word of its own."""
    return name_of(path) if path else "<root>"


def named_by(error: BaseException, paths: Iterable[Path]) -> Path | None:
    """Return which of the paths an error names, as messages do, None if it names none.

    >>> named_by(ValueError("w: too large"), [("v",), ("w",)])
    ('w',)
    """
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    for path in paths:
        name = where(path)
        if name in text:
            name = re.escape(name)
            if re.search(rf"(?m)\bat {name}(?!\.?\w)|(?:^|; ){name}: ", text):
                return path
    return None


def reject_collisions(names: list[str], paths: Iterable[Path]) -> None:
    """Raise ``NameCollision`` if two of the paths share one name."""
    if len(set(names)) == len(names):
        return
    first: dict[str, Path] = {}
    for name, path in zip(names, paths, strict=True):
        if name in first:
            raise NameCollision(
                f"{name!r} is the name of two paths, {first[name]} and {path}; "
                "work by path, or rename one of their keys"
            )
        first[name] = path
