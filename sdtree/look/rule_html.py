"""A rule as a notebook shows it: both sides, with the axes in colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle, islice, zip_longest
from typing import Final

from sdtree.conversion.rule import LISTS, BoundRule, Rule, reading_of
from sdtree.conversion.text import Axis, Term, axes_of
from sdtree.text.html import Html, element, escaped, framed, joined, table_html, tag
from sdtree.text.showing import add_showing
from sdtree.text.table import Table

HUES: Final = ("blue", "orange", "green", "purple", "teal", "red", "grey")
"""The colours of axes, in the order in which these are met."""

LONG: Final = 40
"""Of how many letters a leaf has its dims below its name."""

MOST_GROUPS: Final = 20
"""How many groups of a bound rule are shown."""


def rule_html(rule: Rule) -> str:
    """Return what a notebook shows of a rule."""
    return framed(_sides(rule), plain=repr(rule))


def bound_html(bound: BoundRule) -> str:
    """Return what a notebook shows of a rule that is bound: its sizes, too."""
    keys = reading_of(bound.rule).keys
    rows = [
        (_told(dict(zip(keys, key, strict=True))), _told(dict(sizes)))
        for key, sizes in islice(bound.sizes, MOST_GROUPS)
    ]
    left = len(bound.sizes) - len(rows)
    caption = f"and {left:,} more groups" if left else ""
    groups = table_html(Table(("group", "sizes"), rows), caption=caption)
    return framed(_sides(bound.rule), groups, plain=repr(bound))


def _sides(rule: Rule) -> Html:
    """Return both sides of a rule as a table, and what is said beside them."""
    reading = reading_of(rule)
    hues = dict(zip(_axes(*reading.terms), cycle(HUES), strict=False))
    both = zip_longest(reading.source, reading.target)
    rows = [tuple(_coloured(term, hues) for term in row) for row in both]
    fill = {f"fill {axis}": value for axis, value in rule.fill}
    lists = {name: ", ".join(getattr(rule, name)) for name in LISTS}
    beside = _told(dict(rule.sizes) | fill | {k: x for k, x in lists.items() if x})
    return joined([table_html(Table(("source", "target"), rows)), element("p", beside)])


def _axes(*terms: Term) -> Iterator[str]:
    """Return the names of all axes, each once, in order."""
    axes = (axis for term in terms for expr in term.exprs for axis in axes_of(expr))
    return iter(dict.fromkeys(axis.name for axis in axes))


def _coloured(term: Term | None, hues: Mapping[str, str]) -> Html:
    """Return the text of a term, each axis in its colour."""
    if term is None:
        return Html()
    axes = (axis for expr in term.exprs for axis in axes_of(expr))
    parts: list[str] = []
    at = 0
    for axis in sorted(axes, key=_start):
        start, stop = axis.span
        if stop > start:
            parts += [term.text[at:start], tag(axis.name, hues[axis.name])]
            at = stop
    found = element("code", *map(escaped, [*parts, term.text[at:]]))
    return Html(found.replace(" [", "<br>[", 1)) if len(term.text) > LONG else found


def _start(axis: Axis) -> int:
    return axis.span[0]


def _told(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


add_showing(Rule, html=rule_html)
add_showing(BoundRule, html=bound_html)
