"""The laws of what ranks exchange, in worlds where a path lies on any sets of ranks.

A world tells for each path which sets hold it, and how each cuts it. Every rank makes
what it holds; what each operation comes to follows from the whole tensors alone.
"""

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from rank_laws import WORLD, buckets, by_each_wire, laws
from ranks import pool
from shards import me, over, said, shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import sdtree as sd
from sdtree.errors import RankFailed, SpecMismatch
from sdtree.wire.collectives import record

Ranks = tuple[int, ...]
placements = st.sampled_from([Shard(0), Shard(1), Replicate()])


class Part(NamedTuple):
    """A set of ranks that hold a path, and how they cut it."""

    ranks: Ranks
    placement: object


class Spot(NamedTuple):
    """A path, the shape of the tensor there, and the sets that hold it.

    ``tied`` tells whether it stands under another name, too.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    tied: bool

    @property
    def names(self) -> list[str]:
        return [self.name, f"{self.name} again"] if self.tied else [self.name]

    def full(self, start: int) -> torch.Tensor:
        count = torch.Size(self.shape).numel()
        return torch.arange(start, start + count, dtype=torch.float32).view(self.shape)

    def holders(self) -> list[int]:
        return [rank for part in self.parts for rank in part.ranks]


@st.composite
def sets_of_ranks(draw, ranks=tuple(range(WORLD))):
    """Return some of the ranks, in sets that have none in common."""
    numbers = [draw(st.integers(0, 2)) for _ in ranks]
    found = [
        tuple(r for r, n in zip(ranks, numbers, strict=True) if n == k) for k in (1, 2)
    ]
    found = [part for part in found if part]
    if not found or draw(st.booleans()):
        rest = tuple(r for r, n in zip(ranks, numbers, strict=True) if n == 0)
        found += [rest] if rest else []
    return sorted(found)


@st.composite
def spots(draw, name="w"):
    shape = draw(st.sampled_from([(5, 3), (2, 2), (1, 4), (0, 3), (6, 1), (3, 40)]))
    parts = [Part(x, draw(placements)) for x in draw(sets_of_ranks())]
    return Spot(name, shape, tuple(parts), draw(st.booleans()))


worlds = st.integers(1, 3).flatmap(
    lambda count: st.tuples(*(spots(f"w{k}") for k in range(count)))
)


def made(world, start=0):
    """Return the tree of a world on this rank."""
    tree = {"n": me()}
    for spot in world:
        for part in spot.parts:
            mesh = over(*part.ranks)
            if me() in part.ranks:
                leaf = shard(spot.full(start), mesh, part.placement)
                tree |= dict.fromkeys(spot.names, leaf)
    return tree


def fulls(world, start=0):
    """Return the whole tensors of a world."""
    found = {}
    for spot in world:
        found |= dict.fromkeys(spot.names, spot.full(start))
    return found


def check_ties(tree, world):
    """Assert that what is tied in a world is so in a tree, where it holds data."""
    expected = [
        {(name,) for name in spot.names}
        for spot in world
        if spot.tied and holds_data(tree.get(spot.name))
    ]
    found = [{*group} for group in sd.ties(tree) if holds_data(tree[group[0][0]])]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


def holds_data(leaf):
    local = leaf.to_local() if isinstance(leaf, DTensor) else leaf
    return isinstance(local, torch.Tensor) and local.numel() > 0


def check_gathered(tree, world, named, start=0):
    for spot in world:
        full = spot.full(start)
        own = next((part.ranks for part in spot.parts if me() in part.ranks), ())
        is_here = me() in (own if named is None else named)
        for name in spot.names:
            if is_here:
                assert type(tree[name]) is torch.Tensor, name
                assert torch.equal(tree[name], full), name
            elif own:
                assert tree[name] == sd.Abstract.of(full), name
            else:
                assert name not in tree
    assert tree["n"] == me()
    check_ties(tree, world)


chosen = st.sampled_from([None, 0, 1, 3, (0, 1), (1, 2, 3), (0, 1, 2, 3)])
options = st.fixed_dictionaries({"bucket_bytes": buckets, "verify": st.booleans()})


def gathers(world, ranks, options):
    named = None if ranks is None else (ranks,) if type(ranks) is int else ranks
    tree = made(world)
    found = sd.gather(tree, ranks=ranks, **options)
    again = sd.gather(made(world, 50), ranks=ranks, into=sd.copy(found), **options)
    chain = sd.cast(dtype=torch.float64) | sd.gather(ranks=lambda _: ranks, **options)
    chain = chain | sd.cast(dtype=torch.float32)
    chained, streamed = chain(tree), dict(chain.stream(tree))
    check_gathered(found, world, named)
    check_gathered(again, world, named, 50)
    check_gathered(chained, world, named)
    assert {*streamed} == {*sd.paths(found)}


@laws
@given(worlds, chosen, options)
def test_a_leaf_goes_to_each_chosen_rank_from_one_set(world, ranks, options):
    """Also into buffers, by a function of the path, in a chain and as a stream."""
    by_each_wire(gathers, world, ranks, options)


def balances(world, options):
    found = sd.gather(made(world), ranks="balanced", **options)
    mine = {k: x for k, x in found.items() if isinstance(x, torch.Tensor)}
    every = [None] * WORLD
    dist.all_gather_object(every, mine)
    assert sd.equal(sd.combine(*every), fulls(world))


@laws
@given(worlds, options)
def test_each_leaf_is_given_once(world, options):
    by_each_wire(balances, world, options)


def loads(world, src, how, options):
    like = made(world, 7)
    full = {**fulls(world), "n": 5}
    lacks = {name: x for name, x in full.items() if not name.startswith("w0")}
    source = full if me() == src else None
    found = sd.broadcast(source, src=src, **{how: like}, **options)
    expected = {**made(world), "n": 5}
    are_equal = sd.equal(found, expected, group=dist.group.WORLD)
    more = _error(lambda: sd.broadcast({**full, "more": 1}, src=src, like=like))
    fewer = _error(lambda: sd.broadcast(lacks, src=src, like=like))
    assert are_equal
    check_ties(found, world)
    assert how == "like" or all(found[k] is x for k, x in like.items() if k != "n")
    assert "1 unexpected: more" in more
    assert "missing: w0" in fewer


def _error(call):
    try:
        call()
    except SpecMismatch as error:
        return said(error)
    return "none"


@laws
@given(worlds, st.integers(0, WORLD - 1), st.sampled_from(["like", "into"]), options)
def test_a_load_serves_all_sets(world, src, how, options):
    """From any rank, with or without a part; names count as one tree's for all."""
    by_each_wire(loads, world, src, how, options)


