"""The laws of routes: what all ranks do fits together, as simulated in one process."""

import math
from collections import Counter, defaultdict, deque
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdtree.layout.layout import Box, Layout, Split, mesh_layout, whole
from sdtree.layout.schedule import (
    Schedule,
    Transfer,
    holders_of,
    is_whole,
    schedule,
    slabs,
    spread,
)
from sdtree.plan.traffic import ways as columns_of
from sdtree.testing import layouts, regions_of
from sdtree.wire import messages as shipping
from sdtree.wire.columns import TransferBatch
from sdtree.wire.transport import P2PTransport

WORLD = 16
SIDES = st.sampled_from([0, 1, *range(2, 8), *range(2, 8)])
SHAPES = st.sampled_from([0, 1, 2, 2, 3, 3]).flatmap(lambda n: st.tuples(*[SIDES] * n))


# -- layouts, and what ranks do ----------------------------------------------------


def layout_of(meshed):
    """Return the layout of a DTensor's placements, without one."""
    sizes = torch.Size(meshed.mesh)
    places = torch.arange(sizes.numel()).view(sizes)
    splits = tuple(Split(axis, dim) for axis, dim in meshed.splits)
    return mesh_layout(
        meshed.shape, meshed.mesh, splits, lambda c: meshed.ranks[int(places[c])]
    )


@st.composite
def patchworks(draw, shape):
    """Return layouts of any regions, each a tensor of one rank or of several."""
    count = draw(st.sampled_from([1, 2, 3, 4, 8]))
    ranks = draw(st.permutations(range(WORLD)))[:count]
    boxes = {rank: [] for rank in ranks}
    start = (0,) * len(shape)
    for offset, size in draw(regions_of(shape, 6)):
        for rank in draw(st.sets(st.sampled_from(ranks), min_size=1, max_size=3)):
            boxes[rank].append(Box(len(boxes[rank]), start, offset, size))
    return Layout(shape, {rank: tuple(found) for rank, found in boxes.items()})


def any_layout(shape):
    return st.one_of(layouts(WORLD, shape=shape).map(layout_of), patchworks(shape))


ways = SHAPES.flatmap(lambda shape: st.tuples(any_layout(shape), any_layout(shape)))


def routes_of(source, target):
    """Return what each rank does: from a layout to another, or from one rank."""
    if isinstance(source, int):
        return {r: spread(source, target, r) for r in {source, *target.ranks}}
    ranks = {*source.ranks, *target.ranks}
    return {rank: schedule(source, target, rank) for rank in ranks}


# -- delivery by hand --------------------------------------------------------------


def part(t, offset, size):
    return t[tuple(slice(a, a + n) for a, n in zip(offset, size, strict=True))]


def tensors_of(boxes, full=None):
    """Return local tensors of these boxes: parts of ``full``, or of nothing yet."""
    ends = {
        box.tensor: tuple(map(sum, zip(box.local, box.size, strict=True)))
        for box in sorted(boxes)
    }
    found = [torch.full(ends[k], -1) for k in sorted(ends)]
    for box in boxes if full is not None else ():
        part(found[box.tensor], box.local, box.size)[...] = part(
            full, box.offset, box.size
        )
    return found


def deliver(routes, sources, targets):
    """Carry each cut from its sender to its taker, hop by hop, in the order of each.

    Return how often each element of each target was written.
    """
    written = {rank: [torch.zeros_like(t) for t in ts] for rank, ts in targets.items()}
    for level in range(8):
        mail = defaultdict(list)
        for rank, way in routes.items():
            for cuts, ts in (
                (way.sends, sources.get(rank)),
                (way.forwards, targets.get(rank)),
            ):
                for cut in cuts:
                    if cut.hop == level:
                        data = part(ts[cut.tensor], cut.offset, cut.size).clone()
                        mail[rank, cut.peer].append((cut.at, data))
        for rank, way in routes.items():
            for cut in way.recvs:
                if cut.hop == level:
                    at, data = mail[cut.peer, rank].pop(0)
                    assert (at, data.shape) == (cut.at, cut.size)
                    put(targets, written, rank, cut, data)
        assert not any(mail.values()), "what was sent was not taken"
    for rank, way in routes.items():
        for here, there in way.copies:
            data = part(sources[rank][here.tensor], here.offset, here.size)
            put(targets, written, rank, there, data)
    return written


def put(targets, written, rank, cut, data):
    part(targets[rank][cut.tensor], cut.offset, cut.size)[...] = data
    part(written[rank][cut.tensor], cut.offset, cut.size).add_(1)


