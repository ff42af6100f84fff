"""What a plan foretells of a run, held against what was recorded on every rank."""

import torch.distributed as dist
from rank_laws import (
    me,
)

import sdtree as sd
from sdtree.layout.schedule import is_blind
from sdtree.wire.collectives import record


def as_foretold(transform, tree, target=None, buffers=None):
    """Assert that ranks foretell what each rank sends and receives.

    Those may err that say that they cannot see whether leaves are tied, and it must be
    so: they hold nothing of some, or others have the buffers. A rank that has no tree
    is not asked.
    """
    plan, error = None, None
    if tree is not None:
        plan, error = tried(lambda: sd.explain(transform, tree))
    with record() as traffic:
        transform(tree)
    told = rows = None
    if plan is not None and not any(UNSEEN in note for note in plan.notes):
        told, rows = [plan.traffic(r) for r in plan.ranks], plan.rows
        assert all(0 not in each.messages.values() for each in told)
    is_unsure = plan is not None and told is None
    if is_unsure and buffers is None and sees_all([tree, target]):
        error = AssertionError(plan.notes)
    every = [None] * dist.get_world_size()
    moved = rows and {x.to: (x.moves, x.sent, x.received) for x in rows if x.to}
    dist.all_gather_object(every, (told, traffic, moved))
    if error is not None:
        raise error
    for rank, (_, done, _) in enumerate(every):
        for planner, (told, *_) in enumerate(every):
            known = told is None or told[rank] == done
            assert known, f"rank {planner} foretells for rank {rank}: {told} {done}"
    add_up([moved for *_, moved in every])


def add_up(every):
    """Assert that what a leaf moves is what all ranks send of it, and what all get."""
    for path in every[0] if None not in every else ():
        rows = [moved[path] for moved in every if path in moved]
        if len(rows) == len(every):
            moves, sent, received = zip(*rows, strict=True)
            assert {*moves} == {sum(sent)} == {sum(received)}, (path, rows)


UNSEEN = "is not seen on this rank"


def sees_all(tree):
    """Return whether this rank has a part of each leaf that ranks share."""
    return not any(is_blind(sd.Abstract.of(x).layout, me()) for x in sd.leaves(tree))


def tried(work):
    """Return what is made, or the error: others wait for this rank in the run."""
    try:
        return work(), None
    except Exception as error:
        return None, error
