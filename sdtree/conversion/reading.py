"""A rule as it is read, and the proof that it is one.

Both sides are sums of parts. If these are the same, each element is used once and each
place is filled once, whatever the sizes are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from sdtree.conversion.algebra import Repeated, count_of, parts
from sdtree.conversion.text import REST, Axis, Expr, Term, axes_of, fault, term_of
from sdtree.errors import RuleError

MOST_PARTS: Final = 4096
"""How many parts a side may have."""

OPTIONS: Final = ("fill", "drop", "agree", "alias")
"""What a rule is told beside sizes: no axis that is given a size is named so."""

MOST_ELEMENTS: Final = 2**63 - 1
"""How large an axis may be, for any tensor."""

Fill = float | int | bool


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A rule that is read and right.

    ``keys`` are the axes that batch: for each of their values there is a group of
    leaves. Those that are ``indexed`` are numbers in names, the others any text.
    """

    text: str
    source: tuple[Term, ...]
    target: tuple[Term, ...]
    sizes: Mapping[str, int]
    fill: Mapping[str, Fill]
    drop: frozenset[str]
    agree: frozenset[str]
    alias: frozenset[str]
    keys: tuple[str, ...] = ()
    indexed: frozenset[str] = frozenset()

    @property
    def terms(self) -> tuple[Term, ...]:
        """Return the terms of both sides."""
        return (*self.source, *self.target)

    def slots_of(self, term: Term) -> list[str | None]:
        """Return the axes that are alone in the slots of a term that are no keys."""
        return [slot.axis for slot in term.slots if slot.axis not in self.keys]

    @property
    def alike(self) -> frozenset[str]:
        """Return the axes of one side alone along which all is the same."""
        return self.agree | self.alias


def read(
    text: str,
    source: Sequence[str],
    target: Sequence[str],
    sizes: Mapping[str, int],
    fill: Mapping[str, Fill],
    drop: Iterable[str],
    agree: Iterable[str],
    alias: Iterable[str],
) -> Reading:
    """Return a rule as it is read; raise ``RuleError`` if it is none."""
    here, there = (tuple(map(term_of, side)) for side in (source, target))
    marks = frozenset(drop), frozenset(agree), frozenset(alias)
    keys = sorted(_keys(here, there) - {*fill}.union(*marks))
    terms = (*here, *there)
    found = Reading(
        text,
        here,
        there,
        _all_sizes(text, terms, sizes, keys),
        fill,
        *marks,
        keys=tuple(keys),
        indexed=frozenset(_indexed(terms)).intersection(keys),
    )
    _check_axes(found)
    _prove(found)
    return found


# -- axes --------------------------------------------------------------------------


def names_in(exprs: Iterable[Expr]) -> set[str]:
    """Return the names of the axes of expressions."""
    return {axis.name for expr in exprs for axis in axes_of(expr)}


def dims_and_slots(term: Term, keys: Sequence[str]) -> tuple[list[Expr], list[Expr]]:
    """Return what fills the slots of a term that are no keys, and its dims."""
    slots = [slot.expr for slot in term.slots if slot.axis not in keys]
    return slots, [*term.dims]


def _keys(source: Sequence[Term], target: Sequence[Term]) -> set[str]:
    """Return the axes that stand alone in a slot of every term and nowhere else."""
    terms = (*source, *target)
    alone = [{slot.axis for slot in term.slots if slot.axis} for term in terms]
    mixed = names_in(
        expr
        for term in terms
        for expr in term.exprs
        if not isinstance(expr, Axis) or expr in term.dims
    )
    return set.intersection(*alone) - mixed if alone else set()


def _indexed(terms: Iterable[Term]) -> Iterator[str]:
    """Yield the axes that some slot writes in digits, or by names."""
    for term in terms:
        for slot in term.slots:
            if slot.axis and (slot.names or slot.width):
                yield slot.axis


def _all_sizes(
    text: str, terms: Iterable[Term], sizes: Mapping[str, int], keys: Sequence[str]
) -> dict[str, int]:
    """Return the sizes that a rule gives, those of axes with names among them."""
    found = dict(sizes)
    for term in terms:
        for slot in term.slots:
            count = len(slot.names)
            if slot.axis and count and found.setdefault(slot.axis, count) != count:
                reason = f"{slot.axis!r} has {found[slot.axis]} values, here {count}"
                raise fault(reason, term.text, *term.marks(slot.axis))
    for axis, size in sizes.items():
        if axis in OPTIONS:
            reason = f"{axis}= is an option of a rule; call the axis something else"
            raise fault(reason, text)
        if type(size) is not int or not 0 <= size <= MOST_ELEMENTS:
            raise RuleError(
                f"{axis}={size!r} is no size of an axis; the rule is {text}"
            )
    return found