def assert_delivers(source, target, cut=lambda routes: [routes]):
    """Assert that the target of every rank is filled, each element once."""
    full = torch.arange(math.prod(target.shape)).view(target.shape)
    if isinstance(source, int):
        held = {source: [full]}
    else:
        held = {rank: tensors_of(source.boxes[rank], full) for rank in source.ranks}
    found = {rank: tensors_of(target.boxes[rank]) for rank in target.ranks}
    count = Counter()
    for routes in cut(routes_of(source, target)):
        for rank, times in deliver(routes, held, found).items():
            for k, t in enumerate(times):
                count[rank, k] = count[rank, k] + t
    for rank in target.ranks:
        for k, t in enumerate(tensors_of(target.boxes[rank], full)):
            assert torch.equal(found[rank][k], t)
            assert (count[rank, k] == 1).all()


# -- the laws ----------------------------------------------------------------------


@given(ways)
def test_each_gets_its_target_once(way):
    """From any layout to any other, each send has its take, in one order."""
    assert_delivers(*way)


@given(ways)
def test_nobody_is_sent_what_it_has(way):
    """What a rank holds itself it keeps, and it sends no more than others lack."""
    source, target = way
    for rank, found in routes_of(source, target).items():
        own = {box[2:] for box in source.boxes.get(rank, ())}
        for cut in found.recvs:
            assert cut.peer != rank
            assert not any(inside((cut.at, cut.size), region) for region in own)
        for a, b in found.copies:
            assert (a.peer, a.at, a.size) == (rank, b.at, b.size)


def inside(a, b):
    """Return whether a region lies in another."""
    sides = zip(*a, *b, strict=True)
    return all(k <= i and i + m <= k + n for i, m, k, n in sides)


ranks = st.integers(0, WORLD - 1)
sources = SHAPES.flatmap(lambda shape: st.tuples(ranks, any_layout(shape)))


@given(sources)
def test_each_gets_its_part_of_what_one_has(way):
    """From one rank to any layout, over as many hops as it takes."""
    assert_delivers(*way)


@given(sources)
def test_the_source_sends_each_element_once(way):
    """And who passes some on sends it to two more at most."""
    source, target = way
    found = routes_of(source, target)
    assert sum(cut.numel for cut in found[source].sends) <= math.prod(target.shape)
    for rank in found.keys() - {source}:
        onward = Counter(cut.at for cut in found[rank].forwards)
        assert max(onward.values(), default=0) <= 2


@given(sources)
def test_no_way_turns_back(way):
    """Ranks in order from the source on: each sends to later ones, on later hops."""
    source, target = way
    for rank, found in routes_of(source, target).items():
        arrived = {cut.at: cut for cut in found.recvs}
        for cut in (*found.sends, *found.forwards):
            assert (cut.peer - source) % WORLD > (rank - source) % WORLD
        for cut in found.forwards:
            assert cut.hop == arrived[cut.at].hop + 1
        for cut in found.recvs:
            assert (cut.peer - source) % WORLD < (rank - source) % WORLD


@given(st.one_of(ways, sources), st.integers(1, 40))
def test_slabs_are_the_whole(way, limit):
    """Routes within each slab of a tensor come to the same; no slab is too large."""
    regions = [*slabs(way[1].shape, limit)]
    assert all(math.prod(size) <= limit for _, size in regions)
    assert sum(math.prod(size) for _, size in regions) == math.prod(way[1].shape)

    def by_slabs(routes):
        for region in regions:
            yield {rank: found.within(region) for rank, found in routes.items()}

    assert_delivers(*way, by_slabs)


TWICE = mesh_layout((2,), (2, 2), (Split(0, 0),), lambda c: 2 * c[0] + c[1])
"""Each half lies on two ranks: who needs the other takes it from the one like it."""


@given(st.one_of(ways, sources))
@example((TWICE, whole((2,), (0, 1, 2, 3))))
def test_what_is_counted_for_all_ranks_is_what_each_takes(way):
    """``explain`` counts in columns the very routes by which each rank goes."""
    source, target = way
    routes, src, start = routes_of(*way), None, source
    if isinstance(source, int):
        src, start = source, whole(target.shape, (source,))
    ranks = tuple(sorted(routes))
    columns = columns_of(Transfer(start, target, torch.float32, src), ranks)
    counted = [
        (ranks[sender], ranks[taker], hop, tuple(at), tuple(stop))
        for sender, taker, hop, at, stop in zip(
            *(c.tolist() for c in columns), strict=True
        )
    ]
    taken = [
        (cut.peer, rank, cut.hop, cut.at, tuple(map(int.__add__, cut.at, cut.size)))
        for rank, route in routes.items()
        for cut in route.recvs
    ]
    assert sorted(counted) == sorted(taken)


