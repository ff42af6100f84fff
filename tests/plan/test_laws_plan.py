"""The laws of plans: what ``explain`` tells is what a run does, on real processes.

Each rank plans for all. Then the run is recorded on each, and all plans are compared
with all records.
"""

from itertools import combinations

import torch
from foretelling import as_foretold
from hypothesis import example, given
from hypothesis import strategies as st
from rank_laws import (
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

import sdtree as sd
from sdtree.testing import (
    Blocked,
    Meshed,
    Sketch,
    full_of,
    sharded_of,
    sharded_trees,
    sketches,
)
from sdtree.wire.collectives import RankGroup


def gathers_as_foretold(tree, ranks, into, options):
    are_tied = into == "tied" and not callable(ranks)  # one buffer is for one goal
    buffers = full_of(others(tree, are_tied=are_tied)) if into else None
    transform = sd.gather(ranks=ranks, into=buffers, **options)
    unseen = None if ranks is None else buffers  # those of other ranks
    as_foretold(transform, sharded_of(tree), buffers=unseen)


intos = st.sampled_from(["", "", "tied", "apart"])


ONE = Sketch((1,), Blocked((1,), ((((0,), (1,)), 0),)), torch.float32, 0)
"""A leaf that lies on one rank of all; the others hold nothing of it."""

ALL = Sketch((), Meshed((), (4,), (0, 1, 2, 3)), torch.float32, 0)
PAIR = Sketch((1,), Meshed((1,), (2,), (2, 3)), torch.float32, 0)
THREE = Sketch((0,), Meshed((0,), (3,), (0, 1, 2)), torch.float32, 0)
SUM = Sketch((3,), Meshed((3,), (2,), (0, 1), (), ((0, "sum"),)), torch.float32, 0)
"""Terms of a sum on some ranks; another that is to have it has no part in that."""

SOME = [r for n in range(1, 5) for r in combinations(range(4), n)]
OF_EACH_SET = [Sketch((), Meshed((), (len(r),), r), torch.float32, 0) for r in SOME]
"""A leaf on each set of ranks: more sets than fit into the first of what is agreed."""

APART = (
    Sketch((), None, torch.float32, 0),
    Sketch((), Meshed((), (1,), (0,)), torch.float32, 0),
)
NOW = {"bucket_bytes": 1, "verify": True}


@laws
@given(trees, st.sampled_from([None, "balanced"]), intos, options)
@example([ONE, ONE], None, "tied", NOW)
def test_a_gather_is_foretold(tree, ranks, into, options):
    """For any mesh and placement, bucket and wire: messages, collectives and bytes."""
    by_each_wire(gathers_as_foretold, tree, ranks, into, options)


@laws
@given(
    on_all,
    st.sampled_from([0, 3, [1], (2, 0), in_length, pair_in_length]),
    intos,
    options,
)
@example([ALL, ALL], 0, "apart", NOW)
@example([SUM, ALL], 3, "", NOW)
@example({"a": ONE, "ab": ONE}, pair_in_length, "tied", NOW)
def test_a_gather_to_chosen_ranks_is_foretold(tree, ranks, into, options):
    by_each_wire(gathers_as_foretold, tree, ranks, into, options)


def gathers_in_part_as_foretold(tree, options):
    some = RankGroup.of().of_ranks((0, 1, 2)) if me() < 3 else None
    given = sharded_of(tree)
    if some is None:
        as_foretold(sd.identity, None)
    else:
        as_foretold(sd.gather(group=some.group, **options), given)


@laws
@given(sharded_trees(sketches(3, max_side=9)), options)
def test_a_gather_in_a_part_of_the_world_is_foretold(tree, options):
    """The ranks that are not in the group do nothing."""
    by_each_wire(gathers_in_part_as_foretold, tree, options)


def redistributes_as_foretold(here, there, are_tied, options):
    given, like = sharded_of(here), sharded_of(others(there, are_tied))
    as_foretold(sd.redistribute(like=like, **options), given, like)


@laws
@given(moves(), st.booleans(), options)
def test_a_redistribution_is_foretold(found, are_tied, options):
    """From mesh to mesh over the same ranks, from kind to kind, from and to whole."""
    by_each_wire(redistributes_as_foretold, *found, are_tied, options)


def loads_as_foretold(tree, src, into, is_source_tied, options):
    """``src`` is None where every rank has the source."""
    full = full_of(tree)
    full = full if is_source_tied else untied(full)
    target = sharded_of(others(tree, are_tied=into != "apart"))
    given = {"into" if into else "like": target, **options}
    if src is None:
        as_foretold(sd.distribute(**given), full, target)
    else:
        transform = sd.broadcast(src=src, **given)
        as_foretold(transform, full if me() == src else None, target)


@laws
@given(trees, st.none() | st.integers(0, 3), intos, st.booleans(), options)
@example([PAIR], 2, "", False, NOW)
@example([THREE], 3, "", False, NOW)
@example([APART[1], APART[0], APART[1]], 0, "", False, NOW)
@example(OF_EACH_SET, 0, "", False, NOW)
def test_a_load_is_foretold(tree, src, into, is_source_tied, options):
    """From every rank, and from one, where that one foretells it for all."""
    by_each_wire(loads_as_foretold, tree, src, into, is_source_tied, options)


def pipeline_as_foretold(tree):
    export = sd.drop("nested.**", missing_ok=True) | sd.cast(dtype=torch.bfloat16)
    export = export | sd.gather(ranks="balanced", bucket_bytes=64) | sd.offload()
    as_foretold(export | sd.prefix("model") | sd.flatten(sep="/"), sharded_of(tree))


@laws
@given(trees)
def test_a_pipeline_is_foretold(tree):
    """What is dropped is not sent, and what is cast before is sent as it is then."""
    by_each_wire(pipeline_as_foretold, tree)
