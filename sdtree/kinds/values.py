"""When two plain values are the same: of one type, and alike in every bit."""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from datetime import timezone
from functools import cache
from pathlib import PurePath
from typing import Any, Final

from torch import Tensor

from sdtree.kinds.handler import find_handler, handler_of
from sdtree.path import distinct, exact
from sdtree.tensors.bits import same_bits
from sdtree.typing import Leaf

SIMPLE: Final = {int, bool, str, bytes, type(None)}
"""The types of most values, which are the same if they are equal."""


def same_value(a: Any, b: Any, *, in_order: bool = False) -> bool:
    """Return whether two values have one type and the same bits; nan equals nan.

    The order of keys in mappings is free unless it is asked for.

    >>> nan = float("nan")
    >>> same_value(nan, nan), same_value(0.0, -0.0), same_value(1, True)
    (True, False, False)
    """
    if a is b or type(a) is not type(b):
        return a is b
    if isinstance(a, (float, complex)):
        return _bits(a) == _bits(b)
    if hasattr(a, "tobytes"):
        return _form(a) == _form(b) and _told(a) == _told(b)
    if isinstance(a, Tensor):
        return same_leaf(a, b)
    if isinstance(a, (tuple, list, deque)):
        is_alike = len(a) == len(b) and _beside(a, "maxlen") == _beside(b, "maxlen")
        pairs = zip(a, b, strict=True) if is_alike else None
    elif isinstance(a, Mapping):
        same_keys = exact(a) == exact(b) if in_order else distinct(a) == distinct(b)
        same_keys &= _beside(a, "default_factory") is _beside(b, "default_factory")
        pairs = ((a[key], b[key]) for key in a) if same_keys else None
    elif isinstance(a, (set, frozenset)):
        return len(a) == len(b) and _are_among(a, b) and _are_among(b, a)
    else:
        return _same_told(a, b)
    return pairs is not None and all(
        same_value(*pair, in_order=in_order) for pair in pairs
    )


def _beside(x: Any, name: str) -> Any:
    """Return what a container of the standard library has beside what it holds."""
    return getattr(x, name) if isinstance(x, (deque, defaultdict)) else None


def _same_told(a: Any, b: Any) -> bool:
    """Return whether two values of one type are equal, or what their kind says of them.

    Buffers, and what is foreign, are equal to themselves alone; moments, in any time
    zone; time zones, of any name; paths of Windows, in any case.
    """
    handler = None if type(a) in SIMPLE else find_handler(type(a))
    if handler is not None:
        (ts, told), (_, other) = handler.flatten(a), handler.flatten(b)
        if type(told) is not type(a):
            return same_leaf(a, b) if ts else same_value(told, other)
    elif (names := _fields(type(a))) is not None:
        return all(same_value(getattr(a, name), getattr(b, name)) for name in names)
    is_read = hasattr(a, "tzinfo") or isinstance(a, (timezone, PurePath))
    return bool(a == b) and (not is_read or repr(a) == repr(b))


@cache
def _fields(cls: Any) -> list[str] | None:
    """Return the fields by which dataclasses of a class are equal, if they are so.

    They are unless the class has its own say, which is no code that Python wrote.
    """
    code = getattr(cls.__eq__, "__code__", None)
    if not is_dataclass(cls) or code is None or code.co_filename != "<string>":
        return None
    return [field.name for field in fields(cls) if field.compare]


def _are_among(some: Collection[Any], others: Collection[Any]) -> bool:
    """Return whether each of some values is the same as one of others."""
    twins = {x: x for x in others}
    return all(
        (x in twins and same_value(x, twins[x]))
        or any(same_value(x, y) for y in others)
        for x in some
    )


def _form(array: Any) -> tuple[object, ...]:
    return tuple(getattr(array, name, None) for name in ("dtype", "shape", "typecode"))


def _told(x: Any) -> object:
    """Return the bytes of a value, or what it reads as if some of them mean nothing.

    So it is with a long double, which numpy takes out of memory without its padding.
    """
    is_long = getattr(x, "dtype", None) is not None and x.dtype.char in "gG"
    return repr(x) if is_long and not x.shape else x.tobytes()


def _bits(x: complex) -> bytes:
    return struct.pack("<dd", x.real, x.imag)


def same_leaf(x: Leaf, y: Leaf) -> bool:
    """Return whether two leaves have one form and the same bits, on this rank."""
    if type(x) is not type(y):  # one may be on its way to what the other is
        x, y = map(_compared, (x, y))
        if type(x) is not type(y):
            return False
    compared = handler_of(x).compared
    x, y = compared(x), compared(y)
    handler = handler_of(x)
    (ours, aux), (theirs, other) = handler.flatten(x), handler.flatten(y)
    return (
        len(ours) == len(theirs)
        and same_value(aux, other)
        and all(map(same_bits, ours, theirs))
    )


def _compared(x: Leaf) -> Leaf:
    """Return a leaf as its kind compares it, if any serves it."""
    handler = find_handler(type(x))
    return x if handler is None else handler.compared(x)
