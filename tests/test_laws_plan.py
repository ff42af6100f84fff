"""The laws of plans: what ``explain`` tells is what a run does, on real processes.

Each rank plans for all. Then the run is recorded on each, and all plans are compared
with all records.
"""

import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from test_laws_collective import (
    buckets,
    by_each_wire,
    in_length,
    laws,
    me,
    on_all,
    others,
    pair_in_length,
    trees,
)

import sdtree as sd
from sdtree.joint import is_blind
from sdtree.testing import full_of, sharded_of
from sdtree.wire import record


def as_foretold(transform, tree, like=None):
    """Assert that ranks foretell what each rank sends and receives.

    Those are not asked that have no tree, or nothing of a leaf: they cannot see whether
    it is tied.
    """
    plan, error = None, None
    if tree is not None:
        plan, error = tried(lambda: sd.explain(transform, tree))
    with record() as traffic:
        transform(tree)
    told = None
    if plan is not None and sees_all([tree, like]):
        told = [plan.traffic(r) for r in plan.ranks]
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, (told, traffic))
    if error is not None:
        raise error
    for rank, (_, done) in enumerate(every):
        for planner, (told, _) in enumerate(every):
            known = told is None or told[rank] == done
            assert known, f"rank {planner} foretells for rank {rank}: {told} {done}"


def sees_all(tree):
    """Return whether this rank has a part of each leaf that ranks share."""
    return not any(is_blind(sd.Abstract.of(x).layout, me()) for x in sd.leaves(tree))


def tried(work):
    """Return what is made, or the error: others wait for this rank in the run."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def gathers_as_foretold(tree, bucket_bytes, ranks, verify):
    transform = sd.gather(ranks=ranks, bucket_bytes=bucket_bytes, verify=verify)
    as_foretold(transform, sharded_of(tree))


@laws
@given(trees, buckets, st.sampled_from([None, "balanced"]), st.booleans())
def test_a_gather_is_foretold(tree, bucket_bytes, ranks, verify):
    """For any mesh and placement, bucket and wire: messages, collectives and bytes."""
    by_each_wire(gathers_as_foretold, tree, bucket_bytes, ranks, verify)


@laws
@given(on_all, buckets, st.sampled_from([0, 3, [1], (2, 0), in_length, pair_in_length]))
def test_a_gather_to_chosen_ranks_is_foretold(tree, bucket_bytes, ranks):
    by_each_wire(gathers_as_foretold, tree, bucket_bytes, ranks, True)


def redistributes_as_foretold(tree, bucket_bytes):
    like = sharded_of(others(tree))
    transform = sd.redistribute(like=like, bucket_bytes=bucket_bytes)
    as_foretold(transform, sharded_of(tree), like)


@laws
@given(trees, buckets)
def test_a_redistribution_is_foretold(tree, bucket_bytes):
    by_each_wire(redistributes_as_foretold, tree, bucket_bytes)


def loads_as_foretold(tree, bucket_bytes, moves):
    full, like = full_of(tree), sharded_of(others(tree))
    if not moves:
        as_foretold(sd.distribute(like=like, bucket_bytes=bucket_bytes), full, like)
        return
    transform = sd.broadcast(like=like, bucket_bytes=bucket_bytes)
    as_foretold(transform, full if me() == 0 else None, like)


@laws
@given(trees, buckets, st.booleans())
def test_a_load_is_foretold(tree, bucket_bytes, moves):
    """From every rank, and from one, where that one foretells it for all."""
    by_each_wire(loads_as_foretold, tree, bucket_bytes, moves)


def pipeline_as_foretold(tree):
    export = sd.drop("nested.**", missing_ok=True) | sd.cast(dtype=torch.bfloat16)
    export = export | sd.gather(ranks="balanced", bucket_bytes=64) | sd.offload()
    as_foretold(export | sd.prefix("model") | sd.flatten(sep="/"), sharded_of(tree))


@laws
@given(trees)
def test_a_pipeline_is_foretold(tree):
    """What is dropped is not sent, and what is cast before is sent as it is then."""
    by_each_wire(pipeline_as_foretold, tree)
