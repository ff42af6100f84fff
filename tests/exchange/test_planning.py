"""Before the first byte, each distinct layout is looked at once, and then each leaf.

The group is torch's fake one, of 1024 ranks, and the leaves are on meta. What is
asserted are counts: of layouts that are worked out, and of all calls that are made.
"""

import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from shards import fake
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

import sdtree as sd
from sdtree.errors import LayoutError
from sdtree.exchange import checks, exchange_plan, leaf_plan
from sdtree.exchange.exchange import Exchange
from sdtree.kinds import abstract, dtensor
from sdtree.layout import schedule as routes
from sdtree.layout.layout import Box, Layout
from sdtree.wire.agreement import Agreed
from sdtree.wire.collectives import RankGroup

RANKS = 1024
SHAPES = [(4096, 4096), (4096, 11008), (4096,), (2048, 4096), (32000, 64)]
LAYOUTS = {
    "rows": lambda n: ((n,), (Shard(0),)),
    "hsdp": lambda n: ((4, n // 4), (Replicate(), Shard(0))),
    "blocks": lambda n: ((n // 4, 4), (Shard(0), Shard(1))),
}


@pytest.fixture(autouse=True)
def _agreement_of_one(monkeypatch):
    """Let a rank of a fake group do all that it does to agree, and hear a yes.

    The leaves have no data, and nobody minds.
    """

    def agree(group, fingerprints, note=0, *, verify=True, advice=""):
        for ranks, fingerprint in fingerprints.items():
            fingerprint.row(ranks, verify)
        ties = [tie for x in fingerprints.values() for tie in x.ties]
        return Agreed((note,), ties)

    monkeypatch.setattr(exchange_plan, "agree", agree)
    monkeypatch.setattr(exchange_plan.ExchangePlan, "check_data", lambda _: None)


def sharded(layout, leaves):
    """Return as many leaves of a few shapes, laid out over all ranks."""
    sizes, placements = LAYOUTS[layout](dist.get_world_size())
    ranks = torch.arange(dist.get_world_size()).view(sizes)
    mesh = DeviceMesh("cpu", ranks, _init_backend=False)
    firsts = [leaf(shape, mesh, placements) for shape in SHAPES]
    return {f"layers.{k}": another(firsts[k % len(firsts)]) for k in range(leaves)}


def leaf(shape, mesh, placements):
    hows = [p if getattr(p, "dim", 0) < len(shape) else Replicate() for p in placements]
    part, _ = compute_local_shape_and_global_offset(shape, mesh, hows)
    return DTensor.from_local(
        torch.empty(part, device="meta"),
        mesh,
        hows,
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )


def another(x):
    """Return a leaf like this one; it takes much less time than the first did."""
    return DTensor(torch.empty_like(x._local_tensor), x._spec, requires_grad=False)


def whole(leaves):
    shapes = [SHAPES[k % len(SHAPES)] for k in range(leaves)]
    made = (torch.empty(shape, device="meta") for shape in shapes)
    return {f"layers.{k}": t for k, t in enumerate(made)}


PLANS = {
    "gather": lambda n: (sd.gather(ranks=0), sharded("rows", n)),
    "gather to all": lambda n: (sd.gather(), sharded("hsdp", n)),
    "gather, balanced": lambda n: (sd.gather(ranks="balanced"), sharded("blocks", n)),
    "distribute": lambda n: (sd.distribute(like=sharded("hsdp", n)), whole(n)),
    "broadcast": lambda n: (sd.broadcast(like=sharded("hsdp", n)), whole(n)),
    "redistribute": lambda n: (
        sd.redistribute(like=sharded("blocks", n)),
        sharded("rows", n),
    ),
}
every_plan = pytest.mark.parametrize("name", PLANS)


def start(monkeypatch, name, leaves):
    """Return what starts an exchange; other ranks seem to be there, but in ``open``."""
    f, tree = PLANS[name](leaves)
    if name != "broadcast":
        found = RankGroup.of()
        seen = replace(found, others=len(found.ranks) - 1)
        monkeypatch.setattr(RankGroup, "of", lambda *_: seen)
    return lambda: Exchange.start(tree, f.stages, *f.stages)


def forget():
    """Forget all that was worked out before."""
    for module in (
        abstract,
        dtensor,
        checks,
        leaf_plan,
        routes,
        sys.modules["sdtree.layout.layout"],
    ):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def noting(function, calls):
    """Return the function, which notes what it is called with."""

    def noted(*args):
        calls.append(args[:3])
        return function(*args)

    return noted


# -- once for leaves that are alike ------------------------------------------------


@every_plan
def test_each_distinct_layout_is_worked_out_and_checked_once(monkeypatch, name):
    """However many leaves have it; and what costs as much as there are ranks."""
    leaves = 10_000 if name in ("gather", "broadcast") else 1000
    made, checked = [], []
    with fake(RANKS):
        begin = start(monkeypatch, name, leaves)
        layout_of, check = dtensor.mesh_layout, Layout.check_coverage
        monkeypatch.setattr(dtensor, "mesh_layout", noting(layout_of, made))
        monkeypatch.setattr(Layout, "check_coverage", noting(check, checked))
        forget()
        assert sum(len(window.ids) for window in begin().windows) == leaves
    sides = 2 if name == "redistribute" else 1
    assert len(made) == len(set(made)) == len(SHAPES) * sides
    assert len(checked) == len(SHAPES) * sides
    for work in (routes.holders_of, routes.summary, routes.settled):
        assert work.cache_info().misses <= 2 * len(SHAPES) * sides


class Holed:
    """A leaf of four rows, the last of which lies nowhere."""

    def __init__(self, part):
        self.part = part


def rows_without_the_last(x):
    boxes = {rank: (Box(0, (0, 0), (rank, 0), (1, 2)),) for rank in range(3)}
    return Layout((4, 2), {**boxes, 3: ()})


sd.register_leaf(
    Holed,
    flatten=lambda x: ((x.part,), None),
    unflatten=lambda _, ts: Holed(*ts),
    layout=rows_without_the_last,
)


def test_sources_must_cover_what_is_taken_of_them():
    """Else what arrives would be whatever was in memory."""
    with fake(4):
        mesh = DeviceMesh("cpu", torch.arange(4), _init_backend=False)
        like = {"w": leaf((4, 2), mesh, [Shard(0)])}
        for f in (sd.gather(), sd.redistribute(like=like)):
            with pytest.raises(LayoutError, match="w: 2 of 8 elements"):
                Exchange.start({"w": Holed(torch.ones(1, 2))}, f.stages, *f.stages)


# -- leaf by leaf ------------------------------------------------------------------


def calls_of(monkeypatch, size, name, leaves):
    """Return how many calls are made, of Python's and of C's, up to the first byte."""
    count = 0

    def see(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    with monkeypatch.context() as patch, fake(size):
        begin = start(patch, name, leaves)
        begin()
        sys.setprofile(see)
        try:
            begin()
        finally:
            sys.setprofile(None)
    return count


@every_plan
def test_a_leaf_takes_so_many_calls_however_many_leaves_and_ranks_there_are(
    monkeypatch, name
):
    """Time is linear in the leaves, and no call is made for each rank of each leaf."""
    few, more, most = (calls_of(monkeypatch, RANKS, name, n) for n in (100, 200, 400))
    assert most - more < 2.1 * (more - few)
    small, large = (calls_of(monkeypatch, 16, name, n) for n in (100, 200))
    assert more - few < 1.1 * (large - small)


def test_who_takes_part_stands_in_the_order_of_ranks():
    """So torch numbers the members of a group; a set would have 8 before 1."""
    rows = {rank: (Box(0, (0,), (k,), (1,)),) for k, rank in enumerate((1, 9))}
    layout, local = Layout((2,), rows), sd.Abstract.dense((1,), torch.float32).tensors
    form = sd.Abstract(DTensor, (2,), torch.float32, local, layout)
    comes = leaf_plan.gather_leaf_plan(form, (8,), "8", "cpu", 8, False)
    goes = leaf_plan.spread_leaf_plan("broadcast", form, 8, (8,), "cpu", layout, layout)
    assert comes.crew == goes.crew == (1, 8, 9)
