"""Selectors: which leaves are meant, by name, by kind or by a predicate."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, reduce
from types import UnionType
from typing import Any, NoReturn, Union, cast, get_args, get_origin

from sdtree.errors import NoMatch
from sdtree.leaf import kind_of
from sdtree.path import name_of
from sdtree.typing import Leaf, Path

Segments = tuple[str, ...]
Captures = tuple[Segments, ...]


@dataclass(frozen=True, slots=True)
class Selector:
    """A test of (path, leaf) that combines with ``&``, ``|`` and ``~``.

    ``by_name`` is set where the leaf itself is not looked at.

    >>> sd.selector("model.**") & ~sd.selector("**.bias")
    'model.**' & ~'**.bias'
    """

    test: Callable[[Path, Leaf], bool]
    text: str
    by_name: bool
    globs: tuple[str, ...] = ()

    def __call__(self, path: Path, leaf: Leaf) -> bool:
        return self.test(path, leaf)

    def __and__(self, other: object) -> Selector:
        that = selector(other)
        return self._with(that, lambda p, x: self(p, x) and that(p, x), "&")

    def __or__(self, other: object) -> Selector:
        that = selector(other)
        return self._with(that, lambda p, x: self(p, x) or that(p, x), "|")

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Selector:
        text = f"~({self})" if " " in self.text else f"~{self}"
        return Selector(lambda p, x: not self(p, x), text, self.by_name)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"whether {self} matches depends on the leaf; combine selectors by "
            "&, | and ~, not by and, or and not"
        )

    def _with(
        self, other: Selector, test: Callable[[Path, Leaf], bool], sign: str
    ) -> Selector:
        text = f"{self._operand(sign)} {sign} {other._operand(sign)}"
        by_name = self.by_name and other.by_name
        return Selector(test, text, by_name, (*self.globs, *other.globs))

    def _operand(self, sign: str) -> str:
        looser = {"&": " | ", "|": " & "}[sign]
        return f"({self})" if looser in self.text else str(self)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def selector(x: object, /) -> Selector:
    """Return the selector that ``x`` stands for.

    A str is a glob over names, where ``*`` is one segment, or a part of one, and
    ``**`` any number of segments, none included; a compiled regex is searched in the
    name; a type, a tuple or a union of types selects leaf kinds; any other callable is
    a predicate ``(path, leaf) -> bool``.

    >>> numbers = sd.selector((int, float))
    >>> sd.select({"a": 1, "b": 2.0, "c": "x"}, numbers & ~sd.selector("b"))
    {'a': 1}
    """
    if isinstance(x, Selector):
        return x
    if isinstance(x, str):
        return _by_glob(x)
    if isinstance(x, re.Pattern):
        pattern = cast("re.Pattern[str]", x)
        found = pattern.search
        text = f"re.compile({pattern.pattern!r})"
        return Selector(lambda p, _: found(name_of(p)) is not None, text, True)
    kinds = _kinds(x)
    if kinds is not None:
        text = " | ".join(kind.__name__ for kind in kinds)
        return Selector(lambda _, leaf: issubclass(kind_of(leaf), kinds), text, False)
    if callable(x):
        return Selector(_predicate(x), getattr(x, "__name__", repr(x)), False)
    raise _no_selector(x)


def _no_selector(x: object) -> TypeError:
    """Return the error for what selects nothing, a tree in the wrong place perhaps."""
    parts = cast("Sequence[object]", x) if isinstance(x, (list, tuple)) else ()
    if parts and all(isinstance(part, (str, re.Pattern, Selector)) for part in parts):
        advice = "join several by |: sd.selector('a.**') | 'b.**'"
    elif isinstance(x, (Mapping, list, tuple)):
        advice = "the tree comes before the selector: sd.select(tree, 'model.**')"
    else:
        advice = (
            "give a glob such as 'model.**', a compiled regex, a type or types, or a "
            "predicate (path, leaf) -> bool"
        )
    shown = reprlib.repr(x) if len(reprlib.repr(x)) < 50 else f"a {type(x).__name__}"
    return TypeError(f"not a selector: {shown}; {advice}")


def _kinds(x: object) -> tuple[type, ...] | None:
    """Return the types that ``x`` is or holds, None if it is anything else."""
    if isinstance(x, UnionType) or get_origin(x) is Union:
        x = get_args(x)
    if x is None:
        return (type(None),)
    if isinstance(x, type):
        return (x,)
    if isinstance(x, tuple) and x and all(isinstance(kind, type) for kind in x):
        return cast("tuple[type, ...]", x)
    return None


def _predicate(x: Callable[..., Any]) -> Callable[[Path, Leaf], bool]:
    def test(path: Path, leaf: Leaf) -> bool:
        try:
            return bool(x(path, leaf))
        except Exception as error:
            error.add_note(
                f"in the selector {getattr(x, '__name__', repr(x))}, which is called "
                f"with (path, leaf), at {name_of(path)}"
            )
            raise

    return test


# -- globs -------------------------------------------------------------------------


def _by_glob(glob: str) -> Selector:
    found = _glob_regex(glob).fullmatch
    return Selector(
        lambda p, _: found(name_of(p) + ".") is not None, repr(glob), True, (glob,)
    )


def segments_of(text: str) -> Segments:
    """Return the segments of a name or a glob."""
    return tuple(text.split("."))


@lru_cache(maxsize=4096)
def _glob_regex(glob: str) -> re.Pattern[str]:
    """Return the regex that a name matches, with a dot behind it, if ``glob`` does.

    Each segment brings its own dot, and ``**`` brings as many as it takes.
    """
    parts = (
        r"(?:[^.]*\.)*" if segment == "**" else rf"{_segment_regex(segment).pattern}\."
        for segment in segments_of(glob)
    )
    return re.compile("".join(parts))


@lru_cache(maxsize=4096)
def _segment_regex(segment: str) -> re.Pattern[str]:
    if "**" in segment:
        raise ValueError(
            f"'**' stands for whole segments; write it alone between dots, "
            f"not as in {segment!r}"
        )
    literals = map(re.escape, segment.split("*"))
    return re.compile("([^.]*)".join(literals))


def match_glob(glob: str, name: Segments) -> Captures | None:
    """Return what each star of ``glob`` takes of a name, None if it does not match.

    A ``**`` takes as many segments as it can, the first one first.
    """
    if _glob_regex(glob).fullmatch(".".join(name) + ".") is None:
        return None
    return _match(segments_of(glob), name)


def _match(glob: Segments, name: Segments) -> Captures | None:
    if not glob:
        return None if name else ()
    if glob[0] == "**":
        for count in range(len(name), -1, -1):
            rest = _match(glob[1:], name[count:])
            if rest is not None:
                return (name[:count], *rest)
        return None
    found = _segment_regex(glob[0]).fullmatch(name[0]) if name else None
    rest = _match(glob[1:], name[1:]) if found else None
    if found is None or rest is None:
        return None
    return (*((text,) for text in found.groups()), *rest)


# -- when nothing matches ----------------------------------------------------------


def no_match(subject: object, globs: Iterable[str], names: Sequence[str]) -> NoMatch:
    """Return the error for a rule that no name matches, with the closest keys."""
    closest = closest_keys(globs, names)
    return NoMatch(f"{subject} matches no leaf; {closest}. missing_ok=True allows it")


def closest_keys(globs: Iterable[str], names: Sequence[str]) -> str:
    """Return which keys are there at the segments where the globs fail."""
    hints = [hint for glob in globs if (hint := _first_failure(glob, names))]
    return "; ".join(hints) or f"the tree has {len(names)} leaves"


def _first_failure(glob: str, names: Sequence[str]) -> str:
    """Return at which segment of a glob the last names fall away, and what is there."""
    wanted = segments_of(glob)
    split = [segments_of(name) for name in names]
    if "**" in wanted[:1]:
        literal = next((part for part in wanted if "*" not in part), None)
        keys = {part for name in split for part in name}
        return _closest(literal, keys, "", glob) if literal else ""
    for depth in range(len(wanted)):
        if wanted[depth] == "**":
            return ""
        head = reduce(_join, wanted[: depth + 1])
        if not any(
            _match(wanted[: depth + 1], name[: depth + 1]) is not None for name in split
        ):
            above = [n for n in split if _match(wanted[:depth], n[:depth]) is not None]
            keys = {name[depth] for name in above if len(name) > depth}
            return _closest(wanted[depth], keys, ".".join(wanted[:depth]), head)
    return f"{glob!r} ends above the leaves; {glob + '.**'!r} takes all below it"


def _join(head: str, segment: str) -> str:
    return f"{head}.{segment}"


def _closest(segment: str | None, keys: Iterable[str], above: str, glob: str) -> str:
    known = sorted(keys)
    close = get_close_matches(segment or "", known, n=3, cutoff=0.5) or known[:5]
    place = f"under {above!r}" if above else "in the names"
    if not close:
        return f"nothing lies {place}"
    shown = ", ".join(map(repr, close))
    return f"no {segment!r} {place}, where there is {shown}"
