"""The rows of exchange: ranks gather and load by torch's own functions and by sdtree.

Each rank is a process under gloo with one thread. What a call takes is what it takes
on the slowest rank, from a barrier on. Both sides load into shards that are there, as
torch's function does; ``like=`` makes new ones. The raw limit is a flat message for
each pair of ranks, or one scatter, of as many bytes, from and into buffers that are
there. (Gloo's own ``all_gather`` of large buffers takes longer than such messages.)
Beside it stands what takes as few calls of torch and ends as ours does: *made* makes
tensors of their own of what came, *packed* packs leaves and copies them into shards.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from ranks import mesh
from torch.distributed import _state_dict_utils as incumbent
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd
from benchmarks.race import Figure, Row, Runners, Work, row_of
from benchmarks.world import race_of_ranks, times_of_ranks

Tree = dict[str, Any]
Sizes = tuple[tuple[int, int], ...]
"""How many square tensors of which side."""

SMALL: Sizes = ((1000, 64),)
LARGE: Sizes = ((64, 1024),)
HUGE: Sizes = ((4000, 64), (48, 1024), (1, 4096))
MIXTURE = {"small": SMALL, "large": LARGE, "ours": SMALL + LARGE}
TORCH_ROUNDS, ROUNDS, MANY_ROUNDS = 3, 7, 21


def cut(sizes: Sizes) -> Sizes:
    """Return a few of the same, for a look."""
    return tuple((count // 100 + 2, side) for count, side in sizes)


# -- on a rank ---------------------------------------------------------------------


def full_tree(sizes: Sizes, ranks: int = 1) -> Tree:
    """Return square tensors, those of all sizes among each other, or parts of them."""
    return {
        f"layers.{i % 64}.{side}.{i // 64}": torch.full((side // ranks, side), float(i))
        for count, side in sizes
        for i in range(count)
    }


def sharded_tree(sizes: Sizes) -> Tree:
    """Return the same by rows over all ranks; nothing is freed that was larger."""
    ranks = mesh((dist.get_world_size(),))
    return {
        name: DTensor.from_local(t, ranks, [Shard(0)], run_check=False)
        for name, t in full_tree(sizes, ranks.size()).items()
    }


def flat_of(tree: Tree) -> torch.Tensor:
    """Return a buffer with as many bytes as the local tensors of a tree."""
    return torch.zeros(sum(x.to_local().numel() for x in tree.values()))


def gathers(sizes: Sizes, to_all: bool) -> Runners:
    tree = sharded_tree(sizes)
    ranks, only = (None, ()) if to_all else (0, (0,))
    return {
        "torch": lambda: incumbent._gather_state_dict(tree, ranks_only=only),
        "ours": lambda: sd.gather(tree, ranks=ranks),
        "flat": flat_gather(tree, to_all),
        "made": flat_gather(tree, to_all, sizes),
    }


def flat_gather(tree: Tree, to_all: bool, sizes: Sizes = ()) -> Callable[[], object]:
    """Return the bare exchange of as many bytes, and tensors made of what came."""
    mine = flat_of(tree)
    size = dist.get_world_size()
    every, to = torch.zeros(size, len(mine)), range(size if to_all else 1)

    def run() -> object:
        _exchange(every, mine, to)
        return _made(every, sizes) if dist.get_rank() in to else None

    return run


def _made(flat: torch.Tensor, sizes: Sizes) -> list[tuple[torch.Tensor, ...]]:
    """Return square tensors of their own with the data of a buffer."""
    made: list[tuple[torch.Tensor, ...]] = []
    start, flat = 0, flat.flatten()
    for count, side in sizes:
        part = flat[start : start + count * side**2]
        made.append(torch.unbind_copy(part.view(count, side, side)))
        start += len(part)
    return made


def _exchange(parts: torch.Tensor, mine: torch.Tensor, to: range) -> None:
    """Send this rank's part to some; on those, receive all parts."""
    me = dist.get_rank()
    works = [dist.isend(mine, k) for k in to if k != me]
    if me in to:
        works += [dist.irecv(part, k) for k, part in enumerate(parts) if k != me]
        parts[me].copy_(mine)
    for work in works:
        work.wait()


