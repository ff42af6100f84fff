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

from sdtree.calls import Call
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
        return self._with(that, _both, "&")

    def __or__(self, other: object) -> Selector:
        that = selector(other)
        return self._with(that, _either, "|")

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Selector:
        text = f"~({self})" if " " in self.text else f"~{self}"
        return Selector(Call(_is_not, self), text, self.by_name)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"whether {self} matches depends on the leaf; combine selectors by "
            "&, | and ~, not by and, or and not"
        )

    def _with(
        self,
        other: Selector,
        join: Callable[[Selector, Selector, Path, Leaf], bool],
        sign: str,
    ) -> Selector:
        text = f"{self._operand(sign)} {sign} {other._operand(sign)}"
        by_name = self.by_name and other.by_name
        globs = (*self.globs, *other.globs)
        return Selector(Call(join, self, other), text, by_name, globs)

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
        return Selector(Call(_is_found, pattern), repr(pattern), True)
    kinds = _kinds(x)
    if kinds is not None:
        text = " | ".join(kind.__name__ for kind in kinds)
        return Selector(Call(_is_of_kind, kinds), text, False)
    if callable(x):
        text = getattr(x, "__name__", repr(x))
        return Selector(Call(_is_said_by, x), text, False)
    raise _no_selector(x)


def _both(a: Selector, b: Selector, path: Path, leaf: Leaf) -> bool:
    return a(path, leaf) and b(path, leaf)


def _either(a: Selector, b: Selector, path: Path, leaf: Leaf) -> bool:
    return a(path, leaf) or b(path, leaf)


def _is_not(a: Selector, path: Path, leaf: Leaf) -> bool:
    return not a(path, leaf)


def _is_found(pattern: re.Pattern[str], path: Path, _: Leaf) -> bool:
    return pattern.search(name_of(path)) is not None


def _is_of_kind(kinds: tuple[type, ...], _: Path, leaf: Leaf) -> bool:
    return issubclass(kind_of(leaf), kinds)


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


def _is_said_by(predicate: Callable[..., Any], path: Path, leaf: Leaf) -> bool:
    try:
        return bool(predicate(path, leaf))
    except Exception as error:
        name = getattr(predicate, "__name__", repr(predicate))
        error.add_note(
            f"in the selector {name}, which is called with (path, leaf), "
            f"at {name_of(path)}"
        )
        raise


# -- globs -------------------------------------------------------------------------


def _by_glob(glob: str) -> Selector:
    return Selector(Call(_is_matched, _glob_regex(glob)), repr(glob), True, (glob,))


def _is_matched(pattern: re.Pattern[str], path: Path, _: Leaf) -> bool:
    return pattern.fullmatch(name_of(path) + ".") is not None


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
