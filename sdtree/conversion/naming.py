"""Which names a term means, and which it makes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from sdtree.conversion.reading import Reading
from sdtree.conversion.text import Slot, Term
from sdtree.kinds.calls import Call
from sdtree.naming.globs import escape

Value = int | str
Key = tuple[Value, ...]
"""What the keys of a rule are for a group of leaves, in order."""

At = tuple[int, ...]
"""Where a leaf stands in its family: what its other slots are."""


class Found(NamedTuple):
    """What a name says of a leaf."""

    key: Key
    at: At


class Way(NamedTuple):
    """How a slot is read and written; ``place`` is that of its key, -1 for none.

    Text that is to be taken as it is has no ``read``.
    """

    place: int
    read: Callable[[str], Value] | None
    write: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Pattern:
    """The names of a term, read and written.

    Of several readings of a name that one counts in which the first slot takes as much
    as it can, then the next. Law: ``read(write(found)) = found``, or two leaves could
    have one name.
    """

    regex: re.Pattern[str]
    pieces: tuple[str | Way, ...]
    ways: tuple[Way, ...]
    count: int

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(rule: Reading, term: Term) -> Pattern:
        """Return how a term of a rule reads names."""
        given = _without_dots(term.pieces)
        regex = "".join(_regexes(rule, given))
        pieces = tuple(x if isinstance(x, str) else _way(rule, x) for x in given)
        ways = tuple(piece for piece in pieces if isinstance(piece, Way))
        return Pattern(re.compile(regex, re.DOTALL), pieces, ways, len(rule.keys))

    def read(self, name: str) -> Found | None:
        """Return what a name says, None if it is none of the term's."""
        found = self.regex.fullmatch(name)
        return None if found is None else self.said(found.groups())

    def said(self, texts: Sequence[str]) -> Found:
        """Return what the texts say that stand in the slots."""
        key: list[Value] = [""] * self.count
        at: list[int] = []
        for (place, read, _), text in zip(self.ways, texts, strict=True):
            value = text if read is None else read(text)
            if place < 0:
                at.append(int(value))
            else:
                key[place] = value
        return Found(tuple(key), tuple(at))

    def write(self, found: Found) -> str:
        """Return the name of a leaf."""
        key, at = found.key, iter(found.at)
        return "".join(
            [
                piece
                if isinstance(piece, str)
                else piece.write(next(at) if piece.place < 0 else key[piece.place])
                for piece in self.pieces
            ]
        )


def _way(rule: Reading, slot: Slot) -> Way:
    """Return how a slot is read and written."""
    place = rule.keys.index(slot.axis) if slot.axis in rule.keys else -1
    if slot.is_path:
        return Way(place, Call(_path_in, slot), Call(_path_text, slot))
    if slot.names:
        return Way(place, slot.names.index, slot.names.__getitem__)
    if place >= 0 and slot.axis not in rule.indexed:
        return Way(place, None, str)
    return Way(place, int, f"{{:0{slot.width}}}".format if slot.width else str)


def _path_in(slot: Slot, text: str) -> str:
    """Return the segments that a text has, each with a dot behind it.

    So none is not one without characters.
    """
    if slot.behind or (not text and slot.before):
        return text
    return f"{text.removeprefix(slot.before)}."


def _path_text(slot: Slot, path: str) -> str:
    """Return how segments are written, of which each has a dot behind it."""
    return path if slot.behind or not path else f"{slot.before}{path[:-1]}"


def _without_dots(pieces: Sequence[str | Slot]) -> tuple[str | Slot, ...]:
    """Return the pieces of a name without the dots that go with paths."""
    found = [*pieces]
    for i, piece in enumerate(pieces):
        if isinstance(piece, Slot) and piece.before:
            found[i - 1] = str(found[i - 1]).removesuffix(".")
    return tuple(found)


def _regexes(rule: Reading, pieces: Sequence[str | Slot]) -> Iterator[str]:
    """Yield what the pieces of a name match: an axis has one value wherever it is."""
    axes: list[str | None] = []
    for piece in pieces:
        axis = piece.axis if isinstance(piece, Slot) else None
        is_known = axis is not None and axis in axes
        yield rf"(\{axes.index(axis) + 1})" if is_known else _regex(rule, piece)
        axes += [axis] if isinstance(piece, Slot) else []


def _regex(rule: Reading, piece: str | Slot) -> str:
    """Return what a piece of a name matches, a slot as a group."""
    if isinstance(piece, str):
        return re.escape(piece)
    if piece.is_path:
        if piece.behind:
            return r"((?:[^.]*\.)*)"
        return r"((?:\.[^.]*)*)" if piece.before else "(.*)"
    if piece.names:
        longest_first = sorted(piece.names, key=len, reverse=True)
        return f"({'|'.join(map(re.escape, longest_first))})"
    if piece.axis in rule.keys and piece.axis not in rule.indexed:
        return r"([^.]+)"
    if piece.width:
        return f"([1-9][0-9]{{{piece.width},17}}|[0-9]{{{piece.width}}})"
    return "(0|[1-9][0-9]{0,17})"


def glob_of(term: Term) -> str:
    """Return a glob of the names that a term means, and perhaps of some more.

    >>> from sdtree.conversion.text import term_of
    >>> glob_of(term_of("{x:**}.layers.{i}.{p:up|down}.w"))
    '**.layers.*.{up,down}.w'
    """
    found: list[str] = []
    for piece in term.pieces:
        text = escape(piece) if isinstance(piece, str) else _glob(piece)
        found += [] if text == "*" and found[-1:] == ["*"] else [text]
    return "".join(found)


def _glob(slot: Slot) -> str:
    if slot.is_path:
        return f"**{slot.behind}"
    names = [*map(escape, slot.names)]
    if any("," in name for name in names):
        return "*"
    return f"{{{','.join(names)}}}" if names[1:] else (*names, "*")[0]


def patterns(rule: Reading, terms: Sequence[Term]) -> Iterator[Pattern]:
    """Yield how each term reads names."""
    return (Pattern.of(rule, term) for term in terms)
