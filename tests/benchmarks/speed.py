"""The rows of speed: the same work by torch's own functions and by sdtree."""

import re
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import optree
import torch
from torch.distributed import _state_dict_utils as incumbent

import sdtree as sd
from benchmarks import trees
from benchmarks.race import Around, Row, Runners, Work, collector_on, race, row_of

Make = Callable[[bool], Runners]


def identity_map(tiny: bool) -> Runners:
    tree = trees.optimizer(10 if tiny else 10_000)
    return {
        "torch": lambda: incumbent._offload_state_dict_to_cpu(tree),
        "ours": lambda: sd.map(_same, tree),
        "optree.tree_map": lambda: optree.tree_map(_same, tree, none_is_leaf=True),
    }


def _same(x: Any) -> Any:
    return x


def flatten(tiny: bool) -> Runners:
    tree = trees.optimizer(10 if tiny else 10_000)
    return {
        "torch": lambda: incumbent._flatten_state_dict(tree),
        "ours": lambda: sd.flatten(tree),
        "optree paths": lambda: optree.tree_flatten_with_path(tree),
    }


def flatten_and_structure(tiny: bool) -> Runners:
    """As ``flatten``, with what it takes to come back, which torch's returns too."""
    tree = trees.optimizer(10 if tiny else 10_000)
    return {
        "torch": lambda: incumbent._flatten_state_dict(tree),
        "ours": lambda: (sd.flatten(tree), sd.structure(tree)),
        "optree paths": lambda: optree.tree_flatten_with_path(tree),
    }


def unflatten(tiny: bool) -> Runners:
    """Each round has a spec of its own, which has not yet thought of its names."""
    tree = trees.optimizer(10 if tiny else 10_000)
    theirs, mapping = incumbent._flatten_state_dict(tree)
    ours, spec = sd.flatten(tree), sd.structure(tree)
    leaves, treespec = optree.tree_flatten(tree, none_is_leaf=True)
    return {
        "torch": lambda: incumbent._unflatten_state_dict(theirs, mapping),
        "ours": lambda: sd.unflatten(ours, spec=sd.TreeSpec(spec.shape)),
        "optree": lambda: optree.tree_unflatten(treespec, leaves),
    }


def copy_tiny(tiny: bool, depth: int = 1, tied: bool = False) -> Runners:
    tree = trees.tiny_tensors(30 if tiny else 30_000, depth, tied)
    return copy_into(tree)


def copy_into(tree: trees.Tree) -> Runners:
    buffers = sd.empty_like(tree)
    targets, sources = sd.leaves(buffers), sd.leaves(tree)
    return {
        "torch": lambda: incumbent._copy_state_dict(tree, buffers),
        "ours": lambda: sd.copy(tree, into=buffers),
        "_foreach_copy_": lambda: torch._foreach_copy_(targets, sources),
    }


def copy_prepared(tiny: bool, anew: bool) -> Runners:
    """Copy tensors that are other objects each time, as ``state_dict`` makes them.

    Where tensors lie in memory counts for much: torch is given the same ones.
    """
    tree = trees.tiny_tensors(30 if tiny else 30_000, 1, tied=False)
    buffers = sd.empty_like(tree)
    targets, sources = sd.leaves(buffers), sd.leaves(tree)
    run = sd.copy(into=buffers).prepare(tree)
    given = cycle([detached(tree) if anew else tree for _ in range(3)])
    return {
        "torch": lambda: incumbent._copy_state_dict(next(given), buffers),
        "ours": lambda: run(next(given)),
        "_foreach_copy_": lambda: torch._foreach_copy_(targets, sources),
    }


def detached(tree: trees.Tree) -> trees.Tree:
    return sd.map(torch.Tensor.detach, tree)


def ten_leaves(verb: str, tiny: bool) -> Row:
    """Return the row of ten leaves, that small trees pay as well."""
    tree = sd.flatten(trees.layers(10))
    theirs, ours = sd.empty_like(tree), sd.empty_like(tree)
    pattern = re.compile("weight[0-4]$")
    some = sd.select(pattern)

    def chosen() -> trees.Tree:
        flat, _ = incumbent._flatten_state_dict(tree)
        return {name: x for name, x in flat.items() if pattern.search(name)}

    runners: dict[str, Runners] = {
        "map": {
            "torch": lambda: incumbent._offload_state_dict_to_cpu(tree),
            "ours": lambda: sd.map(_same, tree),
            "a dict": lambda: {name: _same(x) for name, x in tree.items()},
        },
        "copy(into=)": {
            "torch": lambda: incumbent._copy_state_dict(tree, theirs),
            "ours": lambda: sd.copy(tree, into=ours),
            "_foreach_copy_": lambda: torch._foreach_copy_(
                [*theirs.values()], [*tree.values()]
            ),
        },
        "select": {
            "torch": chosen,
            "ours": lambda: some(tree),
            "a dict": lambda: {name: tree[name] for name in [*tree][:5]},
        },
    }
    rounds, times = (1, 1) if tiny else (15, 200)
    return row_of(race(runners[verb], rounds, times), 1.0)


