"""What to say if none of the names matches a glob: which keys are there instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from heapq import nlargest
from itertools import chain, islice
from typing import Final

from sdtree.errors import NoMatch
from sdtree.naming.globs import (
    Pattern,
    Segments,
    only_name,
    parts,
    patterns_of,
    segments_of,
    shown,
)

HINTS: Final = 3
"""How many globs a message speaks of."""

NEAR: Final = 200
"""How many keys are compared in all ways with one that is not there."""

LONG: Final = 100
"""How long a key may be to be compared so."""


def no_match(subject: object, globs: Iterable[str], names: Sequence[str]) -> NoMatch:
    """Return the error for a rule that no name matches, with the closest keys."""
    asked = tuple(globs)
    allowed = "missing_ok=True allows it"
    if not asked:  # a predicate, say that of NaNs: to find none may be what is hoped
        allowed += ", as in a search that may find nothing"
    closest = closest_keys(asked, names)
    return NoMatch(f"{subject} matches no leaf; {closest}. {allowed}")


def closest_keys(globs: Iterable[str], names: Sequence[str]) -> str:
    """Return which keys are there at the segments where the globs fail."""
    split = [segments_of(name) for name in names]
    patterns = chain.from_iterable(map(patterns_of, globs))
    hints = filter(None, (_first_failure(pattern, split) for pattern in patterns))
    return "; ".join(islice(hints, HINTS)) or f"the tree has {len(names)} leaves"


def _first_failure(pattern: Pattern, names: Sequence[Segments]) -> str:
    """Return at which segment the last names fall away, and what is there."""
    wanted = list(map(shown, pattern))
    if not pattern[0]:
        literal = next((part for part in wanted if only_name(part)), None)
        keys = {part for name in names for part in name}
        return _closest(literal, keys, "") if literal else ""
    left = names
    for depth, segment in enumerate(pattern):
        if not segment:
            return ""
        longer = [name for name in left if len(name) > depth]
        left = [name for name in longer if parts(segment, name[depth]) is not None]
        if not left:
            keys = {name[depth] for name in longer}
            return _closest(wanted[depth], keys, ".".join(wanted[:depth]))
    glob = ".".join(wanted)
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
