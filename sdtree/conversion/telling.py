"""Rules from what was found out of leaves: names, and dims of axes without names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from sdtree.conversion.naming import Pattern
from sdtree.conversion.rule import Rule, reading_of
from sdtree.conversion.solving import follow
from sdtree.conversion.text import Axis, Expr, Product, Sum, axes_of

LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
NUMBER: Final = re.compile(r"(?<![^.])[0-9]+(?![^.])")
SLOT: Final = re.compile(r"\{(\w+)(:[^}]*)?\}")

Side = tuple[str, Sequence[Expr] | None]
"""The name of a leaf and its dims, None for those that it has."""


class Raw(NamedTuple):
    """A rule before its axes have names: both sides, and sizes.

    ``alias`` are the names of the target, the only one, that are tied.
    """

    source: Sequence[Side]
    target: Sequence[Side]
    sizes: Mapping[str, int]
    alias: tuple[str, ...] = ()

    @classmethod
    def renaming(cls, source: str, target: str) -> Raw:
        """Return the rule for a leaf that only changes its name."""
        return cls([(source, None)], [(target, None)], {})

    @property
    def names(self) -> list[str]:
        """Return the names of both sides."""
        return [name for name, _ in (*self.source, *self.target)]


class Called(dict[str, str]):
    """Letters for axes, in the order in which they are met."""

    def __missing__(self, axis: str) -> str:
        rounds, k = divmod(len(self), len(LETTERS))
        self[axis] = f"{LETTERS[k]}{rounds or ''}"
        return self[axis]

    def name(self, name: str) -> str:
        """Return how a name is written."""
        return SLOT.sub(lambda slot: f"{{{self[slot[1]]}{slot[2] or ''}}}", name)

    def text(self, expr: Expr) -> str:
        """Return how a dim is written."""
        if isinstance(expr, Axis):
            return self[expr.name]
        if isinstance(expr, Sum):
            return f"({' + '.join(map(self._addend, expr.parts))})"
        return f"({self._addend(expr)})" if expr.parts else "1"

    def _addend(self, expr: Expr) -> str:
        """Return how an addend is written, or what stands in ( )."""
        if isinstance(expr, Product) and expr.parts:
            return " ".join(map(self.text, expr.parts))
        return self.text(expr)


def rule_of(raw: Raw, numbers: Mapping[str, str] = MappingProxyType({})) -> Rule:
    """Return the rule, with slots for some numbers in names.

    >>> rule_of(Raw.renaming("a.0.w", "b.0.w"), {"0": "i"})
    rule('a.{i}.w', 'b.{i}.w')
    """
    called = Called()
    source, target = (
        tuple(_text(name, dims, called, numbers) for name, dims in side)
        for side in (raw.source, raw.target)
    )
    given = _sizes_needed([[*_exprs(side)] for side in (raw.source, raw.target)])
    sizes = tuple(sorted((called[name], raw.sizes[name]) for name in given))
    if not raw.alias:
        return Rule(source, target, sizes)
    tied = target[0].replace(raw.alias[0], f"{{tied:{'|'.join(raw.alias)}}}", 1)
    return Rule(source, (tied,), sizes, alias=("tied",))


def _text(
    name: str, dims: Sequence[Expr] | None, called: Called, numbers: Mapping[str, str]
) -> str:
    """Return the text of a leaf."""
    found = called.name(name)
    for number, slot in numbers.items():
        found = re.sub(rf"(?<![^.]){number}(?![^.])", f"{{{slot}}}", found)
    shown = dims and " ".join(map(called.text, dims))
    return found if dims is None else f"{found} [{shown or ''}]"


def _exprs(side: Sequence[Side]) -> Iterator[Expr]:
    """Yield what stands in the slots and dims of leaves."""
    for name, dims in side:
        yield from (Axis(slot[1]) for slot in SLOT.finditer(name))
        yield from dims or ()


def _sizes_needed(sides: Sequence[Sequence[Expr]]) -> set[str]:
    """Return axes whose sizes are to be given, so that all follow on each side."""
    every = {axis.name for side in sides for expr in side for axis in axes_of(expr)}
    given: set[str] = set()
    for side in sides:
        while left := every - follow(side, given):
            given.add(min(left, key=lambda name: (len(name), name)))
    return given


# -- one for many ------------------------------------------------------------------


def generalized(found: Sequence[tuple[Raw, Rule]]) -> Iterator[Rule]:
    """Yield one rule for all that are alike but for numbers in names, where one can."""
    every = [_first(name) for raw, _ in found for name, _ in raw.source]
    groups: dict[Rule, list[Rule]] = {}
    for raw, rule in found:
        groups.setdefault(rule_of(raw, _numbers(raw)), []).append(rule)
    for general, own in groups.items():
        alike = len(own) > 1 and _means_no_other(general, own, every)
        yield from [general] if alike else own


def _numbers(raw: Raw) -> dict[str, str]:
    """Return slots for the numbers that stand in all names of a rule."""
    if raw.alias or any(":" in name for name in raw.names):
        return {}
    each = [NUMBER.findall(name) for name in raw.names]
    shared = [n for n in dict.fromkeys(each[0]) if all(n in own for own in each)]
    return {number: f"i{k}" for k, number in enumerate(shared)}


def _means_no_other(general: Rule, own: Sequence[Rule], every: Sequence[str]) -> bool:
    """Return whether a rule means the very leaves that others do."""
    reading = reading_of(general)
    for i, term in enumerate(reading.source):
        read = Pattern.of(reading, term).read
        mine = {_first(rule.source[i].partition(" [")[0]) for rule in own}
        if {name for name in every if read(name)} != mine:
            return False
    return True


def _first(name: str) -> str:
    """Return the name of the first leaf of a family."""
    return SLOT.sub("0", name)