@st.composite
def two_worlds(draw):
    """Return two worlds that have the same paths on the same ranks."""
    first, second = [], []
    for spot in draw(worlds):
        ranks = tuple(sorted(spot.holders()))
        parts = draw(sets_of_ranks(ranks))
        rest = tuple(sorted({*ranks} - {r for part in parts for r in part}))
        parts += [rest] if rest else []
        other = tuple(Part(part, draw(placements)) for part in sorted(parts))
        first.append(spot)
        second.append(spot._replace(parts=other))
    return first, second


def moves(ones, others, options):
    found = sd.redistribute(made(ones), like=made(others, 9), **options)
    assert sd.equal(found, made(others), group=dist.group.WORLD)


@laws
@given(two_worlds(), options)
def test_leaves_go_from_any_sets_to_any_sets_of_the_same_ranks(both, options):
    by_each_wire(moves, *both, options)


def compares(world, rank):
    a, b = made(world), made(world)
    alike = sd.equal(a, b, group=dist.group.WORLD)
    nothing = sd.diff(a, b, group=dist.group.WORLD)
    held = [
        name
        for spot in world
        for name in spot.names[:1]
        for part in spot.parts
        if rank in part.ranks and _part_of(spot, part, rank).numel()
    ]
    for name in held if me() == rank else ():
        b[name] = b[name] + 0
        b[name].to_local().view(-1)[0] += 1
    still = sd.equal(a, b, group=dist.group.WORLD)
    found = {d.path for d in sd.diff(a, b, group=dist.group.WORLD)}
    assert alike
    assert not nothing
    assert still is not bool(held)
    assert {(name,) for name in held} <= found


