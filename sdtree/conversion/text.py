"""The text of one leaf of a rule, or a family of them: a name with slots, and dims.

A dim, and what stands in a slot, is an expression: an axis, a product of such in a row,
or in ( ) a sum of products.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, NamedTuple

from sdtree.errors import RuleError

Span = tuple[int, int]
"""Where something stands in a text, as [start, stop)."""

REST: Final = "..."
"""The axis that stands for all dims that are not named."""

MOST_DEEP: Final = 50
"""How many ( ) may stand in one another."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis by its name."""

    name: str
    span: Span = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Product:
    """Axes that are one dim, the last of which runs the fastest; none of them is 1."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """What stands one behind the other in a dim."""

    parts: tuple[Expr, ...]


Expr = Axis | Product | Sum


@dataclass(frozen=True, slots=True)
class Slot:
    """A part of a name that an expression fills.

    With ``names`` it is one of these, by its place among them; with a ``width`` an
    index of at least so many digits; ``is_path`` any number of whole segments, none
    included, for which the dot goes that is ``before`` or ``behind`` them.
    """

    expr: Expr
    names: tuple[str, ...] = ()
    width: int = 0
    is_path: bool = False
    before: str = ""
    behind: str = ""

    @property
    def axis(self) -> str | None:
        """Return the axis that stands alone in the slot, if one does."""
        return self.expr.name if isinstance(self.expr, Axis) else None

    def is_written_as(self, other: Slot) -> bool:
        """Return whether a value is written alike in both."""
        return (self.names, self.width) == (other.names, other.width)


@dataclass(frozen=True, slots=True)
class Term:
    """A leaf of a rule, or a family: the pieces of its name, and its dims."""

    text: str
    pieces: tuple[str | Slot, ...]
    dims: tuple[Expr, ...]

    @property
    def slots(self) -> list[Slot]:
        """Return the slots of the name in order."""
        return [piece for piece in self.pieces if isinstance(piece, Slot)]

    @property
    def exprs(self) -> list[Expr]:
        """Return what fills the slots, and then the dims."""
        return [*(slot.expr for slot in self.slots), *self.dims]

    def marks(self, *names: str) -> list[Span]:
        """Return where axes stand in the text."""
        axes = (axis for expr in self.exprs for axis in axes_of(expr))
        return [axis.span for axis in axes if axis.name in names]


def axes_of(expr: Expr) -> Iterator[Axis]:
    """Yield the axes of an expression in order."""
    if isinstance(expr, Axis):
        yield expr
        return
    for part in expr.parts:
        yield from axes_of(part)


def fault(reason: str, text: str, *spans: Span) -> RuleError:
    """Return the error for a text, which shows it with the parts marked."""
    marks = [any(a <= i < b for a, b in spans) for i in range(len(text) + 1)]
    line = "".join("^" if mark else " " for mark in marks).rstrip()
    return RuleError("\n    ".join([reason, text, *([line] if line else [])]))


# -- from text to terms ------------------------------------------------------------

LITERALLY: Final = (
    r"what a name itself has of spaces and brackets stands behind \, as in a\[0\]"
)
"""How names are written whose characters have a meaning here."""

_TERM: Final = re.compile(
    r"\s*(?P<name>(?:\{[^{}]*\}|\\.|[^\s\[\]{}\\])+)\s*"
    r"(?:\[(?P<dims>[^\[\]]*)\]\s*)?",
    re.DOTALL,
)
_TOKEN: Final = re.compile(r"[^\W\d]\w*|\.\.\.|1(?!\w)|[()+]")
_PIECE: Final = re.compile(
    r"\{(?P<slot>[^{}]*)\}|(?P<text>(?:\\.|[^{}\\])+)", re.DOTALL
)


@lru_cache(maxsize=4096)
def term_of(text: str) -> Term:
    """Return the term that a text says.

    >>> term_of("experts.{e}.w [(f + g) ...]").slots[0].axis
    'e'
    """
    found = _TERM.match(text)
    if found is None or found.end() < len(text):
        at = found.end() if found else 0
        raise fault(
            "a side is a name with slots in { }, and its dims in [ ] behind it, as in "
            f"'layers.{{i}}.w [(a b) ...]'; {LITERALLY}",
            text,
            (at, max(at + 1, len(text))),
        )
    pieces = tuple(_with_dots(text, [*_pieces(text, *found.span("name"))]))
    start, stop = found.span("dims")
    dims = _read(text, start, stop) if start >= 0 else (Axis(REST),)
    rests = [axis.span for dim in dims if dim == Axis(REST) for axis in axes_of(dim)]
    if rests[1:]:
        raise fault("'...' stands for the rest of the dims, once", text, *rests)
    return Term(text, pieces, dims)


def _pieces(text: str, start: int, stop: int) -> Iterator[str | Slot]:
    """Yield the parts of a name: text, and the slots between."""
    for found in _PIECE.finditer(text, start, stop):
        if found["slot"] is None:
            yield re.sub(r"\\(.)", r"\1", found["text"], flags=re.DOTALL)
        else:
            yield _slot(text, *found.span("slot"))


def _slot(text: str, start: int, stop: int) -> Slot:
    colon = text.find(":", start, stop)
    end = stop if colon < 0 else colon
    exprs = _read(text, start, end)
    if len(exprs) != 1 or Axis(REST) in exprs:
        raise fault(
            "a slot has one axis, or a product or sum in ( ), as {(i p)}",
            text,
            (start - 1, stop + 1),
        )
    return _valued(text, exprs[0], colon + 1, stop) if colon >= 0 else Slot(exprs[0])


def _valued(text: str, expr: Expr, start: int, stop: int) -> Slot:
    """Return the slot whose expression is written as the text behind ``:`` says."""
    values = text[start:stop].strip()
    if re.fullmatch(r"0[0-9]+", values) and 0 < int(values) <= 18:
        return Slot(expr, width=int(values))
    names = tuple(values.split("|"))
    if not isinstance(expr, Axis):
        reason = "names are for an axis alone, as {p:gate|up}"
    elif "" in names or len({*names}) < len(names):
        reason = "behind ':' stand names, each once, as {p:gate|up}; or ** or 02"
    elif values == "**":
        return Slot(expr, is_path=True)
    else:
        return Slot(expr, names)
    raise fault(reason, text, (start, stop))


def _with_dots(text: str, given: Sequence[str | Slot]) -> Iterator[str | Slot]:
    """Yield the pieces of a name, each path with the dot that goes with it.

    That is the one behind, or at the end that before.
    """
    after: str | Slot = ""
    for i, piece in enumerate(given):
        before, behind = (("", *given)[i], (*given, "")[i + 1])
        if isinstance(piece, str):
            yield piece[1:] if _is_path(before) else piece
        elif not piece.is_path:
            yield piece
        elif not (_ends(before, -1) and _ends(behind, 0)):
            raise fault(
                "** is whole segments; write it between dots", text, *_at(piece)
            )
        elif before == "." and _is_path(after):
            reason = "two ** side by side: nothing tells which segments are whose"
            advice = "write text between, or {x} for one segment"
            raise fault(f"{reason}; {advice}", text, *_at(after), *_at(piece))
        elif behind:
            yield replace(piece, behind=".")
        else:
            yield replace(piece, before=str(before)[-1:])
        after = before


def _is_path(piece: str | Slot) -> bool:
    return isinstance(piece, Slot) and piece.is_path


def _at(piece: str | Slot) -> Sequence[Span]:
    """Return where the axes of a slot stand in a text."""
    return [x.span for x in axes_of(piece.expr)] if isinstance(piece, Slot) else ()


def _ends(piece: str | Slot, place: int) -> bool:
    """Return whether a piece of a name, if there is one, has a dot at an end."""
    return not piece or (isinstance(piece, str) and piece[place] == ".")


class _Token(NamedTuple):
    text: str
    span: Span


def _read(text: str, start: int, stop: int) -> tuple[Expr, ...]:
    """Return the expressions that stand in a row in a part of a text."""
    left = [*_tokens(text, start, stop)][::-1]
    found = tuple(_row(text, left, 0))
    if left:
        token = left[-1]
        reason = "a sum stands in ( )" if token.text == "+" else "no '(' before this"
        raise fault(reason, text, token.span)
    return found


def _tokens(text: str, start: int, stop: int) -> Iterator[_Token]:
    at = start
    while at < stop:
        if text[at].isspace():
            at += 1
            continue
        found = _TOKEN.match(text, at, stop)
        if found is None:
            raise _strange(text, at, stop)
        yield _Token(found[0], found.span())
        at = found.end()


def _strange(text: str, at: int, stop: int) -> RuleError:
    """Return the error for what is no axis: a number perhaps."""
    found = re.compile(r"\w+|.").match(text, at, stop)
    assert found is not None
    advice = "name it and give its size: rule(..., two=2)"
    if text[max(0, text.rfind("[", 0, at) - 1)] not in " [":
        advice = f"{advice}; {LITERALLY}"
    is_number = found[0].isdecimal()
    reason = f"a number is no axis; {advice}" if is_number else "this is no axis"
    return fault(reason, text, found.span())


def _row(text: str, left: list[_Token], depth: int) -> Iterator[Expr]:
    """Yield what stands in a row until it ends, at a sign perhaps."""
    while left and left[-1].text not in (")", "+"):
        token = left.pop()
        if token.text == "(":
            yield _group(text, left, token, depth + 1)
        elif token.text == "1":
            yield Product(())
        elif token.text == REST and depth:
            raise fault("'...' is whole dims, and stands in no ( )", text, token.span)
        else:
            yield Axis(token.text, token.span)


def _group(text: str, left: list[_Token], start: _Token, depth: int) -> Expr:
    """Return what stands in ( ), of which the first is read."""
    if depth > MOST_DEEP:
        raise fault("too many ( ) stand in one another", text, start.span)
    addends: list[Expr] = []
    while True:
        row = tuple(_row(text, left, depth))
        end = left.pop() if left else None
        if end is None:
            raise fault("no ')' closes this", text, start.span)
        if not row:
            span = (start.span[0], end.span[1])
            raise fault("nothing stands here; an axis of one is 1", text, span)
        addends.append(row[0] if len(row) == 1 else Product(row))
        if end.text == ")":
            return addends[0] if len(addends) == 1 else Sum(tuple(addends))
