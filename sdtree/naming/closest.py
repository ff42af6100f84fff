"""What to say if none of the names matches a glob: which keys are there instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from heapq import nlargest
from itertools import chain, islice
from typing import Final

from sdtree.errors import NoMatch
from sdtree.naming.globs import (
    Pattern,
    Segments,
    glob_regex,
    only_name,
    parts,
    patterns_of,
    segments_of,
    shown,
)
from sdtree.text.table import counted

HINTS: Final = 3
"""How many globs a message speaks of."""

NEAR: Final = 200
"""How many keys are compared in all ways with one that is not there."""

LONG: Final = 100
"""How long a key may be to be compared so."""

RANGE: Final = re.compile(r"\{(\d)\.\.(\d)\}|(?<![\w[])(\d)-(\d)(?![\w\]])")
"""Digits from one to another, as a shell or people write them, and no glob does."""


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
    split, asked = [segments_of(name) for name in names], tuple(globs)
    patterns = chain.from_iterable(map(patterns_of, asked))
    hints = filter(None, (_first_failure(pattern, split) for pattern in patterns))
    found = [*islice(hints, HINTS)] or [f"the tree has {len(names)} leaves"]
    advice = filter(None, (_advice(glob, names) for glob in asked))
    return "; ".join((*found, *islice(advice, HINTS)))


def _advice(glob: str, names: Sequence[str]) -> str:
    """Return what is perhaps meant by a glob that matches none of the names."""
    if re.search(r"[\\^$+|(]", glob):
        return f"a regex is compiled: re.compile({glob!r})"
    plain = RANGE.sub(r"[\1\3-\2\4]", glob)
    for meant in (glob, plain, f"{plain}.**", f"**.{plain}", f"**.{plain}.**"):
        count = sum(glob_regex(meant).fullmatch(f"{x}.") is not None for x in names)
        if count:
            taken = f"{meant!r} takes {counted(count, 'leaf', 'leaves')}"
            return taken if meant != glob else ""  # it is something else that fails
    return ""


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
    return f"{'.'.join(wanted)!r} ends above the leaves"


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