def copy_large(tiny: bool) -> Runners:
    count, elements = (3, 2**10) if tiny else (96, 2**22)
    tree = trees.large_tensors(count, elements)
    buffers = trees.large_tensors(count, elements)
    flat, room = torch.ones(count * elements), torch.ones(count * elements)
    return {
        "torch": lambda: incumbent._copy_state_dict(tree, buffers),
        "flat copy": lambda: room.copy_(flat),
        "ours": lambda: sd.copy(tree, into=buffers),
    }


def empty_like(tiny: bool, depth: int = 1) -> Runners:
    tree = trees.tiny_tensors(30 if tiny else 30_000, depth)
    leaves = sd.leaves(tree)
    return {
        "torch": lambda: incumbent._create_cpu_state_dict(tree),
        "ours": lambda: sd.empty_like(tree),
        "torch.empty_like": lambda: [torch.empty_like(t) for t in leaves],
    }


def similar(tiny: bool, depth: int = 1) -> Runners:
    tree = trees.tiny_tensors(30 if tiny else 30_000, depth)
    other = sd.copy(tree)
    return {
        "torch": lambda: incumbent._check_state_dict_similarity(tree, other),
        "ours": lambda: sd.similar(tree, other),
        "optree, twice": lambda: [optree.tree_flatten(t) for t in (tree, other)],
    }


def beside_torch(
    make: Make, target: float, over: str = "torch", around: Around | None = None
) -> Work:
    """Return the work of a race whose ratio is the time of ``over`` over ours.

    What comes again and again is known, where it lies, when it has come three times.
    """

    def row(tiny: bool) -> Row:
        found = race(make(tiny), 1 if tiny else 15, around=around, warm=4)
        return row_of(found, target, over)

    return Work(row, "speed")


def with_collector(make: Make, target: float, over: str = "torch") -> Work:
    """Return the work of a race in which Python looks for garbage, as for users."""
    return beside_torch(make, target, over, collector_on)


anew = partial(copy_prepared, anew=True)
again = partial(copy_prepared, anew=False)

WORKS: dict[str, Work] = {
    "identity map, 40,003 leaves": beside_torch(identity_map, 3.0),
    "flatten, 40,003 leaves": beside_torch(flatten, 2.5),
    "flatten and structure": beside_torch(flatten_and_structure, 2.5),
    "unflatten, 40,003 leaves": beside_torch(unflatten, 5.0),
    "copy(into=), 30,000 tiny": beside_torch(copy_tiny, 1.6),
    "copy(into=), three to a dict": beside_torch(partial(copy_tiny, depth=2), 1.6),
    "copy(into=), two of them tied": beside_torch(partial(copy_tiny, tied=True), 1.6),
    "copy(into=) prepared, 30,000 tiny": beside_torch(anew, 2.5),
    "copy(into=) prepared, the same objects": beside_torch(
        again, 0.5, over="_foreach_copy_"
    ),
    "copy(into=), 96 of 16 MiB": beside_torch(copy_large, 0.9, over="flat copy"),
    "empty_like, 30,000 tiny": beside_torch(empty_like, 2.5),
    "empty_like, three to a dict": beside_torch(partial(empty_like, depth=2), 2.5),
    "similar, 30,000 tiny": beside_torch(similar, 3.0),
    "similar, three to a dict": beside_torch(partial(similar, depth=2), 3.0),
    "map, ten leaves": Work(partial(ten_leaves, "map"), "speed"),
    "copy(into=), ten leaves": Work(partial(ten_leaves, "copy(into=)"), "speed"),
    "select, ten leaves": Work(partial(ten_leaves, "select"), "speed"),
    "unflatten, collector on": with_collector(unflatten, 5.0),
    "copy(into=), collector on": with_collector(copy_tiny, 1.6),
    "copy(into=) prepared, collector on": with_collector(anew, 2.5),
    "copy(into=) prepared, same objects, collector on": with_collector(
        again, 0.5, "_foreach_copy_"
    ),
    "empty_like, collector on": with_collector(empty_like, 2.5),
}
