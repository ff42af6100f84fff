"""JSON that anyone may have written: what is not as it should be is refused."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from typing import Any, TypeVar

Json = Any
T = TypeVar("T")
FAR = 2**63
"""No size and no position is as far as that."""


def parse(text: object) -> Json:
    """Return the JSON data of a text; raise ``ValueError`` for what is none.

    A name that an object has twice is refused: which of the two counts, no one knows.
    """
    try:
        return json.loads(
            expect(text, str), object_pairs_hook=_object, parse_constant=_constant
        )
    except RecursionError:
        raise ValueError("it is nested deeper than Python reads") from None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shortly(twice)} stands twice in one object")
    return found


def _constant(name: str) -> Json:
    raise ValueError(f"JSON has no {name}")


def expect(data: Json, cls: type[T]) -> T:
    """Return data that is of a type, ``ValueError`` if it is not."""
    if type(data) is not cls:
        raise ValueError(f"a {cls.__name__} was expected, not {shortly(data)}")
    return data


def parts_in(data: Json, number: int) -> list[Json]:
    """Return data that is a list of so many parts."""
    if len(expect(data, list)) != number:
        raise ValueError(f"{number} parts were expected, not {shortly(data)}")
    return data


def shortly(data: Json) -> str:
    """Return data as messages show it: in a few characters, whatever it is."""
    return reprlib.repr(data)[:50]


def count(data: Json) -> int:
    """Return data that is a size or a position."""
    if 0 <= expect(data, int) < FAR:
        return data
    raise ValueError(f"{shortly(data)} is no size")
