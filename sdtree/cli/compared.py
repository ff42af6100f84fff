"""What ``sdtree diff`` prints: a tree in a terminal, tables elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from rich.console import Console

from sdtree.cli import console
from sdtree.exchange.differences import CONTAINER, Diff, Number, numbered, table_of
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
        """Return the differences that are asked for, in order."""
        by: Number = "norm" if self.by is None else self.by.number()
        if self.top is not None:
            return found.top(self.top, by)
        return found if self.by is None else found.sorted(by)


def print_json(found: Diff, ask: Ask) -> None:
    """Print what is asked for as JSON."""
    print(stats_json(found, ask.depth or 1) if ask.stat else found.to_json())


def print_found(found: Diff, ask: Ask) -> None:
    """Print what is asked for, for people."""
    if not found:
        print(found)
    elif ask.stat:
        console.write([stat_table(found, ask.depth or 1)])
    elif ask.top is not None or ask.by is not None:
        console.write([numbered(found)])
    elif console.is_read():
        width = console.width()
        for part in diff_rich(found, width):
            Console(width=width).print(part)
    else:
        console.write([table_of(found)])
    if found.more:
        print(f"… and {found.more:,} more")


def notes(found: Diff, ask: Ask) -> Iterator[str]:
    """Yield what the comparison leaves open."""
    if found.unseen:
        yield f"{found.left_out()}; --values compares it"
    elif found and found.within:
        yield found.left_out()
    containers = sum(d.what == CONTAINER for d in found)
    if ask.stat and containers:
        yield f"also different, and no leaves: {counted(containers, 'container')}"
