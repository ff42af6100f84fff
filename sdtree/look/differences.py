"""Differences as a notebook shows them, with bars, and a terminal, folded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from sdtree.exchange.differences import (
    NAME,
    Diff,
    Difference,
    in_words,
    numbers_of,
    rows_of,
    together,
)
from sdtree.exchange.stat import Stat
from sdtree.look.guides import guided
from sdtree.look.listing import ROOM, WIDE
from sdtree.look.outline import NUMBER, Branch, common, cropped, outline
from sdtree.path import where
from sdtree.text.html import element, framed, table_html, tag
from sdtree.text.showing import add_showing
from sdtree.text.table import Table as Rows
from sdtree.text.table import counted, printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

FEW: Final = 12
"""Up to how many differences are listed one by one, however alike they are."""

ROOMY: Final = 84
"""From which width on there are all columns."""


def diff_rich(found: Diff, width: int) -> Iterator[Table | Text]:
    """Yield what rich prints of differences: a tree in which alike ones are folded."""
    from rich.table import Table
    from rich.text import Text

    if not found:
        yield Text(in_words(found), "yellow" if found.left_out() else "green")
        return
    rows = [*rows_of(found)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("name")
    table.add_column("differs in", overflow="fold")
    titles = [*_fitting(("elements", "max", "norm", "rel"), width)]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for _, each in guided(_outline(rows).below):
        below = [rows[i] for i in each.branch.leaves]
        told, *numbers = _cells(below, each.branch)
        style = "red" if each.branch.is_leaf else "bright_black"
        table.add_row(each, Text(printable(told), style), *_fitting(numbers, width))
    yield table
    more = f"{found.more:,} more are left out" if found.more else ""
    said = [counted(len(rows), "difference"), more, found.left_out()]
    yield Text(f"\n{'; '.join(filter(None, said))}", "bold")


def _fitting(cells: Sequence[str], width: int) -> Sequence[str]:
    """Return the cells that there is room for; of norm and rel the latter stays."""
    if width >= ROOMY:
        return cells
    elements, most, _, rel = cells
    return (elements, most, rel) if width >= 72 else (rel,) if width >= 48 else ()


def _outline(rows: Sequence[Difference]) -> Branch:
    """Return the differences as branches, of which there are as many as have room."""
    marks = [(d.what, _pattern(d) if d.what == NAME else d.sides) for d in rows]
    names = [where(d.path) for d in rows]
    return cropped(outline(names, marks, fold=len(rows) > FEW), len, ROOM, WIDE)


def _pattern(renamed: Difference) -> str:
    """Return a new name, each number in it that the old one has told by its place.

    Those that were renamed alike have one.
    """
    numbers = NUMBER.findall(renamed.a)
    return NUMBER.sub(
        lambda found: (
            f"#{numbers.index(found[0])}" if found[0] in numbers else found[0]
        ),
        renamed.b,
    )


def _renamed(rows: Sequence[Difference]) -> str:
    """Return under which name alike leaves are now, the numbers in it together."""
    names = [d.b for d in rows]
    among = common(names) or f"{names[0]} … {names[-1]}"
    return f"{NAME} \N{RIGHTWARDS ARROW} {names[0] if len(names) == 1 else among}"


def _cells(rows: Sequence[Difference], branch: Branch) -> Sequence[str]:
    """Return in what some differences are, and the numbers that they have together."""
    counts = counted(len(rows), "difference")
    told = rows[0].in_short() if branch.is_leaf else counts
    if branch.is_leaf and rows[0].what == NAME:
        told = _renamed(rows)
    has_gaps = any(d.gap is not None for d in rows)
    return told, *numbers_of(together(rows) if has_gaps else None)


def diff_html(found: Diff) -> str:
    """Return what a notebook shows of differences: a table, with bars of shares."""
    if not found:
        colour = "orange" if found.left_out() else "green"
        return framed(tag(in_words(found), colour), plain=str(found))
    count = element("strong", counted(len(found), "difference"))
    head = [element("div", count, cls="head")]
    if left := found.left_out():
        head.append(element("div", left, cls="faint"))
    rows = [*rows_of(found)]
    shares = [d.share or 0.0 for d in rows]
    table = Rows(
        ("name", "differs in", "a", "b", "elements", "max", "norm", "rel"),
        [(where(d.path), d.what, d.a, d.b, *numbers_of(d.gap)) for d in rows],
        right={4, 5, 6, 7},
    )
    more = [element("div", f"… and {found.more:,} more", cls="faint")]
    last = more if found.more else []
    return framed(*head, table_html(table, {4: shares}), *last, plain=str(found))


def stat_table(stats: Sequence[Stat]) -> Rows:
    """Return what changed below each prefix as a table."""
    titles = ("below", "changed", "unlike", "elements", "max", "norm", "rel")
    return Rows(titles, [stat.cells() for stat in stats], right={1, 2, 3, 4, 5, 6})


def stats_json(stats: Sequence[Stat]) -> str:
    """Return what changed below each prefix as JSON text."""
    return json.dumps([stat.to_data() for stat in stats], indent=2)


add_showing(Diff, html=diff_html, rich=diff_rich)
