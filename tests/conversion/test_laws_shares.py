"""What ranks hold of a part of a leaf, told element by element in one process."""

import math
from itertools import product
from operator import mul
from unittest.mock import patch

import torch
from converted import laid_out
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtree.conversion import sharding
from sdtree.conversion.converting import matched
from sdtree.conversion.pieces import Cut
from sdtree.conversion.shares import cut_of, held_of, layout_of_part, shares_of
from sdtree.conversion.source import Source
from sdtree.layout import Box, whole

EVERYONE = tuple(range(4))
laws = settings(max_examples=40, deadline=None)


def layout_and_locals(full, way):
    """Return the layout of a leaf, and its local tensors by rank, oddly strided."""
    way = getattr(way, "way", way)
    if way is None:
        return whole(tuple(full.shape), EVERYONE), {r: [full] for r in EVERYONE}
    if hasattr(way, "mesh"):
        return way.layout(), {r: [turned(way.local(full, r))] for r in EVERYONE}
    held = {r: [] for r in EVERYONE}
    for (at, size), rank in way.blocks:
        region = tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))
        held[rank].append(turned(full[region]))
    return way.layout(), held


def turned(t):
    """Return the same tensor with its dims the other way round in memory."""
    back = tuple(range(t.dim()))[::-1]
    return t.permute(back).contiguous().permute(back)


def region_of(t, offset, size):
    return t[tuple(slice(a, a + n) for a, n in zip(offset, size, strict=True))]


def parts_of(target, source, tree, how):
    """Return the layout of each part of a target, and what all ranks hold of it."""
    places = {piece.place for piece in target.made.pieces}
    names = {place: source.names[target.places[place]] for place in places}
    return {p: layout_and_locals(tree[n], how.get(n)) for p, n in names.items()}


def matched_with(world):
    tree = world.index(world.source)
    source = Source.of(tree)
    found = matched([world.rule()], source, None, "refuse").targets
    return tree, source, found


@st.composite
def merged(draw):
    """Draw axes of one dim, with gaps between them, and a box of that dim."""
    counts = draw(st.lists(st.integers(1, 4), max_size=4))
    steps, step = [], 1
    for count in reversed(counts):
        step += draw(st.integers(0, 2))
        steps.insert(0, step)
        step *= count
    start = draw(st.integers(0, 3))
    low = draw(st.integers(0, start + step))
    return counts, steps, start, Box(0, (0,), (low,), (draw(st.integers(0, step)),))


@settings(max_examples=100, deadline=None)
@given(merged())
def test_a_stretch_of_a_merged_dim_is_few_boxes_of_its_axes(drawn):
    """Each place in it is in one of them, and 2k - 1 are enough for k axes."""
    counts, steps, start, box = drawn
    cut = Cut((start,), tuple((0, step) for step in steps))
    shares = shares_of(tuple(counts), cut, (box,))
    told = [
        at
        for share in shares
        for at in product(*(range(a, a + n) for a, n in zip(*share[:2], strict=True)))
    ]
    low, high = box.offset[0] - start, box.offset[0] + box.size[0] - start
    every = product(*map(range, counts))
    assert sorted(told) == [
        at for at in every if low <= sum(map(mul, at, steps)) < high
    ]
    assert len(shares) <= max(1, 2 * len(counts) - 1)


@laws
@given(laid_out())
def test_shares_are_views_of_a_part_and_cover_it_once(drawn):
    """Whatever the layout of the leaf, and where its boxes end in merged dims."""
    world, how = drawn
    tree, source, targets = matched_with(world)
    for target in targets:
        for sizes, _, cut, place in target.made.pieces:
            name = source.names[target.places[place]]
            layout, held = layout_and_locals(tree[name], how[name])
            part, lie = cut_of(tree[name], sizes, cut), {}
            for rank in EVERYONE:
                shares = held_of(sizes, cut, layout, rank)
                for share in shares:
                    mine = cut_of(held[rank][share.tensor], share.sizes, share.cut)
                    assert torch.equal(mine, region_of(part, *share[:2]))
                lie[rank] = [share[:2] for share in shares]
            found = layout_of_part(sizes, cut, layout, EVERYONE)
            boxes = {r: [x[2:] for x in found.boxes[r]] for r in EVERYONE}
            assert boxes == lie
            if math.prod(sizes):
                found.check_coverage()


@laws
@given(laid_out())
def test_boxes_of_a_leaf_to_make_are_views(drawn):
    """Each is what the leaf is there, however the local tensors lie in memory."""
    world, how = drawn
    tree, source, targets = matched_with(world)
    wanted = world.index(world.target)
    for target in targets:
        known = parts_of(target, source, tree, how)
        layouts = tuple((place, layout) for place, (layout, _) in known.items())
        for rank in EVERYONE:
            held = {place: ts[rank] for place, (_, ts) in known.items()}
            with (
                patch.object(sharding, "this_rank", lambda rank=rank: rank),
                patch("sdtree.kinds.shards.this_rank", lambda rank=rank: rank),
            ):
                like = torch.empty(0, dtype=torch.int64)
                leaf = sharding.scattered(target.made, layouts, held, like)
            for box in leaf.layout.boxes.get(rank, ()):
                mine = region_of(wanted[target.name], *box[2:])
                assert torch.equal(leaf.tensors[box.tensor], mine)
