"""What torch says of what it does not load, in a few words."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Final

FEW: Final = 8
"""How many names a message has."""


def gist(text: str) -> str:
    """Return the first line of torch's message that says something."""
    first = text.strip().split("\n")[0].partition(". This is an internal")[0]
    return first or "no reason given"


def in_short(text: str, most: int = 400) -> str:
    """Return a text in one line, without its middle if it is long.

    What a file says stands in messages, and a file can say anything.

    >>> in_short("one\\ntwo " + "o" * 20, most=15)
    'one tw...oooooo'
    """
    line = " ".join(text.splitlines())
    half = (most - 3) // 2
    return line if len(line) <= most else f"{line[:half]}...{line[-half:]}"


def listed(names: Collection[str]) -> str:
    """Return the first names of some, and how many more there are.

    >>> listed("abcdefghij")
    'a, b, c, d, e, f, g, h and 2 more'
    """
    more = len(names) - FEW
    shown = ", ".join(in_short(name, most=100) for name in islice(names, FEW))
    return shown + (f" and {more} more" if more > 0 else "")
