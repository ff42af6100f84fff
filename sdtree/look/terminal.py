"""A listing in a terminal, drawn by rich where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sdtree.look.listing import ROOM, WIDE, Listing
from sdtree.look.outline import Branch
from sdtree.look.rows import Line
from sdtree.text.html import dtype_name, hue_of
from sdtree.text.showing import add_showing
from sdtree.text.table import counted, printable, readable_bytes, shortened

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

TITLES: Final = (
    *(("kind", ""), ("shape or value", ""), ("dtype", "")),
    *(("", ""), ("bytes", "right")),
)
"""The columns behind the name, and where they are aligned."""

BAR: Final = 10
"""How many characters the largest bar has."""

ROOMY: Final = 88
"""From which width on there are columns for kinds and bars."""


def listing_rich(listing: Listing, width: int) -> Iterator[Table | Text]:
    """Yield what rich prints of a listing: the tree, then totals."""
    from rich.table import Table
    from rich.text import Text

    is_roomy = width >= ROOMY
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("name", overflow="fold")
    for title, side in _fitting(TITLES, is_roomy):
        table.add_column(title, justify="right" if side else "left", no_wrap=True)
    for guide, branch, line in _lines(listing):
        cells = _cells(listing, branch, line)
        table.add_row(
            Text.assemble((guide, "bright_black"), *_label(branch)),
            *(
                Text(printable(text), style)
                for text, style in _fitting(cells, is_roomy)
            ),
        )
    yield table
    total = listing.total
    said = [counted(total.leaves, "leaf", "leaves"), readable_bytes(total.nbytes)]
    said += [counted(len(listing.ties), "tie")] if listing.ties else []
    yield Text(f"\n{', '.join(said)}", "bold")


def _fitting(cells: tuple[Cell, ...], is_roomy: bool) -> Iterator[Cell]:
    """Yield the cells that there are columns for."""
    _, what, dtype, _, size = cells
    yield from cells if is_roomy else (what, dtype, size)


def _lines(listing: Listing) -> Iterator[tuple[str, Branch, Line]]:
    """Yield every branch with the guide that leads to it, and its line."""
    return _guided(listing, listing.outline(ROOM, WIDE).below, "", "", True)


def _guided(
    listing: Listing,
    branches: tuple[Branch, ...],
    above: str,
    guide: str,
    is_top: bool = False,
) -> Iterator[tuple[str, Branch, Line]]:
    for branch in branches:
        is_last = branch is branches[-1]
        name = f"{above}{branch.label}"
        turn, on = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        if is_top:
            turn = on = ""
        yield f"{guide}{turn}", branch, listing.line(name, branch)
        yield from _guided(listing, branch.below, f"{name}.", f"{guide}{on}")


def _label(branch: Branch) -> Iterator[Cell]:
    more = ".**" if branch.is_cut and not branch.is_rest else ""
    yield f"{printable(shortened(branch.label))}{more}", ""
    if branch.times > 1:
        yield f" \N{MULTIPLICATION SIGN}{branch.times:,}", "bright_black"


def _cells(listing: Listing, branch: Branch, line: Line) -> tuple[Cell, ...]:
    """Return kind, what it is, dtype, bar and size of a line, each with its style."""
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
    return kind, what, dtype, (bar, COLOURS["blue"]), (size, "")


def _dtype(line: Line) -> Cell:
    assert line.dtype is not None
    return dtype_name(line.dtype), COLOURS[hue_of(line.dtype)]


add_showing(Listing, rich=listing_rich)
