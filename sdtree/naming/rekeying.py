"""Which keys the segments of a new name make, and which old ones they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from sdtree.naming.globs import Segments, segments_of
from sdtree.naming.rules import Rule, Token
from sdtree.path import name_of
from sdtree.tree.spec import Shape
from sdtree.typing import Key, Path

INDEX: Final = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""How an int is written, as far as a key may be one."""


class Placed(NamedTuple):
    """One atom on its way: where it stood, where it will stand, what it is.

    ``homes`` has for each new key the place of the old one that it stands for, if any;
    ``tokens`` is None for an atom that stays, and ``leaf`` for one that is none or that
    another stands for.
    """

    old: Path
    new: Path
    homes: Sequence[int | None]
    tokens: Sequence[Token] | None
    shape: Shape
    leaf: int | None

    @property
    def name(self) -> Segments:
        """Return the segments of the new name."""
        if self.tokens is None:
            return segments_at(self.old)
        return tuple(token.text for token in self.tokens)


def segments_at(path: Path) -> Segments:
    """Return the segments of the name of a path."""
    return segments_of(name_of(path)) if path else ()


def placed_by(
    rule: Rule, path: Path, flat: bool, shape: Shape, leaf: int | None
) -> Placed:
    """Return where a rule puts an atom; in a ``flat`` tree all segments are one key."""
    tokens = rule(segments_at(path))
    if tokens is None:
        return Placed(path, path, range(len(path)), None, shape, leaf)
    if flat:
        homes: list[int | None] = [0] * min(len(tokens), 1)
        groups = [tokens] * len(homes)
    else:
        homes, groups = _grouped(tokens, path)
    keys = map(lambda home, group: _key(group, home, path), homes, groups)
    return Placed(path, tuple(keys), homes, tokens, shape, leaf)


def _grouped(
    tokens: Sequence[Token], path: Path
) -> tuple[list[int | None], list[Sequence[Token]]]:
    """Return for each new key the place of the old one, and the tokens it is made of.

    A key is made of the neighbours that stand in one dotted key.
    """
    counts = [len(segments_of(str(key))) for key in path]
    homes: list[int | None] = []
    groups: list[Sequence[Token]] = []
    pairs = zip(_homes(tokens, counts), tokens, strict=True)
    for home, run in groupby(pairs, lambda pair: pair[0]):
        own = [token for _, token in run]
        parts = [own] if home is not None else [[token] for token in own]
        homes += [home] * len(parts)
        groups += parts
    return homes, groups


def _homes(tokens: Sequence[Token], counts: Sequence[int]) -> Iterator[int | None]:
    """Yield for each token the place of the old key in which it stands, if any.

    What is added within a dotted key, or behind its last segment, stands in it. If
    several stand for a key that is not dotted, the first does.
    """
    key_of = [k for k, count in enumerate(counts) for _ in range(count)]
    known = [None if token.old is None else key_of[token.old] for token in tokens]
    last = None
    for key, after in zip(known, _following(known), strict=True):
        dotted = last is not None and counts[last] > 1
        if key is None:
            yield last if dotted and after in (last, None) else None
            continue
        yield None if key == last and not dotted else key
        last = key


def _following(known: Sequence[int | None]) -> list[int | None]:
    """Return for each place the next that is known behind it."""
    found: list[int | None] = []
    after = None
    for key in reversed(known):
        found.append(after)
        after = after if key is None else key
    return found[::-1]


def _key(group: Sequence[Token], home: int | None, path: Path) -> Key:
    """Return the key that tokens make: the old one, one of its type, or text."""
    text = ".".join(token.text for token in group)
    if home is None:
        return text
    key = path[home]
    if text == str(key):
        return key
    return int(text) if type(key) is int and INDEX.fullmatch(text) else text
