"""Two things that differ, as two short texts that differ as well."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, Final

from sdtree.kinds.values import same_value
from sdtree.text.short import LONG, Short

ROOM: Final = 60
"""How many characters of a long text are shown."""

BEFORE: Final = 20
"""How many of them stand before the first that differs."""

FEW: Final = 3
"""How many parts of a value are shown."""


class _Full(Short):
    """Returns values as text, nothing left out; long numbers in the base that is fast.

    >>> _Full().repr({"a": (10**400, "x" * 99)}) > ""
    True
    """

    def __init__(self) -> None:
        super().__init__()
        for name in vars(self):
            if name.startswith("max"):
                setattr(self, name, sys.maxsize)

    def repr_int(self, x: int, level: int) -> str:
        return hex(x) if x.bit_length() > LONG else repr(x)


SHORT: Final = Short().repr
FULL: Final = _Full().repr


def apart(*said: tuple[str, str]) -> tuple[str, str]:
    """Return the first pair of texts that differ, cut to where they do.

    >>> apart(("x", "x"), ("a" * 99 + "b" * 50, "a" * 99 + "c"))[1]
    '…aaaaaaaaaaaaaaaaaaaac'
    >>> apart(("x", "x"))
    ('x', 'x, but another')
    """
    for a, b in said:
        if a != b:
            is_long = max(len(a), len(b)) > ROOM
            start = max(0, _alike(a, b) - BEFORE) if is_long else 0
            return _cut(a, start), _cut(b, start)
    a, b = said[-1]
    return a, f"{b}, but another"


def _alike(a: str, b: str) -> int:
    """Return how many characters two texts begin with that are the same."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((k for k, (x, y) in pairs if x != y), min(len(a), len(b)))


def _cut(text: str, start: int) -> str:
    part = text[start : start + ROOM]
    return f"{'…' * (start > 0)}{part}{'…' * (start + ROOM < len(text))}"


def sides(label: str, a: object, b: object) -> tuple[str, str]:
    """Return what two values are where they differ, of many such parts the first.

    >>> sides("aux", {"scale": 0.1, "axis": None}, {"scale": 0.2, "axis": None})
    ("aux['scale'] 0.1", "aux['scale'] 0.2")
    """
    found = [*islice(_differing(label, a, b), FEW + 1)]
    ours, theirs = (", ".join(texts) for texts in zip(*found[:FEW], strict=True))
    more = ", …" * (len(found) > FEW)
    return f"{ours}{more}", f"{theirs}{more}"


def _differing(label: str, a: object, b: object) -> Iterator[tuple[str, str]]:
    """Yield the innermost parts of two values that differ, as text."""
    inner = _parts(a), _parts(b)
    parts = zip(*inner, strict=True) if type(a) is type(b) and _agree(*inner) else ()
    found = False
    for (name, x), (_, y) in parts:
        if not same_value(x, y):
            found = True
            yield from _differing(f"{label}{name}", x, y)
    if not found:
        a, b = _without_same(a, b)
        x, y = apart((SHORT(a), SHORT(b)), (FULL(a), FULL(b)))
        yield f"{label} {x}", f"{label} {y}"


def _without_same(a: Any, b: Any) -> tuple[Any, Any]:
    """Return two mappings without what both have, if other keys tell them apart."""
    if type(a) is not type(b) or not isinstance(a, Mapping) or a.keys() == b.keys():
        return a, b
    x, y = (
        {key: one[key] for key in one if not _has(other, key, one[key])}
        for one, other in ((a, b), (b, a))
    )
    return x, y


def _has(x: Mapping[Any, Any], key: Any, value: Any) -> bool:
    return key in x and same_value(x[key], value)


def _agree(ours: list[tuple[str, Any]], theirs: list[tuple[str, Any]]) -> bool:
    return [name for name, _ in ours] == [name for name, _ in theirs]


def _parts(x: Any) -> list[tuple[str, Any]]:
    """Return the parts of a value that compare, by what leads to them; a leaf has none.

    What is neither a sequence nor a mapping nor a dataclass is one.
    """
    if is_dataclass(x) and not isinstance(x, type):
        return [(f".{f.name}", getattr(x, f.name)) for f in fields(x) if f.compare]
    if isinstance(x, Mapping):
        return [(f"[{SHORT(key)}]", x[key]) for key in x]
    if isinstance(x, (tuple, list)):
        return [(f"[{k}]", each) for k, each in enumerate(x)]
    return []
