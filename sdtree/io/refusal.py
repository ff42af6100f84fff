"""What torch says of what it does not load, in a few words."""

from __future__ import annotations

from collections.abc import Iterable

from sdtree.errors import listed


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


def some_of(names: Iterable[str]) -> str:
    """Return the first of many names that a file says, each in short."""
    return listed([in_short(name, most=100) for name in names])
