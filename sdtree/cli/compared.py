"""What ``sdtree diff`` prints: a tree in a terminal, tables elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from rich.console import Console

from sdtree.cli import console
from sdtree.exchange.differences import (
    CONTAINER,
    Diff,
    Number,
    numbered,
    place,
    table_of,
)
from sdtree.exchange.stat import Stat
from sdtree.look.differences import diff_rich, stat_table, stats_json
from sdtree.text.table import counted


class By(StrEnum):
    """By which of their numbers differences stand, the largest first."""

    MAX_ABS = "max_abs"
    NORM = "norm"
    REL = "rel"
    COUNT = "count"
    SHARE = "share"

    def number(self) -> Number:
        """Return its name, as it is known there."""
        return self.value


class Ask(NamedTuple):
    """What is asked of a comparison, and how it is to be told."""

    values: bool = False
    stat: bool = False
    depth: int | None = None
    top: int | None = None
    by: By | None = None
    rtol: float | None = None
    atol: float | None = None

    def looks_at_data(self) -> bool:
        """Return whether the data is to be compared: whatever is a number needs it."""
        numbers = self.top, self.by, self.rtol, self.atol
        return self.values or self.stat or any(x is not None for x in numbers)

    def ordered(self, found: Diff) -> Diff:
        """Return the differences that are asked for, in order; all that --stat sums."""
        if self.stat:
            return found
        by: Number = "norm" if self.by is None else self.by.number()
        if self.top is not None:
            return found.top(self.top, by)
        return found if self.by is None else found.sorted(by)

    def stats(self, found: Diff) -> Sequence[Stat]:
        """Return what changed below the prefixes that are asked for, then in all."""
        *branches, total = found.stat(self.depth or 1)
        if self.by is not None or self.top is not None:
            by = "norm" if self.by is None else self.by.number()
            branches.sort(key=lambda stat: place(getattr(stat, by)))
        return [*branches[: self.top], total]


def print_json(found: Diff, ask: Ask) -> None:
    """Print what is asked for as JSON."""
    print(stats_json(ask.stats(found)) if ask.stat else found.to_json())


def print_found(found: Diff, ask: Ask) -> None:
    """Print what is asked for, for people."""
    if not found:
        print(found)
    elif ask.stat:
        console.write([stat_table(ask.stats(found))])
    elif ask.top is not None or ask.by is not None:
        console.write([numbered(found)])
    elif console.is_read():
        width = console.width()
        for part in diff_rich(found, width):
            Console(width=width).print(part)
    else:
        console.write([table_of(found)])


def notes(found: Diff, ask: Ask) -> Iterator[str]:
    """Yield what the comparison leaves open, and what is not printed."""
    if found.more:
        yield f"{counted(found.more, 'more difference')}, which --top leaves out"
    if found.unseen:
        yield f"{found.left_out()}; --values compares it"
    elif found and found.within:
        yield found.left_out()
    containers = sum(d.what == CONTAINER for d in found)
    if ask.stat and containers:
        yield f"also different, and no leaves: {counted(containers, 'container')}"
