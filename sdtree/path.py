"""Paths are the identity of leaves; names are the dotted view of them for people."""

from collections.abc import Iterable

from sdtree.errors import NameCollision
from sdtree.typing import Path


def name_of(path: Path, sep: str = ".") -> str:
    """Return the name of ``path``: its keys as text, joined by ``sep``.

    >>> name_of(("optimizer", "state", 0, "exp_avg"))
    'optimizer.state.0.exp_avg'
    """
    return sep.join(map(str, path))


def where(path: Path) -> str:
    """Return ``path`` as messages show it; the root has a word of its own."""
    return name_of(path) if path else "<root>"


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
