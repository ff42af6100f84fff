"""Paths are the identity of leaves; names are the dotted view of them for people."""

import re
from collections.abc import Iterable, Mapping
from numbers import Number
from typing import Any, Final

from sdtree.errors import NameCollision, text_of
from sdtree.typing import Key, Path

PLAIN_KEYS: Final = frozenset({str, int})
"""Of these types keys are the same if Python says that they are equal."""


class Keys(tuple[Key, ...]):
    """Keys in a row, or a path, where one may be neither str nor int.

    Python takes ``1``, ``1.0`` and ``True`` for one key, and ``0.0`` for ``-0.0``.
    Here they are equal to the very same alone, and so is a path that has one.

    >>> Keys((True, "w")) == (1, "w"), Keys((True, "w")) == (True, "w")
    (False, True)
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, tuple)
            and len(self) == len(other)
            and all(map(same_key, self, other))
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__


def exact(keys: Iterable[Key]) -> tuple[Key, ...]:
    """Return keys that are equal to the very same alone."""
    found = tuple(keys)
    return found if PLAIN_KEYS.issuperset(map(type, found)) else Keys(found)


def distinct(keys: Iterable[Key]) -> set[tuple[Key, ...]]:
    """Return what two sets of keys have in common where the keys are the same."""
    return {exact((key,)) for key in keys}


def same_key(a: Any, b: Any) -> bool:
    """Return whether two keys are of one type and equal, in all that they hold, too.

    >>> same_key((0.0, "w"), (-0.0, "w")), same_key(frozenset({1}), frozenset({True}))
    (False, False)
    """
    if a is b:
        return True
    if type(a) is not type(b) or hash(a) != hash(b) or a != b:
        return False
    if isinstance(a, tuple):
        return all(map(same_key, a, b))
    if isinstance(a, frozenset):
        twins = {x: x for x in b}
        return all(same_key(x, twins[x]) for x in a)
    return not isinstance(a, Number) or repr(a) == repr(b)


def name_of(path: Path, sep: str = ".") -> str:
    """Return the name of ``path``: its keys as text, joined by ``sep``.

    >>> name_of(("optimizer", "state", 0, "exp_avg"))
    'optimizer.state.0.exp_avg'
    """
    if len(path) == 1:
        return str(path[0])
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
    text = "\n".join([text_of(error), *getattr(error, "__notes__", ())])
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


def reject_collisions_among(every: Iterable[Mapping[str, Path]]) -> None:
    """Raise ``NameCollision`` if one name has several paths, as ranks tell them."""
    pairs = {(name, exact(path)) for own in every for name, path in own.items()}
    in_order = sorted(pairs, key=repr)
    reject_collisions([name for name, _ in in_order], [path for _, path in in_order])


def with_place(error: BaseException, path: Path) -> BaseException:
    """Return an error that tells where it happened."""
    if named_by(error, [path]) is None:
        error.add_note(f"at {where(path)}")
    return error