def _check_axes(rule: Reading) -> None:
    """Raise ``RuleError`` unless each axis stands where what is said of it holds."""
    here, there = (
        names_in(expr for term in side for expr in term.exprs) - {REST}
        for side in (rule.source, rule.target)
    )
    for option, axes, wanted in (
        ("drop", rule.drop, here - there),
        ("fill", {*rule.fill}, there - here),
        ("agree", rule.agree, here ^ there),
        ("alias", rule.alias, here ^ there),
        ("sizes", {*rule.sizes}, here | there),
    ):
        for axis in sorted(axes - wanted):
            raise _misplaced(rule, option, axis, axis in here | there)
    for axis in sorted(
        rule.agree & rule.alias | (rule.drop | {*rule.fill}) & rule.alike
    ):
        raise RuleError(f"{axis!r} is named twice; the rule is {rule.text}")
    for term in rule.terms:
        _check_slots(rule, term)


def _misplaced(rule: Reading, option: str, axis: str, is_there: bool) -> RuleError:
    if not is_there:
        given = f"{axis}=" if option == "sizes" else f"{option}= names {axis!r}, which"
        return RuleError(f"{given} is no axis of the rule {rule.text}")
    place = {"drop": "the source", "fill": "the target"}.get(option, "one side")
    term = next(term for term in rule.terms if term.marks(axis))
    reason = f"{option}= is for axes of {place} alone, and {axis!r} is none"
    return fault(reason, term.text, *term.marks(axis))


def _check_slots(rule: Reading, term: Term) -> None:
    """Raise ``RuleError`` if a slot has an axis that it cannot have."""
    alone = {slot.axis for slot in term.slots}
    for slot in term.slots:
        if slot.is_path and slot.axis not in rule.keys:
            reason = f"{{{slot.axis}:**}} is to stand in every name, and in no dims"
            raise fault(reason, term.text, *term.marks(slot.axis or ""))
    for slot in term.slots:
        others = [x for x in term.slots if x.axis == slot.axis and x is not slot]
        if slot.axis and any(slot.is_path or not slot.is_written_as(x) for x in others):
            reason = f"{slot.axis!r} stands in a name twice, written in two ways"
            raise fault(reason, term.text, *term.marks(slot.axis))
    for axis in sorted(rule.alias - alone):
        if term.marks(axis):
            reason = f"alias= ties leaves: {axis!r} is to stand alone in a slot"
            raise fault(reason, term.text, *term.marks(axis))


# -- the proof ---------------------------------------------------------------------

Parts = dict[frozenset[str], Term]
"""The parts of a side, and where each stands."""


def _prove(rule: Reading) -> None:
    """Raise ``RuleError`` unless both sides have the same parts, each of them once."""
    here = _parts_of(rule, rule.source, rule.drop)
    there = _parts_of(rule, rule.target, frozenset(rule.fill))
    for part, term in here.items():
        if part not in there:
            raise _unpaired(term, part, "goes nowhere", "drop=")
    for part, term in there.items():
        if part not in here:
            raise _unpaired(term, part, "comes from nowhere", "fill=")


def _parts_of(rule: Reading, side: Sequence[Term], left: frozenset[str]) -> Parts:
    """Return the parts of a side, but for those that are dropped or filled."""
    found: Parts = {}
    for term in side:
        for axes in _axes_of_parts(rule, term):
            part = axes - rule.alike
            if part in found:
                reason = (
                    f"the part ({_shown(part)}) stands in {found[part].text!r}, too"
                )
                raise fault(reason, term.text, *term.marks(*part))
            if len({rule.fill[axis] for axis in part & rule.fill.keys()}) > 1:
                reason = f"the part ({_shown(part)}) has two values in fill="
                raise fault(reason, term.text, *term.marks(*part))
            found[part] = term
    return {part: term for part, term in found.items() if not part & left}


def _shown(part: frozenset[str]) -> str:
    return " ".join(sorted(part)) or "1"


def _unpaired(term: Term, part: frozenset[str], what: str, option: str) -> RuleError:
    reason = f"the part ({_shown(part)}) {what}; if it is to, name an axis in {option}"
    return fault(reason, term.text, *term.marks(*part))


def _axes_of_parts(rule: Reading, term: Term) -> Iterator[frozenset[str]]:
    slots, dims = dims_and_slots(term, rule.keys)
    exprs = [*slots, *dims]
    if prod(map(count_of, exprs)) > MOST_PARTS:
        raise fault(f"this falls into more than {MOST_PARTS} parts", term.text)
    ones = dict.fromkeys({*names_in(exprs), REST}, 1)
    try:
        yield from (part.axes for part in parts(exprs, ones))
    except Repeated as error:
        reason = f"the axis {error.axis!r} stands twice in one part"
        raise fault(reason, term.text, *term.marks(error.axis)) from None
