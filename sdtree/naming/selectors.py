"""Selectors: which leaves are meant, by name, by kind or by a predicate."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, NoReturn, Union, cast, get_args, get_origin

from sdtree.errors import reraise
from sdtree.kinds.calls import Call
from sdtree.kinds.handler import kind_of
from sdtree.naming.globs import glob_regex, reject_bytes
from sdtree.path import name_of
from sdtree.typing import Leaf, Path


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

    def by_paths(self, paths: Sequence[Path]) -> list[bool]:
        """Return which paths match, where the leaves are not looked at.

        >>> sd.selector("*.bias").by_paths([("a", "bias"), ("bias",)])
        [True, False]
        """
        test = self.test
        if isinstance(test, Call) and test.func is _is_found:
            search = test.args[0].search
            return [search(name) is not None for name in map(name_of, paths)]
        if isinstance(test, Call) and test.func is _is_matched:
            matches = test.args[0].fullmatch
            return [matches(f"{name}.") is not None for name in map(name_of, paths)]
        return [test(path, None) for path in paths]

    @property
    def by_form(self) -> bool:
        """Return whether a leaf matches as it would without its data.

        >>> sd.selector(int).by_form, sd.selector(lambda path, x: x > 0).by_form
        (True, False)
        """
        test = self.test
        if self.by_name or not isinstance(test, Call):
            return self.by_name
        if test.func in (_each, _any):
            return all(part.by_form for part in test.args[0])
        if test.func is _is_not:
            return test.args[0].by_form
        return test.func is _is_of_kind

    def __and__(self, other: object) -> Selector:
        return self._with(selector(other), _each, "&")

    def __or__(self, other: object) -> Selector:
        return self._with(selector(other), _any, "|")

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
        join: Callable[[tuple[Selector, ...], Path, Leaf], bool],
        sign: str,
    ) -> Selector:
        """Return both, joined; those that are joined in this way are so side by side.

        So it does not matter how many there are, nor in which order they were joined.
        """
        text = f"{self._operand(sign)} {sign} {other._operand(sign)}"
        by_name = self.by_name and other.by_name
        globs = (*self.globs, *other.globs)
        parts = (*self._joined_by(join), *other._joined_by(join))
        return Selector(Call(join, parts), text, by_name, globs)

    def _joined_by(self, join: Callable[..., bool]) -> tuple[Selector, ...]:
        test = self.test
        return test.args[0] if isinstance(test, Call) and test.func is join else (self,)

    def _operand(self, sign: str) -> str:
        looser = {"&": " | ", "|": " & "}[sign]
        return f"({self})" if looser in self.text else str(self)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def selector(x: object, /) -> Selector:
    """Return the selector that ``x`` stands for.

    A str is a glob over names: ``*`` is one segment, or a part of one, and ``**`` any
    number of segments, none included; ``?`` is one character, ``[0-3]`` and ``[!abc]``
    are one of those, or of the others, and ``{q,k,v}`` is one of several texts. In
    brackets each of them is itself, as in ``a[[]0]``. A compiled regex is searched in
    the name; a type or a union of types selects leaf kinds; any other callable is a
    predicate ``(path, leaf) -> bool``. A tuple selects what any of its parts does.

    >>> numbers = sd.selector((int, float))
    >>> sd.select({"a": 1, "b": 2.0, "c": "x"}, numbers & ~sd.selector("b"))
    {'a': 1}
    >>> sd.select({"q": 1, "k": 2, "v": 3, "norm": 4}, ("{q,k}", "n*"))
    {'q': 1, 'k': 2, 'norm': 4}
    """
    if isinstance(x, Selector):
        return x
    if isinstance(x, str):
        return _by_glob(x)
    if isinstance(x, re.Pattern):
        pattern = cast("re.Pattern[str]", x)
        reject_bytes(pattern)
        return Selector(Call(_is_found, pattern), repr(pattern), True)
    kinds = _kinds(x)
    if kinds is not None:
        text = " | ".join(kind.__name__ for kind in kinds)
        return Selector(Call(_is_of_kind, kinds), text, False)
    if isinstance(x, tuple) and x and all(map(_may_select, cast("Leaves", x))):
        return reduce(or_, map(selector, cast("Leaves", x)))
    if callable(x) and get_origin(x) is None:
        text = getattr(x, "__name__", repr(x))
        return Selector(Call(_is_said_by, x), text, False)
    raise _no_selector(x)


Leaves = tuple[object, ...]


def _may_select(x: object) -> bool:
    """Return whether ``x`` is meant as a selector, and not as a leaf of a tree."""
    known = isinstance(x, (str, re.Pattern, Selector, tuple))
    return known or callable(x) or _kinds(x) is not None


def _each(parts: tuple[Selector, ...], path: Path, leaf: Leaf) -> bool:
    return all(part.test(path, leaf) for part in parts)


def _any(parts: tuple[Selector, ...], path: Path, leaf: Leaf) -> bool:
    return any(part.test(path, leaf) for part in parts)


def _is_not(part: Selector, path: Path, leaf: Leaf) -> bool:
    return not part.test(path, leaf)


def _is_found(pattern: re.Pattern[str], path: Path, _: Leaf) -> bool:
    return pattern.search(name_of(path)) is not None


def _is_of_kind(kinds: tuple[type, ...], _: Path, leaf: Leaf) -> bool:
    return issubclass(kind_of(leaf), kinds)


def _no_selector(x: object) -> TypeError:
    """Return the error for what selects nothing, a tree in the wrong place perhaps."""
    parts = cast("Sequence[object]", x) if isinstance(x, (list, tuple)) else ()
    if parts and all(map(_may_select, parts)):
        advice = f"several are a tuple: {reprlib.repr(tuple(parts))}"
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
        place = f"at {name_of(path)}"
        called = f"in the selector {name}, which is called with (path, leaf), {place}"
        reraise(error, called)


# -- globs -------------------------------------------------------------------------


def _by_glob(glob: str) -> Selector:
    return Selector(Call(_is_matched, glob_regex(glob)), repr(glob), True, (glob,))


def _is_matched(pattern: re.Pattern[str], path: Path, _: Leaf) -> bool:
    return pattern.fullmatch(name_of(path) + ".") is not None
