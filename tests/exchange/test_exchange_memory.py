"""Exchanges hold a window or two beside what a rank keeps, and send nothing in vain."""

import pytest
import torch
from rank_memory import (
    LARGEST,
    LAYOUTS,
    MIB,
    SIZES,
    SLACK,
    WINDOW,
    frugal_ranks,
    measured,
    peak,
    sharded,
    warm,
    whole_tree,
)
from ranks import mesh
from shards import me, shard, together

import sdtree as sd
from sdtree.layout import whole
from sdtree.wire.collectives import forced, record

TOTAL = sum(SIZES.values())
"""The bytes of each leaf; together some 94 MiB, and one larger than a window."""


WIRES = pytest.mark.parametrize("wire", ["pairs", "collective"])


# -- the peak ----------------------------------------------------------------------


ranks = pytest.fixture(scope="module")(frugal_ranks)


def gather_to_rank_0(wire, layout):
    tree = sharded(layout)
    f = sd.gather(ranks=0, bucket_bytes=WINDOW)
    with forced(wire):
        warm(tree, f)
        grown, found = peak(lambda: f(tree))
    if me() == 0:
        assert sd.equal(found, whole_tree())
    return grown


@measured
@WIRES
@pytest.mark.parametrize("layout", ["fsdp", "hsdp"])
def test_a_rank_that_only_sends_holds_two_windows(ranks, wire, layout):
    """And the one that receives holds no more beside the result."""
    first, *others = ranks.run(gather_to_rank_0, wire, layout)
    beside = [first - TOTAL, *others]
    assert max(beside) < 2 * WINDOW + SLACK


def stream_to_rank_0(wire):
    tree = sharded("fsdp")
    f = sd.gather(ranks=0, bucket_bytes=WINDOW)

    def drain():
        count = 0
        for _, leaf in f.stream(tree):
            count += leaf.shape[0]
            del leaf
        return count

    with forced(wire):
        warm(tree, f)
        return peak(drain)


@measured
@WIRES
def test_a_stream_holds_its_largest_leaf_and_two_windows(ranks, wire):
    """All else is let go of before the next window comes."""
    for grown, count in ranks.run(stream_to_rank_0, wire):
        assert count == TOTAL // 1024
        assert grown < LARGEST + 2 * WINDOW + SLACK


def broadcast_from_rank_0(wire, how, layout):
    target = sharded(layout)
    source = whole_tree() if me() == 0 else None
    f = sd.broadcast(**{how: target}, bucket_bytes=WINDOW)
    few = {"small": target["small0"], "largest": target["middle0"]}
    g = sd.broadcast(**{how: few}, bucket_bytes=WINDOW)
    with forced(wire):
        g(source and {"small": source["small0"], "largest": source["middle0"]})
        grown, made = peak(lambda: f(source))
    assert sd.equal(made, sharded(layout))
    return grown, sd.nbytes(made) if how == "like" else 0


@measured
@WIRES
@pytest.mark.parametrize(("how", "layout"), [("like", "fsdp"), ("into", "hsdp")])
def test_all_hold_two_windows_beside_their_shards(ranks, wire, how, layout):
    """The rank that has the source holds no more beside it than the others do."""
    every = ranks.run(broadcast_from_rank_0, wire, how, layout)
    for grown, kept in every:
        assert grown < kept + 2 * WINDOW + SLACK


COLUMNS = 12 * MIB // 4 // 256, 256
"""The shape of three leaves, each three windows large."""


def redistribute_into_columns(wire):
    """Return how memory grows as leaves in rows come into columns of one tensor."""
    names, (rows, columns) = "qkv", COLUMNS
    fused = torch.full((rows, 3 * columns), torch.nan)
    wholes = {name: whole(COLUMNS, range(4)) for name in names}
    target = sd.shards(dict(zip(names, fused.chunk(3, 1), strict=True)), wholes)
    full = torch.arange(float(rows * columns)).view(COLUMNS)
    tree = {name: shard(full + k, mesh((4,))) for k, name in enumerate(names)}
    del full
    warm = sd.redistribute(into={"q": target["q"]}, bucket_bytes=WINDOW)
    with forced(wire):
        warm({"q": tree["q"]})
        fused.fill_(torch.nan)
        f = sd.redistribute(into=target, bucket_bytes=WINDOW)
        grown, made = peak(lambda: f(tree))
    assert made["k"].tensors[0].untyped_storage().data_ptr() == fused.data_ptr()
    one = torch.arange(float(rows * columns)).view(COLUMNS)
    assert all(torch.equal(t, one + k) for k, t in enumerate(fused.chunk(3, 1)))
    return grown


@measured
@WIRES
def test_parts_of_one_tensor_are_filled_where_they_lie(ranks, wire):
    """Views with gaps between take what arrives; nothing as large is made beside."""
    for grown in ranks.run(redistribute_into_columns, wire):
        assert grown < 3 * WINDOW + SLACK


# -- what is sent ------------------------------------------------------------------


def sent_in_broadcast(layout):
    target = sharded(layout)
    source = whole_tree() if me() == 0 else None
    with record() as traffic, forced("pairs"):
        sd.broadcast(source, into=target, bucket_bytes=WINDOW)
    return traffic.nbytes["send"], traffic.nbytes["receive"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_source_sends_the_whole_at_most_once(layout):
    """What several ranks hold goes on between them; each takes in its part once."""
    every = together(sent_in_broadcast, layout)
    parts = {"fsdp": 1 / 4, "hsdp": 1 / 2, "ddp": 1}
    assert every[0][0] <= TOTAL + WINDOW
    assert every[0][1] == 0
    for _, received in every[1:]:
        assert parts[layout] * TOTAL <= received < parts[layout] * TOTAL + WINDOW
