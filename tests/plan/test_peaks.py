"""What a plan tells of memory, byte by byte, where one process does all.

The oracle sees the storages that torch makes, and which of them are alive.
"""

from unittest.mock import patch

import pytest
import torch
from alive import drained, most_alive
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shards import fake
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import sdtree as sd
from sdtree.transform import run

NAMES = ("a", "b", "c", "d")
HALF, DOUBLE = sd.cast(dtype=torch.half), sd.cast(dtype=torch.float64)


@st.composite
def tied_trees(draw):
    """Return leaves that are views of one memory, of another, or of none."""
    bases = [torch.zeros(128), torch.zeros(128)]
    tree = {}
    for name in NAMES:
        base = draw(st.sampled_from(bases))
        first, count = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.int32]))
        tree[name] = base[16 * first : 16 * (first + count)].view(dtype)
    return tree


some = st.sampled_from([*NAMES, "{a,b}", "{c,d}", "*"])
acts = st.sampled_from([sd.copy(), HALF, DOUBLE, sd.offload()])
chains = st.lists(acts, min_size=1, max_size=3).map(lambda found: sd.chain(*found))
steps = (
    acts
    | st.just(sd.whole(dict))
    | some.map(lambda which: sd.drop(which, missing_ok=True))
    | st.builds(sd.where, some, chains, missing_ok=st.just(True))
    | st.builds(
        lambda which, f: sd.where(which, sd.whole(dict) | f, missing_ok=True),
        some,
        chains,
    )
)
pipelines = st.lists(steps, min_size=1, max_size=5).map(lambda x: sd.chain(*x))
ONE = torch.zeros(64)
APART = {"a": ONE, "b": ONE.clone(), "c": ONE.clone(), "d": ONE.clone()}
TIED = {"a": ONE, "b": ONE, "c": ONE.view(torch.float64), "d": ONE.view(torch.int32)}


@settings(max_examples=100)
@given(tied_trees(), pipelines, st.sampled_from([64, 200, 2**20]))
@example(TIED, sd.where("b", sd.copy()), 200)
@example(TIED, HALF, 200)
@example(APART, sd.copy(), 200)
@example(APART, HALF | DOUBLE | sd.whole(dict), 200)
@example(APART, HALF | sd.whole(dict) | DOUBLE | sd.whole(dict) | HALF, 200)
@example(APART, sd.where("*", DOUBLE | HALF), 200)
@example(TIED, sd.copy() | sd.whole(dict) | sd.drop("a") | sd.copy(), 200)
def test_a_peak_is_what_is_alive(tree, transform, limit):
    """Of a call and of a stream, with ties, however the windows are cut.

    A later stretch is cut as if nothing were tied: ties are drawn in one window.
    """
    limit = 2**20 if sd.ties(tree) else limit
    with (
        patch.object(run, "SLICE_BYTES", limit),
        patch.object(run, "WINDOW_BYTES", limit),
    ):
        plan = sd.explain(transform, tree)
        called = most_alive(lambda: transform(tree), tree)
        streamed = most_alive(lambda: drained(transform.stream(tree)), tree)
    assert sum(plan.peak().values()) == called
    assert sum(plan.peak(streamed=True).values()) == streamed


def test_a_map_ties_nothing():
    """Its results count as new, each for itself."""
    assert sd.explain(sd.map(lambda x: x * 1), TIED).peak() == {"cpu": 4 * 256}


@pytest.mark.parametrize("placement", [Shard(0), Replicate()])
@pytest.mark.parametrize(
    "transform",
    [
        sd.copy() | sd.gather(),
        sd.copy() | sd.gather(ranks=0) | HALF,
        HALF | sd.gather() | sd.whole(dict) | DOUBLE | sd.gather(),
        sd.gather() | sd.whole(dict) | sd.copy(),
    ],
    ids=str,
)
def test_what_stays_through_an_exchange_is_counted_once(placement, transform):
    """It is another leaf then, in the same memory."""
    with fake(1):
        mesh = init_device_mesh("cpu", (1,))
        x = DTensor.from_local(torch.ones(8, 4), mesh, [placement], run_check=False)
        tree = {"a": x, "tied": x, "plain": torch.ones(8)}
        plan = sd.explain(transform, tree)
        assert plan.peak() == {"cpu": most_alive(lambda: transform(tree), tree)}


@pytest.mark.parametrize("me", range(4))
def test_every_rank_tells_what_each_holds(me):
    """One has none of the rows, and knows that the others make theirs."""
    with fake(4, rank=me):
        mesh = init_device_mesh("cpu", (4,))
        local = torch.ones(int(me < 3), 5)
        rows = DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=(3, 5), stride=(5, 1)
        )
        f = sd.copy() | sd.redistribute(like={"a": rows})
        plan = sd.explain(f, {"a": rows})
        assert [plan.peak(r) for r in range(4)] == [{"cpu": x} for x in (40, 40, 40, 0)]
