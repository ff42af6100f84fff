"""A listing in a terminal, drawn by rich where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from sdtree.look.guides import guided
from sdtree.look.listing import ROOM, WIDE, Listing
from sdtree.look.outline import Branch
from sdtree.look.rows import Line
from sdtree.text.html import dtype_name, hue_of
from sdtree.text.showing import add_showing
from sdtree.text.table import counted, printable, readable_bytes

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

COLOURS: Final = {
    "blue": "bright_blue",
    "teal": "cyan",
    "green": "green",
    "orange": "yellow",
    "red": "red",
    "purple": "magenta",
    "grey": "bright_black",
}
"""What the colours of a notebook are in a terminal."""

Cell = tuple[str, str]
"""A text and its style."""


class Column(NamedTuple):
    """A column behind the name, and from which width on there is room for it."""

    title: str
    least: int
    side: Literal["left", "right"] = "left"


COLUMNS: Final = (
    Column("kind", 100),
    Column("shape or value", 56),
    Column("dtype", 72),
    Column("parameters", 84, "right"),
    Column("", 96),
    Column("bytes", 0, "right"),
)

FILE: Final = 36
"""How many columns more there must be, where the file of each leaf is told."""

BAR: Final = 10
"""How many characters the largest bar has."""


def listing_rich(listing: Listing, width: int) -> Iterator[Table | Text]:
    """Yield what rich prints of a listing: the tree, then totals."""
    return outline_rich(listing, listing.outline(ROOM, WIDE), width)


def outline_rich(listing: Listing, root: Branch, width: int) -> Iterator[Table | Text]:
    """Yield what rich prints of a listing of which so much is seen."""
    from rich.table import Table
    from rich.text import Text

    columns = [*_fitting(bool(listing.files), width)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("name")
    for _, column in columns:
        table.add_column(column.title, justify=column.side, no_wrap=True)
    for name, each in guided(root.below):
        line = listing.line(name, each.branch)
        cells = _cells(listing, each.branch, line, values=width < COLUMNS[1].least)
        texts = (Text(printable(cells[k][0]), cells[k][1]) for k, _ in columns)
        table.add_row(each, *texts)
    yield table
    yield Text(f"\n{_summary(listing)}", "bold")


def _summary(listing: Listing) -> str:
    total = listing.total
    told = [counted(total.parameters, "parameter"), "in"]
    said = [f"{' '.join(told)} {counted(total.leaves, 'leaf', 'leaves')}"]
    said += [readable_bytes(total.nbytes)]
    said += [counted(len(listing.ties), "tie")] if listing.ties else []
    return ", ".join(said)


def _fitting(with_files: bool, width: int) -> Iterator[tuple[int, Column]]:
    """Yield the columns that there is room for, each with its place among the cells."""
    wider = FILE if with_files else 0
    columns = (*COLUMNS, Column("file", 80)) if with_files else COLUMNS
    for k, column in enumerate(columns):
        if width >= column.least + (wider if column.least >= 84 else 0):
            yield k, column


def _cells(
    listing: Listing, branch: Branch, line: Line, *, values: bool
) -> tuple[Cell, ...]:
    """Return what stands in each column, with its style.

    ``values`` stand where the bytes would, where they have no column of their own.
    """
    is_sharded = line.form is not None and line.form.layout is not None
    kind = (
        line.kind,
        "magenta" if is_sharded else "cyan" if line.dtype else "bright_black",
    )
    what = line.what, ""
    if not branch.is_leaf:
        what = counted(line.leaves, "leaf", "leaves"), "bright_black"
    elif line.ties:
        what = f"{line.what}  tie {line.ties}", "red"
    dtype = ("", "") if line.dtype is None else _dtype(line)
    share = line.nbytes / max(listing.total.nbytes, 1)
    bar = "█" * round(BAR * share) or ("▏" if line.nbytes else "")
    size = line.size if line.nbytes or line.dtype is not None else ""
    size = line.what if values and line.is_plain else size
    numbers = (line.elements, ""), (bar, COLOURS["blue"]), (size, "")
    return kind, what, dtype, *numbers, (_file(listing, branch), "bright_black")


def _file(listing: Listing, branch: Branch) -> str:
    """Return in which file the leaves of a branch are, or in how many."""
    files = {listing.files[i] for i in branch.leaves} if listing.files else set[str]()
    return counted(len(files), "file") if len(files) > 1 else "".join(files)


def _dtype(line: Line) -> Cell:
    assert line.dtype is not None
    return dtype_name(line.dtype), COLOURS[hue_of(line.dtype)]


add_showing(Listing, rich=listing_rich)
