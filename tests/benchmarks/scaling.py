"""The curves: what a leaf takes as trees grow and deepen, and as ranks grow in number.

Each point is a row without a target. Where the curve by leaves is flat, the time grows
as the leaves do; to its left a call costs what it costs. A tree of a depth has ten
thousand leaves, as many in each of the dicts that stand one within the other.
"""

from collections.abc import Callable, Mapping
from functools import partial

import optree
import torch
from torch.distributed import _state_dict_utils as incumbent

import sdtree as sd
from benchmarks import exchange
from benchmarks.race import Row, Runners, Work, race, row_of
from benchmarks.speed import copy_into
from benchmarks.trees import Tree, layers, nested
from benchmarks.world import race_of_ranks

Make = Callable[[Tree], Runners]
LEAVES = (10, 100, 1_000, 10_000, 100_000)
RANKS = (1, 2, 4, 8)
DEPTHS = (1, 3, 10, 30, 100)
DEEP, FEW = 10_000, ((256, 64),)
TORCH_GATHERS = 1_000
"""How many leaves torch's gather is tried on: it takes a collective for each."""


# -- in one process ----------------------------------------------------------------


def flatten(tree: Tree) -> Runners:
    return {
        "torch": lambda: incumbent._flatten_state_dict(tree),
        "ours": lambda: sd.flatten(tree),
        "optree paths": lambda: optree.tree_flatten_with_path(tree),
    }


def mapped(tree: Tree) -> Runners:
    def same(x: object) -> object:
        return x

    return {
        "torch": lambda: incumbent._offload_state_dict_to_cpu(tree),
        "ours": lambda: sd.map(same, tree),
        "optree.tree_map": lambda: optree.tree_map(same, tree, none_is_leaf=True),
    }


def unflatten(tree: Tree) -> Runners:
    theirs, mapping = incumbent._flatten_state_dict(tree)
    ours, spec = sd.flatten(tree), sd.structure(tree)
    leaves, treespec = optree.tree_flatten(tree)
    return {
        "torch": lambda: incumbent._unflatten_state_dict(theirs, mapping),
        "ours": lambda: sd.unflatten(ours, spec=sd.TreeSpec(spec.shape)),
        "optree": lambda: optree.tree_unflatten(treespec, leaves),
    }


def chained(tree: Tree) -> Runners:
    half = torch.bfloat16
    chain = (
        sd.drop("**.weight9", missing_ok=True)
        | sd.cast(dtype=half)
        | sd.prefix("model")
    )
    leaves = [x for name, x in sd.flatten(tree).items() if name[-1] != "9"]
    return {
        "ours": lambda: chain(tree),
        "cast one by one": lambda: [x.to(half) for x in leaves],
    }


def spec(tree: Tree) -> Runners:
    def look(x: torch.Tensor) -> object:
        return x.shape, x.dtype

    return {
        "ours": lambda: sd.spec(tree),
        "optree.tree_map": lambda: optree.tree_map(look, tree),
    }


def selected(tree: Tree) -> Runners:
    flat = sd.flatten(tree)
    return {
        "ours": lambda: sd.select(tree, "**.weight1", missing_ok=True),
        "names compared": lambda: {
            name: x for name, x in flat.items() if name.endswith(".weight1")
        },
    }


def renamed(tree: Tree) -> Runners:
    flat = sd.flatten(tree)
    return {
        "ours": lambda: sd.rename(tree, ("**.weight1", "**.w"), missing_ok=True),
        "names replaced": lambda: {
            name.replace(".weight1", ".w"): x for name, x in flat.items()
        },
    }


def local(make: Make, tree: Callable[[], Tree], leaves: int, tiny: bool) -> Row:
    """Return the row of a race on a tree; calls on small ones are told together."""
    rounds, times = 5 if leaves > DEEP else 11, max(1, 1_000 // leaves)
    if tiny:
        rounds = times = 1
    return row_of(race(make(tree()), rounds, times))


BY_LEAVES: Mapping[str, Make] = {
    "flatten": flatten,
    "map": mapped,
    "copy(into=)": copy_into,
    "chain": chained,
    "spec": spec,
    "select": selected,
    "rename": renamed,
}
BY_DEPTH: Mapping[str, Make] = {
    "flatten": flatten,
    "unflatten": unflatten,
    "map": mapped,
    "copy(into=)": copy_into,
    "chain": chained,
    "select": selected,
    "rename": renamed,
}


def point_by_leaves(make: Make, leaves: int, tiny: bool) -> Row:
    count = min(leaves, 20) if tiny else leaves
    return local(make, partial(layers, count), count, tiny)


def point_by_depth(make: Make, depth: int, tiny: bool) -> Row:
    count = max(depth, 10) if tiny else DEEP
    return local(make, partial(nested, count, depth), count, tiny)


# -- on ranks ----------------------------------------------------------------------


def gathered(leaves: int, tiny: bool) -> Row:
    """Return the row of a gather to both of two ranks."""
    sizes = ((min(leaves, 20) if tiny else leaves, 8),)
    ours = 3 if leaves > DEEP else exchange.ROUNDS
    rounds = exchange.rounds_of(tiny, leaves <= TORCH_GATHERS, ours)
    return row_of(race_of_ranks(2, exchange.gathers, (sizes, True), rounds))


def ranked(
    make: Callable[..., Runners], options: tuple[bool, ...], ranks: int, tiny: bool
) -> Row:
    """Return the row of an exchange of 256 tensors of 64x64."""
    sizes = exchange.cut(FEW) if tiny else FEW
    rounds = exchange.rounds_of(tiny)
    return row_of(race_of_ranks(ranks, make, (sizes, *options), rounds))


BY_RANKS: Mapping[str, tuple[Callable[..., Runners], tuple[bool, ...]]] = {
    "gather to all": (exchange.gathers, (True,)),
    "gather to rank 0": (exchange.gathers, (False,)),
    "load": (exchange.loads, ()),
}

WORKS: dict[str, Work] = {
    f"by leaves: {name}, {n:,}": Work(
        partial(point_by_leaves, make, n), "leaves", name, n
    )
    for name, make in BY_LEAVES.items()
    for n in LEAVES
}
WORKS |= {
    f"by leaves: gather, {n:,}": Work(partial(gathered, n), "leaves", "gather", n)
    for n in LEAVES
}
WORKS |= {
    f"by ranks: {name}, {n}": Work(partial(ranked, *how, n), "ranks", name, n)
    for name, how in BY_RANKS.items()
    for n in RANKS
}
WORKS |= {
    f"by depth: {name}, {n}": Work(partial(point_by_depth, make, n), "depth", name, n)
    for name, make in BY_DEPTH.items()
    for n in DEPTHS
}