def _part_of(spot, part, rank):
    if isinstance(part.placement, Replicate):
        return spot.full(0)
    k, chunks = (
        part.ranks.index(rank),
        spot.full(0).chunk(len(part.ranks), part.placement.dim),
    )
    return chunks[k] if k < len(chunks) else torch.empty(0)


@laws
@given(worlds, st.integers(0, WORLD - 1))
def test_a_difference_on_one_rank_is_seen_by_all(world, rank):
    by_each_wire(compares, world, rank)


def fails(world, ranks, rank):
    def broken(t):
        if me() == rank and t.ndim:
            raise ValueError("broken here")
        return t

    holds = [r for spot in world for r in spot.holders()]
    chain = sd.map(lambda x: broken(x) if hasattr(x, "ndim") else x)
    errors = []
    for transform in (chain | sd.gather(ranks=ranks), sd.gather(ranks=ranks) | chain):
        try:
            transform(made(world))
            errors.append(None)
        except Exception as error:
            errors.append(type(error))
    kind = ValueError if me() == rank else RankFailed
    if rank in holds:
        assert errors[0] is kind
    assert errors[1] in (kind, None)


@laws
@given(worlds, chosen, st.integers(0, WORLD - 1))
def test_a_rank_that_fails_leaves_no_other_waiting(world, ranks, rank):
    by_each_wire(fails, world, ranks, rank)


def sums(ranks, to):
    """Gather terms of a sum, which only their own ranks can reduce."""
    mesh, full = over(*ranks), torch.arange(6.0).view(2, 3)
    tree = {"w": shard(full, mesh, Partial())} if me() in ranks else {}
    found = sd.gather(tree, ranks=to)
    if me() == to:
        assert torch.equal(found["w"], full * len(ranks))


@pytest.mark.parametrize("ranks", [(1, 2), (0, 3), (2,)])
def test_terms_are_reduced_before_they_go_to_another_set(ranks):
    for to in range(WORLD):
        by_each_wire(sums, ranks, to)


def foretells(world, options):
    transform = sd.gather(**options)
    tree = made(world)
    plan = sd.explain(transform, tree)
    with record() as traffic:
        transform(tree)
    assert plan.traffic(me()).messages["send"] == traffic.messages["send"]
    assert plan.traffic(me()).nbytes["send"] == traffic.nbytes["send"]
    assert plan.traffic(me()).messages["receive"] == traffic.messages["receive"]


@laws
@given(worlds, options)
def test_each_rank_foretells_what_its_own_sets_exchange(world, options):
    by_each_wire(foretells, world, options)


def foretells_what_goes_out(world, ranks):
    """Each path lies on one set alone, so that what a set sends is for it to say."""
    alone = [spot._replace(parts=spot.parts[:1]) for spot in world]
    transform, tree = sd.gather(ranks=ranks), made(alone)
    plan = sd.explain(transform, tree)
    with record() as traffic:
        transform(tree)
    told = plan.traffic(me())
    assert told.messages["send"] == traffic.messages["send"]
    assert told.nbytes["send"] == traffic.nbytes["send"]
    seen = "only some ranks" in str(plan)
    mine = [{*spot.parts[0].ranks} for spot in alone if me() in spot.parts[0].ranks]
    is_part = any(part != {*range(WORLD)} for part in mine)
    assert seen is (ranks is not None and is_part)


@laws
@given(worlds, chosen)
def test_a_set_foretells_what_it_sends_to_others(world, ranks):
    by_each_wire(foretells_what_goes_out, world, ranks)


def small(size, to):
    mesh = over(*range(1, size)) if size > 1 else over(0)
    full = torch.arange(6.0).view(3, 2)
    holds = mesh.get_coordinate() is not None
    tree = {"w": shard(full, mesh)} if holds else {}
    found = sd.gather(tree, ranks=to)
    assert (type(found.get("w")) is torch.Tensor) is (me() == to)
    made = sd.broadcast({"w": full} if me() == 0 else None, like=tree)
    assert sd.equal(made, tree, group=dist.group.WORLD)


@pytest.mark.parametrize("size", [1, 2])
def test_worlds_of_few_ranks(size):
    for to in range(size):
        pool(size).run(small, size, to, timeout=20)
