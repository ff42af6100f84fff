"""What torch says of a file that it does not load, in a few words."""

from __future__ import annotations

import re


def unsafe_names(text: str) -> list[str]:
    """Return what torch's message says that only unsafe loading would take."""
    return re.findall(r"GLOBAL (\S+) (?:was not|whose)", text)


def gist(text: str) -> str:
    """Return the first line of torch's message that says something."""
    said = text.partition("WeightsUnpickler error:")[2] or text
    first = said.strip().split("\n")[0].partition(". This is an internal")[0]
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
