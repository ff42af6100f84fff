"""A listing as a notebook shows it: a tree that opens and closes, with pictures."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from sdtree.layout.layout import Layout
from sdtree.look.listing import Listing
from sdtree.look.outline import Branch, opened
from sdtree.look.picture import Picture, picture_of
from sdtree.look.rows import Line
from sdtree.text.html import (
    Html,
    bar,
    dtype_tag,
    element,
    folded,
    framed,
    table_html,
    tag,
)
from sdtree.text.showing import add_showing
from sdtree.text.table import counted, readable_bytes

ROOM: Final = 800
"""How many lines of leaves there are at most, seen or not."""

WIDE: Final = 150
"""How many siblings."""

OPEN: Final = 32
"""How many lines are seen at first."""

MOST_PICTURES: Final = 32
"""How many layouts have a picture, those of the first lines."""

THUMB: Final = 28, 13
"""How wide and high the picture in a line is."""


def listing_html(listing: Listing) -> str:
    """Return what a notebook shows of a listing."""
    root = listing.outline(ROOM, WIDE)
    lines = [listing.line(*found) for found in root.lines()] if root.below else []
    forms = [line.form for line in lines if line.form is not None]
    layouts = dict.fromkeys(form.layout for form in forms if form.layout is not None)
    pictures = {x: picture_of(x) for x in islice(layouts, MOST_PICTURES)}
    is_open = opened(root, listing.sizes.together, OPEN, WIDE).keys()
    drawing = _Drawing(listing, is_open, pictures)
    tree = drawing.nodes(root.below)
    return framed(
        _head(listing, len(layouts)),
        element("div", *tree, cls="tree"),
        *_sections(listing),
        _symbols(pictures),
        plain=str(listing),
    )


def _head(listing: Listing, layouts: int) -> Html:
    total = listing.total
    told = [counted(total.leaves, "leaf", "leaves")]
    told += [counted(total.parameters, "parameter"), readable_bytes(total.nbytes)]
    told += [counted(len(listing.ties), "tie")] if listing.ties else []
    told += [counted(layouts, "layout")] if layouts else []
    return element(
        "div", element("strong", told[0]), f" · {' · '.join(told[1:])}", cls="head"
    )


def _sections(listing: Listing) -> Iterator[Html]:
    """Yield what is beside the tree: the kinds, and the ties if there are any."""
    *ties, _, kinds = listing.totals()
    whole = max(listing.total.nbytes, 1)
    shares = [total.nbytes / whole for total in listing.kinds]
    yield folded([f"kinds ({len(kinds.rows)})"], table_html(kinds, {3: shares}))
    for table in ties:
        yield folded([f"ties ({len(listing.ties):,})"], table_html(table))


def _symbols(pictures: dict[Layout, Picture]) -> Html:
    found = {picture.mark: picture.symbol() for picture in pictures.values()}
    return element("svg", *found.values(), cls="symbols", width="0", height="0")


@dataclass(frozen=True, slots=True)
class _Drawing:
    """How branches are drawn; ``is_open`` are the ids of those that are open."""

    listing: Listing
    is_open: Container[int]
    pictures: dict[Layout, Picture]

    def nodes(self, branches: tuple[Branch, ...], above: str = "") -> Iterator[Html]:
        """Yield what each branch is: a line, and what opens below it."""
        for branch in branches:
            name = f"{above}{branch.label}"
            line = self.listing.line(name, branch)
            cells = self._cells(branch, line)
            inner = self._inner(branch, line, name)
            if inner:
                yield folded(
                    [element("div", *cells, cls="row")],
                    element("div", *inner, cls="below"),
                    is_open=id(branch) in self.is_open,
                )
            else:
                yield element("div", *cells, cls="row end")

    def _inner(self, branch: Branch, line: Line, name: str) -> list[Html]:
        picture = self._picture(line)
        if picture is not None:
            caption = element("figcaption", picture.caption)
            return [element("figure", picture.use(), caption)]
        return [*self.nodes(branch.below, f"{name}.")]

    def _cells(self, branch: Branch, line: Line) -> Iterator[Html]:
        times = Html(f" &#215;{branch.times:,}" if branch.times > 1 else "")
        name = element("span", branch.label, cls="label", title=line.name)
        yield element("span", name, element("span", times, cls="faint"), cls="name")
        yield element("span", *self._marks(line), cls="marks")
        yield element("span", tag(line.kind, _hue(line)), cls="kind")
        yield element("span", self._what(branch, line), cls="what")
        yield element("span", dtype_tag(line.dtype), cls="dtype")
        whole = max(self.listing.total.nbytes, 1)
        has_size = line.nbytes > 0 or line.dtype is not None
        yield element("span", bar(line.nbytes / whole) if has_size else "", cls="part")
        yield element("span", line.size if has_size else "", cls="num")

    def _what(self, branch: Branch, line: Line) -> Html:
        if branch.is_leaf:
            return element("span", line.what)
        return element("span", counted(line.leaves, "leaf", "leaves"), cls="faint")

    def _marks(self, line: Line) -> Iterator[Html]:
        if line.ties:
            yield element("span", f"tie {line.ties}", cls="tag tie red")
        picture = self._picture(line)
        if picture is not None:
            yield picture.use(THUMB, "thumb")

    def _picture(self, line: Line) -> Picture | None:
        layout = None if line.form is None else line.form.layout
        return None if layout is None else self.pictures.get(layout)


def _hue(line: Line) -> str:
    """Return the colour of a kind: sharded, plain, or a tensor of one process."""
    if line.form is None or line.form.dtype is None:
        return "grey"
    return "purple" if line.form.layout is not None else "teal"


add_showing(Listing, html=listing_html)
