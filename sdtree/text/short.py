"""Values as text of a few letters, whatever they are."""

from __future__ import annotations

import reprlib
from typing import Any, Final

LONG: Final = 1000
"""Beyond how many bits the digits of a number take long to find."""


def full_name(x: Any) -> str:
    """Return the name of a class or a function, with its module.

    >>> full_name(Short)
    'sdtree.text.short.Short'
    """
    return f"{x.__module__}.{x.__qualname__}"


class Short(reprlib.Repr):
    """Returns values in short; moments, and what has a ``told``, as they say it.

    >>> Short().repr(10**5000), Short().repr("x" * 99)
    ('an int of 16610 bits', "'xxxxxxxxxxxx...xxxxxxxxxxxxx'")
    """

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > LONG:
            return f"an int of {x.bit_length()} bits"
        return super().repr_int(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        cls = type(x)
        told = getattr(cls, "told", None) or getattr(cls, "isoformat", None)
        return super().repr_instance(x, level) if told is None else told(x)
