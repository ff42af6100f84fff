"""What ``sdtree show`` prints: a tree in a terminal, a line for each leaf elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any, NamedTuple

from rich.console import Console

from sdtree.cli import console
from sdtree.cli.opening import Look
from sdtree.io.refusal import in_short
from sdtree.io.texts import FORMAT, Metadata
from sdtree.look.listing import FEW, ROOM, WIDE, Listing
from sdtree.look.listing import show as list_tree
from sdtree.look.outline import Branch, Size, cropped, ordered, shallow
from sdtree.look.rows import Line
from sdtree.look.terminal import outline_rich
from sdtree.naming.globs import segments_of
from sdtree.text.table import Table, counted, printable
from sdtree.tree.flattening import structure


class Order(StrEnum):
    """By what leaves stand, those first that have most."""

    BYTES = "bytes"
    PARAMETERS = "parameters"


class View(NamedTuple):
    """How much is to be seen, and in which order: by name, as it lies, by default."""

    depth: int | None = None
    every: bool = False
    order: Order | None = None


def listing_of(look: Look, depth: int | None) -> Listing:
    """Return what a checkpoint holds, and in which files."""
    listing, files = list_tree(look.tree, depth=depth or 1), look.opened.files
    if not files:
        return listing
    paths = structure(look.tree).paths()
    return replace(listing, files=[files[path] for path in paths])


def data_of(look: Look, listing: Listing) -> dict[str, Any]:
    """Return what JSON has of a checkpoint."""
    opened = look.opened
    about = {"file": str(look.path), "format": opened.format}
    beside = {"notes": list(opened.notes), "metadata": dict(opened.metadata)}
    return about | beside | listing.to_data()


def print_leaves(look: Look, listing: Listing, view: View, lead: str) -> None:
    """Print a tree where a person reads; elsewhere lines, with ``lead`` before each."""
    if console.is_read():
        width = console.width()
        for part in outline_rich(listing, _outline(listing, view), width):
            Console(width=width).print(part)
        console.write(beside(look.opened.metadata), is_first=False)
        return
    for cells in _lines(listing, view):
        print(printable_cells((lead, *cells) if lead else cells))
    if texts := texts_of(look.opened.metadata):
        names = ", ".join(in_short(name) for name, _ in texts)
        count = counted(len(texts), "text")
        console.note(f"{count} beside the tensors, told by --totals or --json: {names}")


def printable_cells(cells: Sequence[str]) -> str:
    """Return cells as a line that ``cut`` takes apart: each text has no tabs in it."""
    return "\t".join(map(printable, cells)).rstrip("\t")


def _outline(listing: Listing, view: View) -> Branch:
    """Return as much of the leaves as is to be seen in a terminal."""
    root = listing.whole(fold=len(listing.rows) > FEW and not view.every)
    if view.order is not None:
        root = ordered(root, _size(listing, view.order))
    if view.depth is not None:
        return shallow(root, view.depth)
    return root if view.every else cropped(root, listing.sizes.together, ROOM, WIDE)


def _size(listing: Listing, order: Order) -> Size:
    sizes = listing.sizes if order is Order.BYTES else listing.elements
    return sizes.together


def _lines(listing: Listing, view: View) -> Iterator[Sequence[str]]:
    """Yield the cells of each line: one for a leaf, or for what is below a prefix."""
    found = [*_groups([row.name for row in listing.rows], view.depth)]
    if view.order is not None:
        size = _size(listing, view.order)
        found.sort(key=lambda each: -size(each[1]))
    for prefix, at in found:
        if prefix:
            yield _of_line(listing.line(prefix, Branch("", tuple(at), is_cut=True)))
        else:
            yield _of_row(listing, *at)


def _groups(names: Sequence[str], depth: int | None) -> Iterable[tuple[str, list[int]]]:
    """Return where leaves are: one without a prefix, or all below one of ``depth``."""
    found: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        segments = segments_of(name)
        is_below = depth is not None and len(segments) > depth
        found[(".".join(segments[:depth]), -1) if is_below else ("", i)].append(i)
    return ((prefix, at) for (prefix, _), at in found.items())


def _of_row(listing: Listing, i: int) -> Sequence[str]:
    row, file = listing.rows[i], listing.files[i] if listing.files else ""
    numbers = ["", ""] if row.form.dtype is None else [row.parameters, row.nbytes]
    tie = "" if row.tie is None else row.tie
    return row.name, row.kind, row.what, row.dtype, *map(str, (*numbers, tie)), file


def _of_line(line: Line) -> Sequence[str]:
    what = counted(line.leaves, "leaf", "leaves")
    return line.name, "", what, "", str(line.parameters), str(line.nbytes)


def texts_of(metadata: Metadata) -> Sequence[tuple[str, str]]:
    """Return the metadata that not every file has, in order."""
    return sorted(pair for pair in metadata.items() if pair != (FORMAT, "pt"))


def beside(metadata: Metadata) -> Iterator[Table]:
    """Yield the table of the metadata, if there is any to speak of."""
    rows = [(name, in_short(text)) for name, text in texts_of(metadata)]
    if rows:
        yield Table(("metadata", "text"), rows)
