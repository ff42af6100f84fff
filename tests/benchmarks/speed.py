"""The rows of speed: the same work by torch's own functions and by sdtree."""

from collections.abc import Callable
from functools import partial
from typing import Any

import optree
import torch
import trees
from race import Row, against_torch, milliseconds, race
from torch.distributed import _state_dict_utils as incumbent

import sdtree as sd


def identity_map(tiny: bool) -> Row:
    tree = trees.optimizer(10 if tiny else 10_000)
    return against_torch(
        lambda: incumbent._offload_state_dict_to_cpu(tree),
        lambda: sd.map(_same, tree),
        3.0,
        *_rounds(tiny),
        **{"optree.tree_map": lambda: optree.tree_map(_same, tree, none_is_leaf=True)},
    )


def _same(x: Any) -> Any:
    return x


def flatten(tiny: bool) -> Row:
    tree = trees.optimizer(10 if tiny else 10_000)
    return against_torch(
        lambda: incumbent._flatten_state_dict(tree),
        lambda: sd.flatten(tree),
        2.5,
        *_rounds(tiny),
        **{"optree paths": lambda: optree.tree_flatten_with_path(tree)},
    )


def flatten_and_structure(tiny: bool) -> Row:
    """As ``flatten``, with what it takes to come back, which torch's returns too."""
    tree = trees.optimizer(10 if tiny else 10_000)
    return against_torch(
        lambda: incumbent._flatten_state_dict(tree),
        lambda: (sd.flatten(tree), sd.structure(tree)),
        2.5,
        *_rounds(tiny),
    )


def unflatten(tiny: bool) -> Row:
    """Each round has a spec of its own, which has not yet thought of its names."""
    tree = trees.optimizer(10 if tiny else 10_000)
    theirs, mapping = incumbent._flatten_state_dict(tree)
    ours, spec = sd.flatten(tree), sd.structure(tree)
    leaves, treespec = optree.tree_flatten(tree, none_is_leaf=True)
    return against_torch(
        lambda: incumbent._unflatten_state_dict(theirs, mapping),
        lambda: sd.unflatten(ours, spec=sd.TreeSpec(spec.shape)),
        5.0,
        *_rounds(tiny),
        optree=lambda: optree.tree_unflatten(treespec, leaves),
    )


def copy_tiny(tiny: bool, depth: int = 1, tied: bool = False) -> Row:
    tree = trees.tiny_tensors(30 if tiny else 30_000, depth, tied)
    buffers = sd.empty_like(tree)
    targets, sources = sd.leaves(buffers), sd.leaves(tree)
    return against_torch(
        lambda: incumbent._copy_state_dict(tree, buffers),
        lambda: sd.copy(tree, into=buffers),
        1.6,
        *_rounds(tiny),
        _foreach_copy_=lambda: torch._foreach_copy_(targets, sources),
    )


def copy_large(tiny: bool) -> Row:
    """The ratio is that of the flat copy of as much memory; torch's stands beside."""
    count, elements = (3, 2**10) if tiny else (96, 2**22)
    tree = trees.large_tensors(count, elements)
    buffers = trees.large_tensors(count, elements)
    flat, room = torch.ones(count * elements), torch.ones(count * elements)
    found = race(
        {
            "torch": lambda: incumbent._copy_state_dict(tree, buffers),
            "flat copy": lambda: room.copy_(flat),
            "ours": lambda: sd.copy(tree, into=buffers),
        },
        *_rounds(tiny),
    )
    raw = {"flat copy": milliseconds(found["flat copy"])}
    raw["of torch"] = f"{found['flat copy'] / found['torch']:.2f}"
    figures = milliseconds(found["torch"]), milliseconds(found["ours"])
    return Row(*figures, found["flat copy"] / found["ours"], 0.9, raw=raw)


def empty_like(tiny: bool, depth: int = 1) -> Row:
    tree = trees.tiny_tensors(30 if tiny else 30_000, depth)
    leaves = sd.leaves(tree)
    return against_torch(
        lambda: incumbent._create_cpu_state_dict(tree),
        lambda: sd.empty_like(tree),
        2.5,
        *_rounds(tiny),
        **{"torch.empty_like": lambda: [torch.empty_like(t) for t in leaves]},
    )


def similar(tiny: bool, depth: int = 1) -> Row:
    tree = trees.tiny_tensors(30 if tiny else 30_000, depth)
    other = sd.copy(tree)
    return against_torch(
        lambda: incumbent._check_state_dict_similarity(tree, other),
        lambda: sd.similar(tree, other),
        3.0,
        *_rounds(tiny),
    )


def _rounds(tiny: bool) -> tuple[int]:
    return (2,) if tiny else (15,)


WORKS: dict[str, Callable[[bool], Row]] = {
    "identity map, 40,003 leaves": identity_map,
    "flatten, 40,003 leaves": flatten,
    "flatten and structure": flatten_and_structure,
    "unflatten, 40,003 leaves": unflatten,
    "copy(into=), 30,000 tiny": copy_tiny,
    "copy(into=), three to a dict": partial(copy_tiny, depth=2),
    "copy(into=), two of them tied": partial(copy_tiny, tied=True),
    "copy(into=), 96 of 16 MiB": copy_large,
    "empty_like, 30,000 tiny": empty_like,
    "empty_like, three to a dict": partial(empty_like, depth=2),
    "similar, 30,000 tiny": similar,
    "similar, three to a dict": partial(similar, depth=2),
}
