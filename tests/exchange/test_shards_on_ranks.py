"""Shards between ranks: layouts that no DTensor says, and views as targets."""

import pytest
import torch
from hypothesis import given
from rank_laws import by_each_wire, laws, moves, options, others
from ranks import mesh
from shards import caught, locals_of, me, shard, together
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd
from sdtree.errors import RankMismatch, SpecMismatch
from sdtree.layout import Box, Layout
from sdtree.layout import whole as whole_on
from sdtree.tensors.bits import same_bits
from sdtree.testing import full_of, sharded_of
from sdtree.tree.spec import take
from sdtree.wire.collectives import forced, record

# -- into views --------------------------------------------------------------------


def in_one_buffer(tree):
    """Return a tree whose Shards are views with gaps, of one buffer for each dtype.

    Beside it the buffers. What was one tensor is one view.
    """
    buffers, views = {}, {}

    def view(t):
        room = buffers.setdefault(t.dtype, torch.zeros(20_000, dtype=t.dtype))
        key = t.untyped_storage()._cdata, t.dtype
        if key not in views:
            start = sum(2 * t.numel() for (_, d), t in views.items() if d == t.dtype)
            step = [2 * n for n in t.contiguous().stride()]
            views[key] = room.as_strided(t.shape, step, start)
        return views[key].copy_(t)

    def moved(leaf):
        if not isinstance(leaf, sd.Shards):
            return leaf
        return sd.Shards([*map(view, leaf.tensors)], leaf.layout)

    return sd.map(moved, tree), buffers


def into_views(here, there, **options):
    want = [t for leaf in take(sharded_of(there))[0] for t in locals_of(leaf)]
    for verb, source in (
        (sd.redistribute, sharded_of(here)),
        (sd.distribute, full_of(here)),
        (sd.broadcast, full_of(here)),
    ):
        into, buffers = in_one_buffer(sharded_of(others(there)))
        before = {dtype: t.clone() for dtype, t in buffers.items()}
        made = verb(source, into=into, **options)
        found = [t for leaf in take(made)[0] for t in locals_of(leaf)]
        assert all(map(same_bits, found, want))
        assert all(x is y for x, y in pairs_of(made, into))
        gaps = [(t[1::2], before[dtype][1::2]) for dtype, t in buffers.items()]
        assert all(same_bits(*pair) for pair in gaps)


def pairs_of(made, into):
    every = zip(take(made)[0], take(into)[0], strict=True)
    return [pair for pair in every if isinstance(pair[0], (torch.Tensor, sd.Shards))]


@laws
@given(moves(), options)
def test_views_of_one_buffer_are_filled_in_place(trees, options):
    """By redistribute, distribute and broadcast; what lies between them stays."""
    by_each_wire(into_views, *trees, **options)


# -- layouts that no DTensor says --------------------------------------------------


EXPERTS = 6


def expert_on(rank):
    return whole_on((4, 2), (rank,))


def expert(k):
    return torch.arange(8.0).view(4, 2) + 10 * k


def served(owner):
    """Return experts as a server has them, each whole on one rank, absent elsewhere."""
    mine = {f"e{k}": expert(k) for k in range(EXPERTS) if owner(k) == me()}
    layouts = {f"e{k}": expert_on(owner(k)) for k in range(EXPERTS)}
    none = {name: torch.empty(0) for name in layouts if name not in mine}
    return sd.shards({"experts": {**mine, **none}}, {"experts": layouts})


def experts_come_together(wire):
    tree = served(lambda k: k % 4)
    with forced(wire), record() as traffic:
        made = sd.gather(tree, ranks=lambda path: [int(path[-1][1:]) % 4])
        assert not traffic.nbytes["send"]
        everywhere = {f"e{k}": whole_on((4, 2), range(4)) for k in range(EXPERTS)}
        room = {name: torch.full((4, 2), torch.nan) for name in everywhere}
        into = sd.shards({"experts": room}, {"experts": everywhere})
        sd.broadcast({"experts": {f"e{k}": expert(k) for k in range(6)}}, into=into)
    for k in range(EXPERTS):
        name = f"e{k}"
        form = made["experts"][name]
        here = k % 4 == me()
        assert torch.equal(form, expert(k)) if here else type(form) is sd.Abstract
        assert torch.equal(room[name], expert(k))


@pytest.mark.parametrize("wire", ["pairs", "collective"])
def test_experts_that_each_lie_on_one_rank(wire):
    """Nothing is sent to gather each where it lies; a load fills them on all."""
    together(experts_come_together, wire)