def prepared_gathers(sizes: Sizes, to_all: bool, reuse: bool = False) -> Runners:
    """As ``gathers``, planned and agreed on once; to ``reuse`` makes no new leaves."""
    tree = sharded_tree(sizes)
    run = sd.gather(ranks=None if to_all else 0).prepare(tree, reuse=reuse)
    return {**gathers(sizes, to_all), "ours": lambda: run(tree)}


def prepared_loads(sizes: Sizes) -> Runners:
    """As ``loads``, planned and agreed on once."""
    is_source = dist.get_rank() == 0
    full, shards = full_tree(sizes) if is_source else {}, sharded_tree(sizes)
    into, like = (
        sd.broadcast(into=shards).prepare(full),
        sd.broadcast(like=shards).prepare(full),
    )
    ours = {"ours": lambda: into(full), "like=": lambda: like(full)}
    return {**loads(sizes), **ours, "packed": _packed_load(full, shards)}


def _packed_load(full: Tree, shards: Tree) -> Callable[[], None]:
    """Return one scatter of leaves of one size, and what packs and unpacks them."""
    targets = [x.to_local() for x in shards.values()]
    mine = torch.zeros(len(targets), *targets[0].size())
    every = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    rows, views = mine.size(1), mine.unbind()

    def run() -> None:
        if full:
            whole = torch.stack([*full.values()])
            for part, there in zip(whole.split(rows, 1), every, strict=True):
                there.copy_(part)
        dist.scatter(mine, every if full else None)
        torch._foreach_copy_(targets, views)

    return run


def loads(sizes: Sizes) -> Runners:
    is_source = dist.get_rank() == 0
    full = full_tree(sizes) if is_source else {}
    theirs, ours = sharded_tree(sizes), sharded_tree(sizes)
    mine = flat_of(ours)
    slices = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    cpu = torch.device("cpu")
    return {
        "torch": lambda: incumbent._broadcast_state_dict(full, theirs, cpu),
        "ours": lambda: sd.broadcast(full, into=ours),
        "flat": lambda: dist.scatter(mine, slices if is_source else None),
        "like=": lambda: sd.broadcast(full, like=ours),
    }


def mixtures(tiny: bool) -> Runners:
    trees = {
        name: sharded_tree(cut(sizes) if tiny else sizes)
        for name, sizes in MIXTURE.items()
    }
    gather = {name: partial(sd.gather, tree) for name, tree in trees.items()}
    return {**gather, "flat": flat_gather(trees["ours"], to_all=True)}


def agreements(sizes: Sizes) -> Runners:
    tree = sharded_tree(sizes)
    digest = torch.zeros(32, dtype=torch.uint8)
    every = [torch.zeros_like(digest) for _ in range(dist.get_world_size())]
    return {
        "verified": lambda: sd.gather(tree),
        "trusted": lambda: sd.gather(tree, verify=False),
        "flat": lambda: dist.all_gather(every, digest),
    }


# -- the rows ----------------------------------------------------------------------


def beside_torch(
    make: Callable[..., Runners], args: tuple[Any, ...], ranks: int, least: float
) -> Work:
    """Return the work of a race with torch, whose ratio is torch's time over ours."""

    def row(tiny: bool) -> Row:
        sizes, *rest = args
        rounds = rounds_of(tiny)
        args_there = (cut(sizes) if tiny else sizes, *rest)
        return row_of(race_of_ranks(ranks, make, args_there, rounds), least)

    return Work(row, "exchange")


def rounds_of(tiny: bool, torch: bool = True, ours: int = ROUNDS) -> dict[str, int]:
    """Return how often each takes part: torch, which is slow, seldom or never."""
    who = ("ours", "flat", "like=", "made", "packed")
    rounds = dict.fromkeys(who, 1 if tiny else ours)
    return rounds | ({"torch": 1 if tiny else TORCH_ROUNDS} if torch else {})


