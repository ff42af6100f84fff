"""Blocks: what ranks hold of a leaf to make, as boxes of it as large as can be.

Parts of other leaves that adjoin in it go on their way as one, as the rows of q, k and
v of a group of heads do: that is fewer messages, and they may come straight into place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Final, NamedTuple

from sdtree.conversion.pieces import Made, Place
from sdtree.conversion.sharding import Layouts, PlainBox, Scattered, plain_boxes
from sdtree.conversion.shares import Sizes, held_of
from sdtree.layout.layout import Box, Layout

MOST_PARTS: Final = 1024
"""Of how many parts, on all ranks together, blocks are looked for."""

MOST_BOXES: Final = 64
"""How many boxes a part may come to."""


class Block(NamedTuple):
    """A box of a leaf to make, and the boxes that it is put together of."""

    offset: Sizes
    size: Sizes
    boxes: tuple[PlainBox, ...]

    def beside(self, dim: int) -> tuple[Sizes, Sizes]:
        """Return what blocks have in common that may be one along a dim."""
        after = dim + 1
        return (
            (*self.offset[:dim], *self.offset[after:]),
            (*self.size[:dim], *self.size[after:]),
        )

    def with_next(self, other: Block, dim: int) -> Block:
        """Return it with one that adjoins it along a dim."""
        size = *self.size[:dim], self.size[dim] + other.size[dim], *self.size[dim + 1 :]
        return Block(self.offset, size, self.boxes + other.boxes)


class Blocks(NamedTuple):
    """How blocks lie in a leaf to make, and those of each rank."""

    layout: Layout
    held: Mapping[int, Sequence[Block]]


@lru_cache(maxsize=4096)
def blocks_of(made: Made, layouts: Layouts, ranks: tuple[int, ...]) -> Blocks | None:
    """Return the blocks of what is no fill, None if these are no fewer than its parts.

    Law: each element lies in one region, which the ranks that hold it hold alike.
    """
    known, numel = dict(layouts), sum(prod(piece.sizes) for piece in made.pieces)
    if not numel or len(made.pieces) * len(ranks) > MOST_PARTS:
        return None
    held: dict[int, Sequence[Block]] = {}
    try:
        for rank in ranks:
            held[rank] = _joined([*_boxes(made, known, rank)], len(made.shape))
    except Scattered:
        return None
    regions = {(x.offset, x.size) for own in held.values() for x in own}
    parts = sum(_count(made, known, rank) for rank in ranks)
    count = sum(map(len, held.values()))
    if count >= parts or sum(prod(size) for _, size in regions) != numel:
        return None
    zeros = (0,) * len(made.shape)
    boxes = {
        rank: tuple(Box(k, zeros, x.offset, x.size) for k, x in enumerate(own))
        for rank, own in held.items()
    }
    return Blocks(Layout(made.shape, boxes), held)


Known = Mapping[Place, Layout | None]


def _boxes(made: Made, known: Known, rank: int) -> Iterator[PlainBox]:
    """Yield the boxes that a rank holds of a leaf to make."""
    for sizes, target, source, place in made.pieces:
        for share in held_of(sizes, source, known[place], rank):
            yield from plain_boxes(share, target, place, MOST_BOXES)


def _count(made: Made, known: Known, rank: int) -> int:
    """Return how many parts a rank holds in the space of their axes."""
    return sum(
        len(held_of(x.sizes, x.source, known[x.place], rank)) for x in made.pieces
    )


def _joined(boxes: Sequence[PlainBox], dims: int) -> Sequence[Block]:
    """Return boxes as blocks, put together along one dim after the other."""
    blocks = [Block(x.offset, x.size, (x,)) for x in boxes]
    for dim in reversed(range(dims)):
        blocks.sort(key=lambda x, d=dim: (x.beside(d), x.offset[d]))
        found: list[Block] = []
        for block in blocks:
            if found and _adjoins(found[-1], block, dim):
                found[-1] = found[-1].with_next(block, dim)
            else:
                found.append(block)
        blocks = found
    return blocks


def _adjoins(one: Block, other: Block, dim: int) -> bool:
    """Return whether a block begins where one ends."""
    ends = one.offset[dim] + one.size[dim]
    return ends == other.offset[dim] and one.beside(dim) == other.beside(dim)
