"""What ranks hold of a leaf to make as few boxes of it, told element by element."""

import math

import torch
from conversions import worlds
from converted import laid_out
from foretelling import as_foretold
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_laws import by_each_wire, me, options
from rank_laws import laws as ranked
from ranks import mesh, pool
from test_laws_shares import EVERYONE, matched_with, parts_of, region_of
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd
from sdtree.conversion.blocks import blocks_of
from sdtree.conversion.shares import cut_of, held_of
from sdtree.layout import Box, Layout
from sdtree.testing import layouts
from sdtree.wire.collectives import record

laws = settings(max_examples=100, deadline=None)


@st.composite
def lie_alike(draw):
    """Draw a world of rules whose leaves have their rows cut in one way."""
    world = draw(worlds())
    return world, {
        name: draw(layouts(4, shape=tuple(index.shape), ranks=EVERYONE))
        for name, index in sorted(world.index(world.source).items())
    }


@laws
@given(laid_out() | lie_alike())
def test_blocks_have_each_element_once_and_are_fewer_than_parts(drawn):
    """Each is of views, and what ranks hold of the leaf; replicas hold it alike."""
    world, how = drawn
    tree, source, targets = matched_with(world)
    wanted = world.index(world.target)
    for target in targets:
        known = parts_of(target, source, tree, how)
        lie = {place: layout for place, (layout, _) in known.items()}
        found = blocks_of(target.made, tuple(lie.items()), EVERYONE)
        if found is None:
            continue
        parts = 0
        for rank in EVERYONE:
            for block in found.held[rank]:
                made = torch.full(block.size, -1)
                for x in block.boxes:
                    t = known[x.place][1][rank][x.tensor]
                    at = [a - b for a, b in zip(x.offset, block.offset, strict=True)]
                    region_of(made, at, x.size).copy_(cut_of(t, x.size, x.cut))
                whole = wanted[target.name]
                assert torch.equal(made, region_of(whole, block.offset, block.size))
            for sizes, _, cut, place in target.made.pieces:
                parts += len(held_of(sizes, cut, lie[place], rank))
        assert sum(map(len, found.held.values())) < parts
        regions = {x[1:] for boxes in found.layout.boxes.values() for x in boxes}
        assert sum(math.prod(size) for *_, size in regions) == sum(
            math.prod(piece.sizes) for piece in target.made.pieces
        )


QKV = sd.rule(
    ["q [(g h d) c]", "k [(g k d) c]", "v [(g v d) c]"],
    "qkv [(g (h + k + v) d) c]",
    g=4,
    k=1,
    v=1,
    d=2,
)


def cut_along(dim, n, columns):
    """Return a matrix of numbers, cut along a dim over two ranks."""
    ranks = mesh((2,))
    full = torch.arange(float(n * columns)).view(n, columns)
    local = full.chunk(2, dim)[ranks.get_local_rank()].clone()
    return DTensor.from_local(local, ranks, [Shard(dim)], run_check=False)


def messages_of(columns):
    """Return what a fuse of rows into columns sends, and a redistribute of as much."""
    tree = {name: cut_along(0, 8 * k, columns) for name, k in COUNTS.items()}
    like, fused = {"qkv": cut_along(1, 48, columns)}, {"qkv": cut_along(0, 48, columns)}
    with record() as ours:
        made = sd.convert(tree, QKV, like=like)
    wanted = sd.convert(sd.gather(tree), QKV)
    assert torch.equal(sd.gather(made)["qkv"], wanted["qkv"])
    with record() as theirs:
        sd.redistribute(fused, like=like)
    return [(x.messages["send"], x.nbytes["send"]) for x in (ours, theirs)]


COUNTS = {"q": 4, "k": 1, "v": 1}


def test_rows_of_a_group_are_one_message():
    """q, k and v of the groups of a rank travel as what they are together."""
    for columns in (4, 2**15):
        for ours, theirs in pool(2).run(messages_of, columns):
            assert ours == theirs


# -- on ranks ----------------------------------------------------------------------


@st.composite
def groups_on_ranks(draw):
    """Draw how many heads of a group q, k and v have, and which groups ranks hold."""
    ends = sorted(draw(st.lists(st.integers(0, 6), min_size=3, max_size=3)))
    heads = draw(st.tuples(*[st.integers(1, 3)] * 3))
    holders = draw(st.permutations(EVERYONE))
    return [0, *ends, 6], heads, holders, draw(st.integers(1, 3))


def rows_of(t, ends, holders, row):
    """Return what this rank has of the rows of groups, each of so many rows."""
    zeros = (0,) * (t.dim() - 1)
    pairs = zip(ends, ends[1:], holders, strict=False)
    boxes = {
        rank: (Box(0, (0, *zeros), (a * row, *zeros), ((b - a) * row, *t.shape[1:])),)
        for a, b, rank in pairs
    }
    [box] = boxes[me()]
    here = t[box.offset[0] :][: box.size[0]].clone()
    return sd.Shards(here, Layout(tuple(t.shape), boxes))


def fused_onto(ends, heads, holders, d, target, dtype, **options):
    """Fuse q, k and v, which lie group by group, onto rows or columns elsewhere."""
    rule = sd.rule(QKV.source, QKV.target, g=6, h=heads[0], k=heads[1], v=heads[2], d=d)
    whole = {
        name: (torch.arange(6 * n * d * 5) % 100 + 20 * k).view(-1, 5).to(dtype)
        for k, (name, n) in enumerate(zip("qkv", heads, strict=True))
    }
    every = zip(whole.items(), heads, strict=True)
    tree = {name: rows_of(t, ends, holders, n * d) for (name, t), n in every}
    wanted = sd.convert(whole, rule)
    like = {"qkv": target.distribute(torch.full_like(wanted["qkv"], 1))}
    goal = {"qkv": target.distribute(wanted["qkv"])}
    convert = sd.convert(rule, like=like, **options)
    as_foretold(convert, tree)
    others = {k: sd.Shards(x.tensors[0] * 0, x.layout) for k, x in tree.items()}
    run = convert.prepare(others)
    into = sd.convert(rule, into=like, **options)
    for made in (convert(tree), run(tree), into(tree)):
        assert sd.equal(made, goal)


@ranked
@given(
    groups_on_ranks(),
    st.data(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    options,
)
def test_groups_go_anywhere_as_gather_convert_distribute(lie, data, dtype, how):
    """Whatever ranks hold which groups, and where they go."""
    shape = 6 * sum(lie[1]) * lie[3], 5
    target = data.draw(layouts(4, shape=shape, ranks=EVERYONE))
    by_each_wire(fused_onto, *lie, target, dtype, **how)
