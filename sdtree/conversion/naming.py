"""Which names a term means, and which it makes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sdtree.conversion.reading import Reading
from sdtree.conversion.text import Slot, Term

Value = int | str
Key = tuple[Value, ...]
"""What the keys of a rule are for a group of leaves, in order."""

At = tuple[int, ...]
"""Where a leaf stands in its family: what its other slots are."""


class Found(NamedTuple):
    """What a name says of a leaf."""

    key: Key
    at: At


@dataclass(frozen=True, slots=True)
class Pattern:
    """The names of a term, read and written.

    Law: ``read(write(found)) = found``, or two leaves could have one name.
    """

    regex: re.Pattern[str]
    pieces: tuple[str | Slot, ...]
    keys: tuple[str, ...]
    indexed: frozenset[str]

    @classmethod
    def of(cls, rule: Reading, term: Term) -> Pattern:
        """Return how a term of a rule reads names."""
        pieces = _without_dots(term.pieces)
        regex = "".join(_regex(rule, piece) for piece in pieces)
        return cls(re.compile(regex, re.DOTALL), pieces, rule.keys, rule.indexed)

    def read(self, name: str) -> Found | None:
        """Return what a name says, None if it is none of the term's."""
        found = self.regex.fullmatch(name)
        return None if found is None else self.said(found.groups())

    def said(self, texts: Sequence[str]) -> Found:
        """Return what the texts say that stand in the slots."""
        key: dict[str, Value] = {}
        at: list[int] = []
        slots = (piece for piece in self.pieces if isinstance(piece, Slot))
        for slot, text in zip(slots, texts, strict=True):
            axis = slot.axis
            if axis not in self.keys:
                at.append(_index(slot, text))
            elif axis in self.indexed:
                key[axis] = _index(slot, text)
            else:
                key[axis] = text.removesuffix(slot.behind).removeprefix(slot.before)
        return Found(tuple([key[axis] for axis in self.keys]), tuple(at))

    def write(self, found: Found) -> str:
        """Return the name of a leaf."""
        key, at = dict(zip(self.keys, found.key, strict=True)), iter(found.at)
        return "".join(
            [
                piece
                if isinstance(piece, str)
                else _text(piece, key[piece.axis] if piece.axis in key else next(at))
                for piece in self.pieces
            ]
        )


def _without_dots(pieces: Sequence[str | Slot]) -> tuple[str | Slot, ...]:
    """Return the pieces of a name without the dots that go with paths."""
    found = [*pieces]
    for i, piece in enumerate(pieces):
        if isinstance(piece, Slot) and piece.before:
            found[i - 1] = str(found[i - 1]).removesuffix(".")
    return tuple(found)


def _regex(rule: Reading, piece: str | Slot) -> str:
    """Return what a piece of a name matches, a slot as a group."""
    if isinstance(piece, str):
        return re.escape(piece)
    if piece.is_path:
        if piece.behind:
            return r"((?:[^.]*\.)*)"
        return r"((?:\.[^.]*)*)" if piece.before else "(.*)"
    if piece.names:
        return f"({'|'.join(map(re.escape, piece.names))})"
    if piece.axis in rule.keys and piece.axis not in rule.indexed:
        return r"([^.]+)"
    if piece.width:
        return f"([0-9]{{{piece.width}}}|[1-9][0-9]{{{piece.width},17}})"
    return "(0|[1-9][0-9]{0,17})"


def _index(slot: Slot, text: str) -> int:
    return slot.names.index(text) if slot.names else int(text)


def _text(slot: Slot, value: Value) -> str:
    """Return how a slot is written."""
    if slot.is_path:
        return f"{slot.before}{value}{slot.behind}" if value else ""
    if slot.names:
        return slot.names[int(value)]
    return f"{value:0{slot.width}}" if slot.width else str(value)


def patterns(rule: Reading, terms: Sequence[Term]) -> Iterator[Pattern]:
    """Yield how each term reads names."""
    return (Pattern.of(rule, term) for term in terms)