def beside_flat(
    make: Callable[..., Runners],
    args: tuple[Any, ...],
    ranks: int,
    most: float,
    over: str = "flat",
) -> Work:
    """Return the work of a race whose ratio is our time over that of a bare exchange.

    Or over that of another that takes part.
    """

    def row(tiny: bool) -> Row:
        sizes, *rest = args
        rounds = rounds_of(tiny, torch=False, ours=MANY_ROUNDS)
        args_there = (cut(sizes) if tiny else sizes, *rest)
        found = race_of_ranks(ranks, make, args_there, rounds)
        ours, raw = found.pop("ours"), found
        return Row(ours, raw, None, ours.median / raw[over].median, most, False)

    return Work(row, "exchange")


def mixture(ranks: int, tiny: bool) -> Row:
    """Return the row of a tree of both sizes; its ratio is the parts' time over it."""
    rounds = dict.fromkeys((*MIXTURE, "flat"), 1 if tiny else MANY_ROUNDS)
    times = times_of_ranks(ranks, mixtures, (tiny,), rounds)
    parts = map(sum, zip(times.pop("small"), times.pop("large"), strict=True))
    found = {name: Figure.of(x) for name, x in times.items()}
    found["its parts apart"] = Figure.of([*parts])
    return row_of(found, 1.0, over="its parts apart")


def agreement(ranks: int, least: float, tiny: bool) -> Row:
    """Return the row of what it takes to agree, over what it may take.

    That is a tenth of the gather, or ``least`` seconds. It is what to compare adds,
    and one exchange of a digest, which is there in any case.
    """
    rounds = dict.fromkeys(("verified", "trusted", "flat"), 1 if tiny else MANY_ROUNDS)
    sizes = cut(SMALL) if tiny else SMALL
    times = times_of_ranks(ranks, agreements, (sizes,), rounds)
    rows = zip(*(times[what] for what in rounds), strict=True)
    extra = Figure.of([verified - trusted + flat for verified, trusted, flat in rows])
    trusted = Figure.of(times["trusted"])
    ratio = extra.median / max(least, trusted.median / 10)
    raw = {"one digest to all": Figure.of(times["flat"]), "the gather": trusted}
    return Row(extra, raw, ratio=ratio, target=1.0, at_least=False)


TARGETS = {
    "gather small to all": (gathers, (SMALL, True), (15, 40)),
    "gather small to rank 0": (gathers, (SMALL, False), (25, 80)),
    "gather large to all": (gathers, (LARGE, True), (1.6, 1.8)),
    "gather large to rank 0": (gathers, (LARGE, False), (3, 4)),
    "load small": (loads, (SMALL,), (12, 22)),
    "load large": (loads, (LARGE,), (1.8, 2)),
}
WORKS: dict[str, Work] = {
    f"{work}, {ranks} ranks": beside_torch(make, args, ranks, least)
    for work, (make, args, targets) in TARGETS.items()
    for ranks, least in zip((2, 4), targets, strict=True)
}
PREPARED = {
    "gather small to all": (prepared_gathers, (SMALL, True), (50, 120)),
    "gather small to rank 0": (prepared_gathers, (SMALL, False), (60, 200)),
}
WORKS |= {
    f"prepared {work}, {ranks} ranks": beside_torch(make, args, ranks, least)
    for work, (make, args, targets) in PREPARED.items()
    for ranks, least in zip((2, 4), targets, strict=True)
}
BARE = {
    "prepared gather small to all": (prepared_gathers, (SMALL, True), 2.5),
    "prepared gather small to rank 0": (prepared_gathers, (SMALL, False), 2.5),
    "reused gather small to all": (prepared_gathers, (SMALL, True, True), 2.5),
    "reused gather small to rank 0": (prepared_gathers, (SMALL, False, True), 2.5),
    "gather small to all": (gathers, (SMALL, True), 4.0),
    "gather small to rank 0": (gathers, (SMALL, False), 4.0),
    "prepared load small": (prepared_loads, (SMALL,), 3.0),
}
WORKS |= {
    f"{work} over bare, {ranks} ranks": beside_flat(make, args, ranks, most)
    for work, (make, args, most) in BARE.items()
    for ranks in (2, 4)
}
WORKS |= {
    f"gather mixed to all, {ranks} ranks": Work(partial(mixture, ranks), "exchange")
    for ranks in (2, 4)
}
WORKS |= {
    f"agree on small, {ranks} ranks": Work(partial(agreement, ranks, least), "start")
    for ranks, least in ((2, 2e-3), (4, 6e-3))
}
