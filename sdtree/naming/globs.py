"""Globs over names, and what to say if none of the names matches one.

Nothing goes back: what a star takes is found in one go, so that no glob takes longer
than its length times that of the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from heapq import nlargest
from itertools import islice
from typing import Any, Final

from sdtree.errors import NoMatch

Segments = tuple[str, ...]
Captures = tuple[Segments, ...]


def segments_of(text: str) -> Segments:
    """Return the segments of a name or a glob."""
    return tuple(text.split("."))


@lru_cache(maxsize=4096)
def glob_regex(glob: str) -> re.Pattern[str]:
    """Return the regex that a name matches, with a dot behind it, if ``glob`` does.

    Each segment brings its own dot, and ``**`` brings as many as it takes. What stands
    between two ``**`` is taken where it first fits: if the rest does not fit behind
    that, it does not fit behind any later place.
    """
    first, *rest = _blocks(glob)
    between = "".join(
        rf"(?>(?:[^.]*\.)*?{_regex(block)})" for block in rest[:-1] if block
    )
    last = rf"(?:[^.]*\.)*{_regex(rest[-1])}" if rest else ""
    return re.compile(_regex(first) + between + last)


def _blocks(glob: str) -> list[Segments]:
    """Return the segments before, between and behind the ``**`` of a glob."""
    blocks: list[list[str]] = [[]]
    for segment in segments_of(glob):
        if segment == "**":
            blocks.append([])
        elif "**" in segment:
            raise ValueError(
                f"'**' stands for whole segments; write it alone between dots, "
                f"not as in {segment!r}"
            )
        else:
            blocks[-1].append(segment)
    return [tuple(block) for block in blocks]


def _regex(block: Segments) -> str:
    return "".join(map(_segment_regex, block))


def _segment_regex(segment: str) -> str:
    """Return the regex of a segment and its dot; a part stands where it first fits."""
    head, *rest = map(re.escape, segment.split("*"))
    between = "".join(rf"(?>[^.]*?{part})" for part in rest[:-1])
    last = f"[^.]*{rest[-1]}" if rest else ""
    return rf"(?>{head}{between}{last}\.)" if between else rf"{head}{last}\."


def reject_bytes(pattern: re.Pattern[Any]) -> None:
    """Raise a TypeError if a regex is for bytes: names are str."""
    if isinstance(pattern.pattern, bytes):
        raise TypeError(
            f"{pattern!r} is a regex of bytes, and names are str; write "
            f"re.compile({pattern.pattern.decode('latin-1')!r})"
        )


def match_glob(glob: str, name: Segments) -> Captures | None:
    """Return what each star of ``glob`` takes of a name, None if it does not match.

    A ``**`` takes as many segments as it can, the first one first, and so does a star
    in a segment with characters.
    """
    if glob_regex(glob).fullmatch(".".join(name) + ".") is None:
        return None
    first, *rest = _blocks(glob)
    if not name:  # the root, which is no key of no characters
        return None if any((first, *rest)) else ((),) * len(rest)
    found = [(0, first)]
    stop = len(name)
    for block in reversed(rest):
        stop -= len(block)
        while _stars(block, name[stop:]) is None:
            stop -= 1
        found.insert(1, (stop, block))
    return tuple(_captures(found, name))


def _captures(
    blocks: Iterable[tuple[int, Segments]], name: Segments
) -> Iterator[Segments]:
    """Yield what each star takes, if the blocks stand at these places of a name."""
    end = None
    for start, block in blocks:
        if end is not None:
            yield name[end:start]
        yield from _stars(block, name[start:]) or ()
        end = start + len(block)


def _stars(block: Segments, name: Segments) -> Captures | None:
    """Return what the stars of a block take where a name begins with it."""
    found: list[str] = []
    for segment, text in zip(block, name, strict=False):
        taken = _parts(segment, text)
        if taken is None:
            return None
        found += taken
    return tuple((text,) for text in found)


def _parts(segment: str, text: str) -> list[str] | None:
    """Return what the stars in a segment take of a text, the first one the most."""
    head, *rest = segment.split("*")
    if not rest:
        return [] if text == head else None
    start, end = len(head), len(text) - len(rest[-1])
    if start > end or not (text.startswith(head) and text.endswith(rest[-1])):
        return None
    found: list[str] = []
    for part in reversed(rest[:-1]):
        at = text.rfind(part, start, end)
        if at < 0:
            return None
        found.append(text[at + len(part) : end])
        end = at
    return [text[start:end], *reversed(found)]


# -- when nothing matches ----------------------------------------------------------

HINTS: Final = 3
"""How many globs a message speaks of."""

NEAR: Final = 200
"""How many keys are compared in all ways with one that is not there."""

LONG: Final = 100
"""How long a key may be to be compared so."""


def no_match(subject: object, globs: Iterable[str], names: Sequence[str]) -> NoMatch:
    """Return the error for a rule that no name matches, with the closest keys."""
    closest = closest_keys(globs, names)
    return NoMatch(f"{subject} matches no leaf; {closest}. missing_ok=True allows it")


def closest_keys(globs: Iterable[str], names: Sequence[str]) -> str:
    """Return which keys are there at the segments where the globs fail."""
    split = [segments_of(name) for name in names]
    hints = filter(None, (_first_failure(glob, split) for glob in globs))
    return "; ".join(islice(hints, HINTS)) or f"the tree has {len(names)} leaves"


def _first_failure(glob: str, names: Sequence[Segments]) -> str:
    """Return at which segment of a glob the last names fall away, and what is there."""
    wanted = segments_of(glob)
    if wanted[0] == "**":
        literal = next((part for part in wanted if "*" not in part), None)
        keys = {part for name in names for part in name}
        return _closest(literal, keys, "") if literal else ""
    left = names
    for depth, segment in enumerate(wanted):
        if segment == "**":
            return ""
        longer = [name for name in left if len(name) > depth]
        left = [name for name in longer if _parts(segment, name[depth]) is not None]
        if not left:
            keys = {name[depth] for name in longer}
            return _closest(segment, keys, ".".join(wanted[:depth]))
    return f"{glob!r} ends above the leaves; {glob + '.**'!r} takes all below it"


def _closest(segment: str, keys: Iterable[str], above: str) -> str:
    known = sorted(keys)
    place = f"under {above!r}" if above else "in the names"
    if not known:
        return f"nothing lies {place}"
    shown = ", ".join(map(repr, _near(segment, known) or known[:5]))
    return f"no {segment!r} {place}, where there is {shown}"


def _near(segment: str, keys: Sequence[str]) -> Sequence[str]:
    """Return the keys that are most alike, of many those with like ends."""
    wanted = segment[:LONG]
    near = [key for key in keys if len(key) <= LONG]
    if len(near) > NEAR:
        near = nlargest(NEAR, near, lambda key: _ends(wanted, key))
    return get_close_matches(wanted, near, n=3, cutoff=0.5)


def _ends(a: str, b: str) -> int:
    """Return how many characters two texts share at both ends."""
    return _start(a, b) + _start(a[::-1], b[::-1])


def _start(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
