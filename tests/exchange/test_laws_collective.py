"""The laws of what ranks exchange, on four real processes and by both wires.

Each example goes to the ranks as data. There each makes its part, all exchange, and
only then each looks at what it has: a rank that is not content leaves no other waiting.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from heard import assert_grows, listened
from hypothesis import example, given
from hypothesis import strategies as st
from rank_laws import (
    EVERYONE,
    WORLD,
    by_each_wire,
    in_length,
    laws,
    me,
    moves,
    on_all,
    options,
    others,
    pair_in_length,
    trees,
    untied,
)
from ranks import pool
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

import sdtree as sd
from sdtree.kinds.handler import handler_of
from sdtree.kinds.values import same_value
from sdtree.tensors.bits import same_bits
from sdtree.testing import (
    Boxed,
    Meshed,
    Sketch,
    full_of,
    sharded_of,
    sharded_trees,
    sketches,
)
from sdtree.testing.strategies import dense
from sdtree.tree.spec import take
from sdtree.wire.collectives import record

Abstract = sd.Abstract


# -- on the ranks ------------------------------------------------------------------


def assert_same(a, b):
    """Assert that two trees are the same on this rank: structure, kinds, bits, ties."""
    (xs, one), (ys, two) = take(a), take(b)
    assert one == two
    for path, x, y in zip(one.paths(), xs, ys, strict=True):
        assert type(x) is type(y), path
        assert Abstract.of(x) == Abstract.of(y), path
        ts, us = tensors_of(x), tensors_of(y)
        assert all(map(same_bits, ts, us)), (path, ts, us)
        assert ts or same_value(x, y), path
        marks = [getattr(leaf, "requires_grad", False) for leaf in (x, y)]
        assert marks[0] == marks[1], path
    assert sd.ties(a) == sd.ties(b)


def tensors_of(leaf):
    return handler_of(leaf).flatten(leaf)[0]


def gathered(tree, chosen=None):
    """Return what gathering is to make of sketches on this rank.

    ``chosen`` tells of a path who gets the leaf, all of its own if there is none.
    """
    leaves, spec = take(tree)
    fulls, _ = take(full_of(tree))
    made = [
        Abstract.dense(x.shape, x.dtype)
        if isinstance(x, Sketch) and me() not in owners(x, path, chosen)
        else full
        for path, x, full in zip(spec.paths(), leaves, fulls, strict=True)
    ]
    return spec.make(made)


def owners(x, path, chosen):
    return chosen(path) if chosen else getattr(x.layout, "ranks", EVERYONE)


def marks_of(tree):
    """Return what must not change when a tree is only read."""
    leaves, spec = take(tree)
    ts = [t for leaf in leaves for t in tensors_of(leaf)]
    bits = [t.detach().reshape(-1).view(torch.uint8).tolist() for t in ts if t.numel()]
    return repr(spec), [id(x) for x in leaves], [t._version for t in ts], bits


# -- gather and distribute ---------------------------------------------------------


def round_trip(tree, **options):
    like, full = sharded_of(others(tree)), full_of(tree)
    made = sd.distribute(full, like=like, **options)
    back = sd.gather(made, **options)
    assert_same(made, sharded_of(tree))
    assert_same(back, gathered(tree))


WHOLE = Sketch((4, 2), None, torch.float32, 5)
TILES = Sketch(
    (6, 32), Meshed((6, 32), (2, 2), (0, 1, 2, 3), ((0, 0), (1, 1))), torch.float32, 1
)
"""A leaf whose slabs are rows on one rank, and columns beside them on another."""


@laws
@given(trees, options)
@example({"w": TILES}, {"bucket_bytes": 512})
def test_gather_undoes_distribute(tree, options):
    """For every mesh and placement, kind, dtype, tie and bucket."""
    by_each_wire(round_trip, tree, **options)


ALL = Meshed((), (4,), (0, 1, 2, 3))
TIED, APART = (Sketch((4,), ALL, torch.float32, k) for k in range(2))


def told_of(tree, options):
    """Hear of the exchanges of a tree: each is told of what it brings to this rank."""
    given, full, like = sharded_of(tree), full_of(tree), sharded_of(others(tree))
    ways = (
        (partial(sd.gather, ranks=0), given),
        (partial(sd.gather, ranks="balanced"), given),
        (partial(sd.distribute, like=like), full),
        (partial(sd.broadcast, like=like), full),
        (partial(sd.redistribute, like=like), given),
    )
    plain = [f(source, **options) for f, source in ways]
    found = [listened(f, source, **options) for f, source in ways]
    for (f, _), (made, told), wanted in zip(ways, found, plain, strict=True):
        assert_same(made, wanted)
        assert_grows(told)
        here = [*filter(lies_here, sd.leaves(made))]
        assert told[-1][1] == sd.nbytes(here), f
        sums = {0}
        for leaf in here:
            sums |= {nbytes + sd.nbytes(leaf) for nbytes in sums}
        assert {done for done, _ in told} <= sums, f


def lies_here(leaf):
    """Return whether this rank has a part: outside of a mesh a 0-dim leaf has junk."""
    layout = Abstract.of(leaf).layout
    is_mine = layout is None or me() in layout.ranks
    return is_mine and not isinstance(leaf, Abstract)


@laws
@given(trees, options)
@example([TIED, TIED, APART], {"bucket_bytes": 1, "verify": True})
def test_progress_comes_to_what_is_brought_here(tree, options):
    """For every operation: the result is the same, and the total is its ``nbytes``.

    What is told on the way are those of some leaves.
    """
    pool(WORLD).run(told_of, tree, options)


def stays_as_it_was(tree):
    given, full, like = sharded_of(tree), full_of(tree), sharded_of(others(tree))
    before = [marks_of(x) for x in (given, full, like)]
    sd.gather(given)
    sd.distribute(full, like=like)
    sd.broadcast(full, like=like)
    sd.redistribute(given, like=like)
    assert [marks_of(x) for x in (given, full, like)] == before


@laws
@given(trees)
def test_no_input_is_changed(tree):
    """Neither what is exchanged nor what it is to be like: versions, bits, leaves."""
    by_each_wire(stays_as_it_was, tree)


def goes_to(tree, ranks, chosen):
    made = sd.gather(sharded_of(tree), ranks=ranks)
    assert_same(made, gathered(tree, chosen))


@laws
@given(on_all, st.sampled_from([0, 3, [1], (2, 0), in_length, pair_in_length]))
def test_leaves_are_whole_on_the_chosen_ranks(tree, ranks):
    """And elsewhere the tree is the same with what each leaf is, without data."""
    by_each_wire(goes_to, tree, ranks, choice_of(ranks))


def choice_of(ranks):
    if callable(ranks):
        return pair_in_length if ranks is pair_in_length else alone_in_length
    return Fixed((ranks,) if isinstance(ranks, int) else tuple(ranks))


def alone_in_length(path):
    return {in_length(path)}


class Fixed(tuple):
    """Ranks, whatever the path."""

    def __call__(self, path):
        return self


def balanced(tree):
    made = sd.gather(sharded_of(tree), ranks="balanced")
    leaves, spec = take(made)
    held = {
        path: leaf
        for path, x, leaf in zip(spec.paths(), take(tree)[0], leaves, strict=True)
        if isinstance(x, Sketch) and not isinstance(leaf, Abstract)
    }
    found = [None] * WORLD
    dist.all_gather_object(found, [*held])
    owner = {path: rank for rank, paths in enumerate(found) for path in paths}
    assert sum(map(len, found)) == len(owner)
    assert_same(made, gathered(tree, lambda path: {owner[path]}))
    sizes = [
        sum(
            {
                x.bits: x.full().nbytes for path, x in sketched(tree) if path in part
            }.values()
        )
        for part in map(set, found)
    ]
    largest = max((x.full().nbytes for _, x in sketched(tree)), default=0)
    assert max(sizes) - min(sizes) <= largest


def sketched(tree):
    leaves, spec = take(tree)
    return [
        (p, x)
        for p, x in zip(spec.paths(), leaves, strict=True)
        if isinstance(x, Sketch)
    ]


@laws
@given(on_all)
def test_balanced_leaves_are_on_one_rank_each(tree):
    """And no rank has more than another by over the largest leaf."""
    by_each_wire(balanced, tree)


def into_buffers(tree, are_tied, before, **options):
    buffers = full_of(others(tree, are_tied))
    made = (before | sd.gather(into=buffers, **options))(sharded_of(tree))
    want = gathered(tree)
    for x, y, buffer in zip(
        take(made)[0], take(want)[0], take(buffers)[0], strict=True
    ):
        assert isinstance(x, Abstract) or x is buffer or not tensors_of(x)
        assert isinstance(x, Abstract) == isinstance(y, Abstract)
        assert isinstance(x, Abstract) or all(
            map(same_bits, tensors_of(x), tensors_of(y))
        )


@laws
@given(trees, st.booleans(), st.sampled_from([sd.identity, sd.copy()]), options)
@example({"each": [TILES, TILES]}, False, sd.identity, {"verify": False})
@example({"each": [WHOLE, WHOLE]}, True, sd.copy(), {})
def test_buffers_are_filled_as_new_ones_would_be(tree, are_tied, before, options):
    """``gather(into=)`` returns the buffers, with what it would have made.

    Those of a tie are one buffer, or each has its own.
    """
    by_each_wire(into_buffers, tree, are_tied, before, **options)


def turned_of(tree, parts):
    """Return the transposed of what this rank holds of sketches, in the same memory."""
    leaves, spec = take(tree)

    def turn(x, part):
        if not isinstance(x, Sketch) or x.layout is None:
            return part.mT if isinstance(part, torch.Tensor) and part.ndim > 1 else part
        way = getattr(x.layout, "way", x.layout)
        splits = tuple((axis, 1 - dim) for axis, dim in way.splits)
        layout = replace(way, shape=x.shape[::-1], splits=splits)
        if isinstance(part, sd.Shards):
            [local] = part.tensors
            local = local.mT if local.ndim > 1 else local
            return sd.Shards(local, Boxed(layout).layout())
        size = dense(x.shape, x.dtype, 0).mT
        meta = TensorMeta(size.shape, size.stride(), size.dtype)
        found = DTensorSpec(part.device_mesh, layout.placements, tensor_meta=meta)
        local = part._local_tensor
        return DTensor(
            local.mT if local.ndim > 1 else local, found, requires_grad=False
        )

    return spec.make(map(turn, leaves, take(parts)[0]))


def transposed(leaf):
    """Return a whole leaf with its dimensions in reverse order."""
    if isinstance(leaf, Abstract) and leaf.dtype is not None:
        return Abstract.dense(leaf.shape[::-1], leaf.dtype)
    return leaf.mT if isinstance(leaf, torch.Tensor) and leaf.ndim > 1 else leaf


def gathers_turned(tree, ranks, **options):
    parts = sharded_of(tree)
    made = sd.gather([parts, turned_of(tree, parts)], ranks=ranks, **options)
    want = gathered(tree, None if ranks is None else choice_of(ranks))
    assert_same(made, [want, sd.map(transposed, want)])


sides = st.integers(0, 9)
matrices = st.tuples(sides, sides).flatmap(
    lambda shape: sketches(ranks=EVERYONE, shape=shape)
)


@laws
@given(
    sharded_trees(matrices.map(lambda x: replace(x, is_parameter=False))),
    st.sampled_from([None, 0, (2, 0)]),
    options,
)
def test_transposed_ties_stay_so(tree, ranks, options):
    """Rows of one leaf that are the columns of another: one whole, and its transposed.

    As soon as one rank sees it, others may hold nothing of them.
    """
    by_each_wire(gathers_turned, tree, ranks, **options)


# -- broadcast ---------------------------------------------------------------------


def from_one(tree, src, are_tied, **options):
    full = full_of(tree) if me() == src else None
    like = sharded_of(others(tree))
    into = sharded_of(others(tree, are_tied))
    made = sd.broadcast(full, like=like, src=src, **options)
    filled = sd.broadcast(full, into=into, src=src, **options)
    assert_same(made, sharded_of(tree))
    want = sharded_of(tree)
    assert_same(filled, want if are_tied else untied(want))
    for x, y in zip(take(filled)[0], take(into)[0], strict=True):
        assert x is y or not tensors_of(x)


@laws
@given(trees, st.integers(0, WORLD - 1), st.booleans(), options)
def test_broadcast_is_distribute_from_one_rank(tree, src, are_tied, options):
    """From any, also one outside a mesh, into new leaves and into given ones."""
    by_each_wire(from_one, tree, src, are_tied, **options)


def sends_once(tree, src):
    full = full_of(tree) if me() == src else None
    like = sharded_of(others(tree))
    with record() as traffic:
        sd.broadcast(full, like=like, src=src)
    if me() == src:
        small = 64 * (1 + len(take(tree)[0])) * WORLD * 4
        total = {x.bits: x.full().nbytes for _, x in sketched(tree)}
        assert traffic.nbytes["send"] <= sum(total.values()) + small


@laws
@given(trees, st.integers(0, WORLD - 1))
def test_the_source_sends_no_more_than_all_bytes(tree, src):
    """Whatever the replicas: the rest goes on from rank to rank."""
    by_each_wire(sends_once, tree, src)


# -- redistribute ------------------------------------------------------------------


def moved(here, there, are_tied, **options):
    given, like = sharded_of(here), sharded_of(others(there, are_tied))
    made = sd.redistribute(given, like=like, **options)
    want = sharded_of({**there, "step": 3})
    assert not sd.diff(made, want)
    for x, y in zip(take(made)[0], take(want)[0], strict=True):
        assert all(map(same_bits, tensors_of(x), tensors_of(y)))


@laws
@given(moves(), st.booleans(), options)
def test_redistribute_is_gather_then_distribute(found, are_tied, options):
    """From mesh to mesh over the same ranks, from kind to kind, from and to whole.

    The targets are tied as the sources are, or none is.
    """
    by_each_wire(moved, *found, are_tied, **options)
