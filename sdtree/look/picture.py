"""Pictures of layouts: which ranks hold which box of a tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby, islice
from typing import Final, NamedTuple

from sdtree.kinds.abstract import Abstract
from sdtree.kinds.shards import Shards
from sdtree.layout.layout import Layout, Region, shown
from sdtree.layout.schedule import holders_of
from sdtree.text.html import Html, element, escaped, framed, joined
from sdtree.text.showing import add_showing
from sdtree.text.table import shortened

WIDEST: Final = 280
HIGHEST: Final = 140
"""How wide and high a picture is at most, in pixels."""

LEAST: Final = 26
READABLE: Final = 16
"""How wide and high it is at least, and each of its parts as far as that goes."""

MOST_SAID: Final = 4
"""How many boxes are said in a line."""

MOST_BOXES: Final = 96
"""How many boxes one picture has."""

Flat = tuple[int, int, int, int]
"""A box as it is drawn: where it begins, to the right and down, and its sizes."""


class Picture(NamedTuple):
    """A drawing of boxes, and what is to be said of it."""

    width: int
    height: int
    body: Html
    caption: str

    @property
    def mark(self) -> str:
        """Return a name that drawings have in common if they are the same."""
        return f"sd-{blake2b(self.body.encode(), digest_size=6).hexdigest()}"

    def svg(self, cls: str = "boxes") -> Html:
        """Return the picture where it stands alone."""
        return _svg(self.width, self.height, self.body, cls)

    def symbol(self) -> Html:
        """Return the drawing as one that many pictures show."""
        return element(
            "symbol",
            self.body,
            id=self.mark,
            viewBox=f"0 0 {self.width} {self.height}",
            preserveAspectRatio="none",
        )

    def use(self, size: tuple[int, int] | None = None, cls: str = "boxes") -> Html:
        """Return a picture, of another size perhaps, that shows the ``symbol``."""
        width, height = size or (self.width, self.height)
        sides = {"width": str(width), "height": str(height)}
        return _svg(width, height, element("use", href=f"#{self.mark}", **sides), cls)


def _svg(width: int, height: int, body: Html, cls: str) -> Html:
    return element(
        "svg",
        body,
        cls=cls,
        width=str(width),
        height=str(height),
        viewBox=f"0 0 {width} {height}",
    )


def picture_of(layout: Layout) -> Picture:
    """Return the picture of a layout: of more than two dimensions, the two most split.

    Ranks that hold the same box stand in it together; a ``+`` is between those that
    hold terms.
    """
    holders = holders_of(layout)
    across = _drawn(layout.shape, holders)
    held = _flattened(holders, across)
    rows, columns = (1, 1, *(layout.shape[d] for d in across))[-2:]
    width = _pixels(columns, rows, WIDEST, len({x for x, *_ in held}))
    height = _pixels(rows, columns, HIGHEST, len({y for _, y, *_ in held}))
    scale = width / max(columns, 1), height / max(rows, 1)
    body = joined(
        _box(box, ranks, scale, layout.is_partial)
        for box, ranks in islice(held.items(), MOST_BOXES)
    )
    return Picture(width, height, body, caption(layout))


def layout_html(layout: Layout) -> Html:
    """Return the picture of a layout, and in words what it shows."""
    found = picture_of(layout)
    return element("figure", found.svg(), element("figcaption", found.caption))


def layout_text(layout: Layout) -> str:
    """Return in one line which ranks hold which boxes, of many the first.

    >>> from sdtree.layout import Split, mesh_layout
    >>> layout_text(mesh_layout((4, 2), (2,), (Split(0, 0),), lambda at: at[0]))
    '(4, 2) in 2 boxes on ranks 0, 1: [0:2, 0:2] on 0, [2:4, 0:2] on 1'
    """
    holders = holders_of(layout)
    boxes = [
        f"{shown(*region)} on {spans_of(ranks)}"
        for region, ranks in islice(holders.items(), MOST_SAID)
    ]
    more = [f"… {len(holders) - MOST_SAID:,} more"] if len(holders) > MOST_SAID else []
    told = f"{layout.shape} {boxes_on_ranks(layout)}"
    return f"{told}: {', '.join([*boxes, *more])}" if len(holders) > 1 else told


def caption(layout: Layout) -> str:
    """Return in words what a picture shows, and what it does not.

    >>> from sdtree.layout import whole
    >>> caption(whole((4, 2, 3), (0, 1)))
    '(4, 2, 3) whole on ranks 0, 1; dimensions 0 and 1 are drawn'
    """
    holders = holders_of(layout)
    told = [f"{layout.shape} {boxes_on_ranks(layout)}"]
    across = _drawn(layout.shape, holders)
    if len(layout.shape) > 2:
        told.append(f"dimensions {across[0]} and {across[1]} are drawn")
    if len(_flattened(holders, across)) > MOST_BOXES:
        told.append(f"the first {MOST_BOXES} boxes are drawn")
    return "; ".join(told)


def boxes_on_ranks(layout: Layout) -> str:
    """Return in words how many boxes there are, and on which ranks.

    >>> from sdtree.layout import whole
    >>> boxes_on_ranks(whole((4, 2), (0, 1, 2)))
    'whole on ranks 0…2'
    """
    holders = holders_of(layout)
    told = f"{_parts(layout, holders)} on {named_ranks(layout.ranks)}"
    copies = max(map(len, holders.values()), default=1)
    if len(holders) > 1 and copies > 1 and not layout.is_partial:
        told += f", each on {copies} of them"
    empty = sorted({*layout.ranks} - {r for ranks in holders.values() for r in ranks})
    return f"{told}, nothing on {spans_of(empty)}" if empty and holders else told


def _parts(layout: Layout, holders: Mapping[Region, Sequence[int]]) -> str:
    if layout.is_partial:
        return "as terms to be reduced"
    if not holders:
        return "empty"
    return "whole" if len(holders) == 1 else f"in {len(holders):,} boxes"


def named_ranks(ranks: Sequence[int]) -> str:
    if not ranks:
        return "no rank"
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {spans_of(ranks)}"


def spans_of(ranks: Sequence[int], between: str = ", ") -> str:
    """Return ranks in short: those that follow each other as from and to.

    >>> spans_of([0, 1, 2, 3, 8, 10, 11])
    '0…3, 8, 10, 11'
    """
    runs = groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])
    return between.join(_span([rank for _, rank in run], between) for _, run in runs)


def _span(run: Sequence[int], between: str) -> str:
    short = len(run) > 2
    return f"{run[0]}…{run[-1]}" if short else between.join(map(str, run))


def _drawn(
    shape: tuple[int, ...], holders: Mapping[Region, Sequence[int]]
) -> tuple[int, ...]:
    """Return the one or two dimensions that are drawn: those with most cuts."""
    if len(shape) < 3:
        return tuple(range(len(shape)))
    cuts = [len({offset[d] for offset, _ in holders}) for d in range(len(shape))]
    order = sorted(range(len(shape)), key=lambda d: (-cuts[d], d))
    return tuple(sorted(order[:2]))


def _flattened(
    holders: Mapping[Region, Sequence[int]], across: Sequence[int]
) -> dict[Flat, list[int]]:
    """Return the ranks of each box as it is drawn."""
    found: defaultdict[Flat, set[int]] = defaultdict(set)
    for (offset, size), ranks in holders.items():
        here = [(offset[d], size[d]) for d in across]
        (y, h), (x, w) = ((0, 1), (0, 1), *here)[-2:]
        found[x, y, w, h].update(ranks)
    return {box: sorted(ranks) for box, ranks in sorted(found.items(), key=_by_rank)}


def _by_rank(pair: tuple[Flat, set[int]]) -> tuple[int, Flat]:
    return min(pair[1]), pair[0]


def _pixels(size: int, other: int, most: int, cuts: int) -> int:
    """Return how long a side is drawn: as it is, as far as its parts can be read."""
    natural = round(HIGHEST * size / max(size, other, 2))
    return min(max(natural, LEAST, READABLE * cuts), most)


def _box(
    box: Flat, ranks: Sequence[int], scale: tuple[float, float], is_partial: bool
) -> Html:
    x, w = (round(scale[0] * part, 1) for part in box[::2])
    y, h = (round(scale[1] * part, 1) for part in box[1::2])
    label = "+".join(map(str, ranks)) if is_partial else spans_of(ranks, ",")
    rows, columns = f"{box[1]}:{box[1] + box[3]}", f"{box[0]}:{box[0] + box[2]}"
    title = element("title", f"{named_ranks(ranks)}: [{rows}, {columns}]")
    place = {"x": f"{x}", "y": f"{y}", "width": f"{w}", "height": f"{h}"}
    hue = f"fill:hsl({round(ranks[0] * 137.5) % 360} 65% 55% / .45)"
    parts = [element("rect", title, style=hue, **place)]
    parts += _label(shortened(label, 14), x + w / 2, y + h / 2, w, h)
    return joined(parts)


def _label(
    text: str, x: float, y: float, width: float, height: float
) -> Iterator[Html]:
    """Yield what names the ranks of a box, if it can be read there."""
    size = min(12.0, height * 0.8, 1.7 * width / max(len(text), 1))
    if size >= 5:
        place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font_size": f"{size:.1f}"}
        yield element("text", escaped(text), **place)


def _layout_page(layout: Layout) -> str:
    return framed(layout_html(layout), plain=repr(layout))


def _leaf_page(x: Abstract | Shards) -> str:
    line = element("code", repr(x))
    picture = Html() if x.layout is None else layout_html(x.layout)
    return framed(line, picture, plain=repr(x))


def _leaf_text(x: Abstract | Shards) -> str:
    """Return in words on which ranks a leaf lies."""
    return "" if x.layout is None else boxes_on_ranks(x.layout)


add_showing(Layout, text=layout_text, html=_layout_page)
add_showing(Abstract, text=_leaf_text, html=_leaf_page)
add_showing(Shards, text=_leaf_text, html=_leaf_page)
