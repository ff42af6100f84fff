"""The rows of exchange: ranks gather and load by torch's own functions and by sdtree.

Each rank is a process under gloo with one thread. What a call takes is what it takes
on the slowest rank, from a barrier on. Both sides load into shards that are there, as
torch's function does; ``like=`` makes new ones. The raw limit is one flat collective,
or flat messages, of as many bytes, from and into buffers that are there.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from race import Row, milliseconds
from torch.distributed import _state_dict_utils as incumbent
from torch.distributed.tensor import DTensor, Shard
from world import Runners, mesh, race_of_ranks

import sdtree as sd

Tree = dict[str, Any]
SMALL, LARGE = (1000, 64), (64, 1024)
HUGE = ((4000, 64), (48, 1024), (1, 4096))
PARTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "small": (SMALL,),
    "large": (LARGE,),
    "mixed": (SMALL, LARGE),
    "huge": HUGE,
}
MIXTURE = ("small", "large", "mixed")
RAW = ("flat", "like=")
TORCH_ROUNDS, ROUNDS, MANY_ROUNDS = 3, 7, 21


# -- on a rank ---------------------------------------------------------------------


def full_tree(part: str, tiny: bool, ranks: int = 1) -> Tree:
    """Return square tensors, those of both sizes among each other, or parts of them."""
    return {
        f"layers.{i % 64}.{side}.{i // 64}": torch.full((side // ranks, side), float(i))
        for count, side in PARTS[part]
        for i in range(count // 100 + 2 if tiny else count)
    }


def sharded_tree(part: str, tiny: bool) -> Tree:
    """Return the same by rows over all ranks; nothing is freed that was larger."""
    ranks = mesh((dist.get_world_size(),))
    return {
        name: DTensor.from_local(t, ranks, [Shard(0)], run_check=False)
        for name, t in full_tree(part, tiny, ranks.size()).items()
    }


def flat_of(tree: Tree) -> torch.Tensor:
    """Return a buffer with as many bytes as the local tensors of a tree."""
    return torch.zeros(sum(x.to_local().numel() for x in tree.values()))


def gathers(part: str, to_all: bool, tiny: bool) -> Runners:
    tree = sharded_tree(part, tiny)
    mine = flat_of(tree)
    every = torch.zeros(dist.get_world_size() * len(mine))
    ranks, only = (None, ()) if to_all else (0, (0,))
    raw = _flat_to_all if to_all else _flat_to_first
    return {
        "torch": lambda: incumbent._gather_state_dict(tree, ranks_only=only),
        "ours": lambda: sd.gather(tree, ranks=ranks),
        "flat": lambda: raw(every, mine),
    }


def _flat_to_all(every: torch.Tensor, mine: torch.Tensor) -> None:
    dist.all_gather([*every.split(len(mine))], mine)


def _flat_to_first(every: torch.Tensor, mine: torch.Tensor) -> None:
    me, parts = dist.get_rank(), every.view(-1, len(mine))
    if me:
        works = [dist.isend(mine, 0)]
    else:
        works = [dist.irecv(part, k) for k, part in enumerate(parts) if k]
    for work in works:
        work.wait()


def loads(part: str, tiny: bool) -> Runners:
    is_source = dist.get_rank() == 0
    full = full_tree(part, tiny) if is_source else {}
    theirs, ours = sharded_tree(part, tiny), sharded_tree(part, tiny)
    mine = flat_of(ours)
    slices = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    cpu = torch.device("cpu")
    return {
        "torch": lambda: incumbent._broadcast_state_dict(full, theirs, cpu),
        "ours": lambda: sd.broadcast(full, into=ours),
        "like=": lambda: sd.broadcast(full, like=ours),
        "flat": lambda: dist.scatter(mine, slices if is_source else None),
    }


def mixtures(tiny: bool) -> Runners:
    trees = {part: sharded_tree(part, tiny) for part in MIXTURE}
    return {part: partial(sd.gather, tree) for part, tree in trees.items()}


def agreements(tiny: bool) -> Runners:
    tree = sharded_tree("small", tiny)
    return {
        "verified": lambda: sd.gather(tree),
        "trusted": lambda: sd.gather(tree, verify=False),
    }


# -- the rows ----------------------------------------------------------------------


def beside_torch(
    make: Callable[..., Runners], args: tuple[Any, ...], ranks: int, least: float
) -> Callable[[bool], Row]:
    """Return the row of a race with torch, whose ratio is torch's time over ours."""

    def row(tiny: bool) -> Row:
        rounds = dict.fromkeys(("ours", *RAW), 1 if tiny else ROUNDS)
        rounds["torch"] = 1 if tiny else TORCH_ROUNDS
        found = race_of_ranks(ranks, make, (*args, tiny), rounds)
        raw = {name: milliseconds(x) for name, x in found.items() if name in RAW}
        ratio = found["torch"] / found["ours"]
        figures = milliseconds(found["torch"]), milliseconds(found["ours"])
        return Row(*figures, ratio, least, raw=raw)

    return row


def mixture(ranks: int) -> Callable[[bool], Row]:
    """Return the row of a tree of both sizes; its ratio is the parts' time over it."""

    def row(tiny: bool) -> Row:
        rounds = dict.fromkeys(MIXTURE, 1 if tiny else MANY_ROUNDS)
        found = race_of_ranks(ranks, mixtures, (tiny,), rounds)
        parts = found["small"] + found["large"]
        raw = {"parts": milliseconds(parts)}
        return Row(
            "-", milliseconds(found["mixed"]), parts / found["mixed"], 1, raw=raw
        )

    return row


def agreement(ranks: int, least: float) -> Callable[[bool], Row]:
    """Return the row of what it takes to agree, over what it may take.

    That is a tenth of the gather, or ``least`` seconds.
    """

    def row(tiny: bool) -> Row:
        rounds = dict.fromkeys(("verified", "trusted"), 1 if tiny else MANY_ROUNDS)
        found = race_of_ranks(ranks, agreements, (tiny,), rounds)
        extra = found["verified"] - found["trusted"]
        ratio = extra / max(least, found["trusted"] / 10)
        raw = {"without": milliseconds(found["trusted"])}
        return Row("-", milliseconds(extra), ratio, 1.0, at_least=False, raw=raw)

    return row


TARGETS = {
    "gather small to all": (gathers, ("small", True), (15, 40)),
    "gather small to rank 0": (gathers, ("small", False), (25, 80)),
    "gather large to all": (gathers, ("large", True), (1.6, 1.8)),
    "gather large to rank 0": (gathers, ("large", False), (3, 4)),
    "load small": (loads, ("small",), (12, 22)),
    "load large": (loads, ("large",), (1.8, 2)),
}
WORKS: dict[str, Callable[[bool], Row]] = {
    f"{work}, {ranks} ranks": beside_torch(make, args, ranks, least)
    for work, (make, args, targets) in TARGETS.items()
    for ranks, least in zip((2, 4), targets, strict=True)
}
WORKS |= {f"gather mixed to all, {ranks} ranks": mixture(ranks) for ranks in (2, 4)}
WORKS |= {
    f"agree on small, {ranks} ranks": agreement(ranks, least)
    for ranks, least in ((2, 2e-3), (4, 6e-3))
}