@given(ways)
def test_what_is_whole_everywhere_needs_no_way(way):
    """``is_whole`` says so exactly if nobody who asks has anything to take."""
    source, _ = way
    ranks = source.ranks
    takes = [schedule(source, whole(source.shape, ranks), rank).recvs for rank in ranks]
    if is_whole(source, ranks):
        assert not any(takes)
    elif not any(takes):
        assert any(len(source.boxes[rank]) > 1 for rank in ranks)


# -- the order of messages ---------------------------------------------------------


class Post(NamedTuple):
    """A message at one of its ends: the number of it from sender to taker."""

    is_send: bool
    sender: int
    taker: int
    number: int
    nbytes: int


class Posts(list):
    """A flow that notes in which order a rank posts what, and None where it drains."""

    room = 2**20

    def __init__(self, me):
        super().__init__()
        self.rank_group = SimpleNamespace(me=me)
        self.seen = Counter()

    def post(self, is_send, peer, data, path, scratch=0, then=None):
        ends = (self.rank_group.me, peer)
        sender, taker = ends if is_send else ends[::-1]
        number = self.seen[sender, taker]
        self.append(Post(is_send, sender, taker, number, data.nbytes))
        self.seen[sender, taker] += 1

    def make_room(self, is_send, scratch):
        pass

    def drain(self):
        self.append(None)


def stuck(posts, most=2):
    """Return what ranks wait for in the end, if each message needs both of its ends.

    Each has two under way at most, one each way, and waits for its oldest first.
    """
    pending = {rank: deque() for rank in posts}
    left = {rank: deque([*found, None]) for rank, found in posts.items()}
    met = Counter()
    moves = True
    while moves:
        moves = False
        for rank, here in pending.items():
            while left[rank] or here:
                post = left[rank][0] if left[rank] else None
                ways = [other.is_send for other in here]
                if not here and post is None:
                    left[rank].popleft()
                elif post and len(here) < most and post.is_send not in ways:
                    here.append(left[rank].popleft())
                    met[post[1:]] += 1
                elif met[here[0][1:]] == 2:
                    here.popleft()
                else:
                    break
                moves = True
    return {rank: here for rank, here in pending.items() if here}


targets = st.lists(SHAPES.flatmap(any_layout), min_size=1, max_size=3)
windows = st.one_of(
    st.lists(ways, min_size=1, max_size=3),
    targets.map(lambda found: [(t, whole(t.shape, t.ranks)) for t in found]),
    st.tuples(ranks, targets).map(lambda found: [(found[0], t) for t in found[1]]),
)


@settings(max_examples=100)
@given(windows, st.booleans())
def test_nobody_waits_in_a_circle(found, in_slabs):
    """However few messages are under way at a time, they come to an end."""
    everyone = sorted({rank for way in found for rank in routes_of(*way)})
    ring = {rank: k for k, rank in enumerate(everyone)}
    posts = {rank: Posts(rank) for rank in everyone}
    with patch.object(shipping, "LARGE", 24):
        for rank in everyone:
            wire = P2PTransport(posts[rank], torch.device("cpu"), ring)
            buckets = [*buckets_of(found, rank, in_slabs)]
            for loads in buckets:
                wire.carry(loads, False, is_last=loads is buckets[-1])
    assert not stuck(posts)


def buckets_of(found, rank, in_slabs):
    """Yield what a rank carries: all in one bucket, or slab by slab."""
    loads = [
        TransferBatch(
            Transfer(way[1], way[1], torch.int64),
            routes_of(*way).get(rank, Schedule()),
            [("w", k) for k in range(1 + n % 2)],
        )
        for n, way in enumerate(found)
    ]
    if not in_slabs:
        yield loads
        return
    for way, load in zip(found, loads, strict=True):
        for region in slabs(way[1].shape, 8):
            yield [replace(load, schedule=load.schedule.within(region))]


# -- by hand -----------------------------------------------------------------------


def test_replicas_give_to_their_own():
    """Of two pairs that each hold all, each rank takes from its pair."""
    boxes = [(Box(0, (0,), (2 * k,), (2,)),) for k in (0, 1)]
    source = Layout((4,), dict(enumerate(boxes * 2)))
    target = whole((4,), source.ranks)
    assert [schedule(source, target, r).recvs[0].peer for r in range(4)] == [1, 0, 3, 2]
    assert holders_of(source) == {((0,), (2,)): (0, 2), ((2,), (2,)): (1, 3)}


@pytest.mark.parametrize("count", [2, 5, 16])
def test_a_broadcast_is_a_binary_tree(count):
    """From rank 1 of many, the hops are as many as the bits of the others."""
    target = whole((3,), tuple(range(count)))
    found = routes_of(1, target)
    levels = [cut.hop for r in found for cut in found[r].recvs]
    assert max(levels) + 1 == (count - 1).bit_length()
    assert len(levels) == count - 1
