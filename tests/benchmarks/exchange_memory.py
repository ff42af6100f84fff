"""The rows of peak memory where ranks exchange: what a rank holds for a time.

Measured on ranks that have done little before, by the kernel's own high-water mark, as
in ``memory``. The tree is of large leaves, one larger than a bucket, and of thousands
of small ones between them. A rank that is no destination of a gather may hold two
buckets beside its shards; so may any rank that is loaded beside its old shards and the
new ones, and the rank that has the tree beside that. One bucket is what must be held
to send small leaves together at all.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from ranks import Pool, pool
from torch.distributed import _state_dict_utils as incumbent

import sdtree as sd
from benchmarks.exchange import HUGE, SMALL, Sizes, cut, full_tree, sharded_tree
from benchmarks.memory import RESET, WINDOW, bytes_in, give_back, resident
from benchmarks.race import Figure, Row, Work
from benchmarks.world import PATIENCE

Tree = dict[str, Any]


# -- on a rank ---------------------------------------------------------------------


def extra_bytes(verb: str, sizes: Sizes) -> int:
    """Return how many bytes more than before and after this rank holds at its peak."""
    run = VERBS[verb]
    run(*_trees(cut(SMALL)))
    full, sharded = _trees(sizes)
    dist.barrier()
    give_back()
    RESET.write_text("5")
    before = resident("VmHWM")
    made = run(full, sharded)
    return resident("VmHWM") - before - made


def _trees(sizes: Sizes) -> tuple[Tree | None, Tree]:
    full = full_tree(sizes) if dist.get_rank() == 0 else None
    return full, sharded_tree(sizes)


def _gather(_: Tree | None, sharded: Tree) -> int:
    sd.gather(sharded, ranks=0)
    return 0


def _torch_gather(_: Tree | None, sharded: Tree) -> int:
    incumbent._gather_state_dict(sharded, ranks_only=(0,))
    return 0


def _load(full: Tree | None, sharded: Tree) -> int:
    return sd.nbytes(sd.broadcast(full, like=sharded))


def _load_into(full: Tree | None, sharded: Tree) -> int:
    sd.broadcast(full, into=sharded)
    return 0


def _torch_load(full: Tree | None, sharded: Tree) -> int:
    incumbent._broadcast_state_dict(full or {}, sharded, torch.device("cpu"))
    return 0


VERBS: dict[str, Callable[[Tree | None, Tree], int]] = {
    "gather": _gather,
    "torch gather": _torch_gather,
    "load": _load,
    "load into": _load_into,
    "torch load": _torch_load,
}


# -- the rows ----------------------------------------------------------------------


def peak(verb: str, theirs: str, first: int, ranks: int, tiny: bool) -> Row:
    """Return the row of the highest peak from a rank on, in buckets."""
    if not RESET.exists():
        return Row(bytes_in(0), {"needs Linux": bytes_in(0)})
    torchs, ours = (_highest(name, first, ranks, tiny) for name in (theirs, verb))
    raw = {"one bucket": bytes_in(WINDOW)}
    return Row(ours, raw, torchs, ours.median / WINDOW, 2.0, at_least=False)


def _highest(verb: str, first: int, ranks: int, tiny: bool) -> Figure:
    """Return the highest peak from a rank on, as fresh processes find it."""
    if tiny:
        return bytes_in(max(pool(2).run(extra_bytes, verb, cut(SMALL))[first:]))
    fresh = Pool(ranks)
    try:
        found = fresh.run(extra_bytes, verb, HUGE, timeout=PATIENCE)
    finally:
        fresh.stop()
    return bytes_in(max(found[first:]))


WORKS = {
    f"peak of {name}, {ranks} ranks": Work(
        partial(peak, verb, theirs, first, ranks), "memory"
    )
    for name, verb, theirs, first in (
        ("gather off rank 0", "gather", "torch gather", 1),
        ("load", "load", "torch load", 0),
        ("load into", "load into", "torch load", 0),
    )
    for ranks in (2, 4)
}