def stages_come_to_rank_0():
    """As the stages of a pipeline, a rank has the leaves of its own layers alone."""
    layer = f"l{me()}"
    tree = sd.shards({layer: expert(me())}, {layer: expert_on(me())})
    made = sd.gather(tree, ranks=0)
    if me() == 0:
        assert sorted(made) == ["l0", "l1", "l2", "l3"]
        assert all(torch.equal(made[f"l{k}"], expert(k)) for k in range(4))
    else:
        assert made == {layer: sd.Abstract.of(expert(0))}


def test_leaves_that_other_ranks_have_not_come_to_one():
    together(stages_come_to_rank_0)


INTERLEAVED = Layout(
    (8, 2),
    {
        r: tuple(Box(k, (0, 0), (4 * k + r, 0), (1, 2)) for k in range(2))
        for r in range(4)
    },
)
"""Every fourth row, each in a tensor of its own."""


def to_and_fro(wire):
    full = torch.arange(16.0).view(8, 2)
    dtensor = shard(full, mesh((4,)), Shard(0))
    with forced(wire):
        like = {"w": sd.Shards([torch.zeros(1, 2), torch.zeros(1, 2)], INTERLEAVED)}
        boxed = sd.redistribute({"w": dtensor}, like=like)
        rows = [full[me()][None], full[4 + me()][None]]
        assert boxed == {"w": sd.Shards(rows, INTERLEAVED)}
        back = sd.redistribute(boxed, like={"w": shard(full * 0, mesh((4,)), Shard(0))})
        assert sd.equal(back, {"w": dtensor})
        assert torch.equal(sd.gather(boxed)["w"], full)
        assert sd.equal(sd.distribute({"w": full}, like=like), boxed)
        assert sd.equal(boxed, sd.copy(boxed))
        one = int(me() == 2)
        off = sd.map(lambda x: sd.Shards([t + one for t in x.tensors], x.layout))
        assert not sd.equal(boxed, off(boxed))
        assert [d.path for d in sd.diff(boxed, off(boxed))] == [("w",)]


@pytest.mark.parametrize("wire", ["pairs", "collective"])
def test_a_dtensor_goes_to_a_layout_that_none_says_and_back(wire):
    together(to_and_fro, wire)


# -- what does not fit -------------------------------------------------------------


def halves(first, second):
    """Return the layout of the halves of four elements, one on each of two ranks."""
    boxes = {first: (Box(0, (0,), (0,), (2,)),), second: (Box(0, (0,), (2,), (2,)),)}
    return Layout((4,), boxes)


def two_into_one():
    local = torch.tensor([0.0, 1.0]) + 2 * me()
    source = {
        "a": sd.Shards(local.clone(), halves(0, 1)),
        "b": sd.Shards(local.clone(), halves(1, 0)),
    }
    room = torch.full((4,), torch.nan)
    both = whole_on((4,), (0, 1))
    into = sd.shards({"a": room, "b": room}, {"*": both})
    error = caught(lambda: sd.redistribute(source, into=into))
    assert bool(room.isnan().all())
    same = {"a": source["a"], "b": sd.copy(source["a"])}
    sd.redistribute(same, into=into)
    assert room.tolist() == [0.0, 1.0, 2.0, 3.0]
    return error


def test_two_leaves_into_one_buffer_are_one_in_layout_too():
    """Of each rank the local tensors are equal; together the leaves are not."""
    for error in together(two_into_one, size=2):
        assert isinstance(error, SpecMismatch)
        assert "one and the same buffer at a and b" in str(error)


def lies_as_its_target(count):
    """Return whether each of some leaves comes in the order that its target lies in."""
    turned = [torch.zeros(3, 2).T for _ in range(count)]
    like = {
        f"{k}": DTensor.from_local(t, mesh((2,)), [Shard(0)], run_check=False)
        for k, t in enumerate(turned)
    }
    source = {name: torch.ones(4, 3) for name in like}
    made = sd.broadcast(source if me() == 0 else None, like=like)
    return [x.to_local().stride() for x in made.values()]


@pytest.mark.parametrize("count", [1, 4])
def test_what_comes_lies_in_the_order_of_its_target(count):
    """Also where leaves that are alike come as a column."""
    for strides in together(lies_as_its_target, count, size=2):
        assert {*strides} == {(1, 2)}


def another_layout():
    first, second = (0, 1) if me() == 0 else (1, 0)
    tree = {"w": sd.Shards(torch.ones(2), halves(first, second))}
    return caught(lambda: sd.gather(tree))


def test_ranks_with_other_layouts_are_told():
    """That each gives the same layouts is agreed on, before anything moves."""
    for error in together(another_layout, size=2):
        assert isinstance(error, RankMismatch)
        assert "w" in str(error)


@pytest.mark.parametrize("both", [{}, {"like": {"w": 0}, "into": {"w": 0}}])
def test_redistribute_takes_like_or_into(both):
    with pytest.raises(TypeError, match="takes like= or into=, one of the two"):
        sd.redistribute({"w": torch.ones(2)}, **both)
