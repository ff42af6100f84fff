"""Torch's functions that work on one rank: copies, buffers, comparison, a map."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.distributed import ProcessGroup, get_rank
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._state_dict_utils import CompanionMismatch
from torch.distributed.tensor import DTensor

from sdtree.compat.values import Whole, bared, shielded, wrapped
from sdtree.errors import SpecMismatch, reraise
from sdtree.ops.comparing import similar
from sdtree.ops.local import copy, empty_like, offload
from sdtree.ops.mapping import map, reject_containers
from sdtree.path import where
from sdtree.transform.window import Window
from sdtree.tree.pairing import pair
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree

StateDict = dict[str, Any]


def is_chosen(ranks_only: tuple[int, ...], pg: ProcessGroup | None = None) -> bool:
    """Return whether this rank, by its number in a group, is to have the result."""
    return not ranks_only or get_rank(pg) in ranks_only


def nothing_like(tree: Tree) -> Any:
    """Return what a rank has of a tree that is on others: an empty dict, or None."""
    return {} if isinstance(tree, dict) else None


def offload_state_dict_to_cpu(
    state_dict: StateDict, *, ranks_only: tuple[int, ...] = (), type_check: bool = True
) -> StateDict:
    """Return a copy on the CPU on the chosen ranks, ``{}`` on others.

    Sharded leaves stay sharded, and tensors that are on the CPU are copied, too.

    >>> sd.compat.offload_state_dict_to_cpu({"w": torch.ones(2), "step": 3})
    {'w': tensor([1., 1.]), 'step': 3}
    """
    tree = shielded(state_dict, type_check=type_check).checked()
    return bared(offload(tree)) if is_chosen(ranks_only) else nothing_like(state_dict)


def copy_state_dict(
    state_dict: StateDict,
    copy_state_dict: StateDict,
    non_blocking: bool = False,
    type_check: bool = True,
) -> StateDict:
    """Return the buffers of ``copy_state_dict``, written, with all other values.

    Nothing is written unless keys, shapes and dtypes fit; else ``CompanionMismatch``
    tells where. ``non_blocking`` changes nothing: what is returned has arrived.

    >>> buffers = sd.compat.create_cpu_state_dict({"w": torch.ones(2)})
    >>> sd.compat.copy_state_dict({"w": torch.ones(2)}, buffers)["w"] is buffers["w"]
    True
    """
    tree = shielded(state_dict, type_check=type_check).checked()
    return bared(_copied_into(tree, copy_state_dict))


def _copied_into(tree: Tree, buffers: Tree) -> Tree:
    tree, targets = _but_for_the_same(tree, wrapped(buffers))
    bare = _without_parameters(targets)
    try:
        made = copy(_without_parameters(tree), into=bare)
    except SpecMismatch as error:
        raise CompanionMismatch(str(error)) from error
    return made if bare is targets else map(_target, made, targets)


def _but_for_the_same(tree: Tree, targets: Tree) -> tuple[Tree, Tree]:
    """Return both with each tensor ``Whole`` that is its own buffer: it is there."""
    (here, spec), (there, other) = take(tree), take(targets)
    own = dict(zip(other.every_path, there, strict=True))
    pairs = zip(spec.every_path, here, strict=True)
    same = {id(x) for path, x in pairs if torch.is_tensor(x) and own.get(path) is x}
    if not same:
        return tree, targets
    here, there = (
        [Whole(x) if id(x) in same else x for x in leaves] for leaves in (here, there)
    )
    return spec.make(here), other.make(there)


def _target(made: Leaf, target: Leaf) -> Leaf:
    """Return what was written into, or a value that takes the place of what was."""
    return target if torch.is_tensor(target) else made


def _without_parameters(tree: Tree) -> Tree:
    """Return the tree with the tensors that Parameters are, for torch tells no more."""
    leaves, spec = take(tree)
    if torch.nn.Parameter not in {*builtins.map(type, leaves)}:
        return tree
    return spec.make(
        [x.detach() if type(x) is torch.nn.Parameter else x for x in leaves]
    )


def create_cpu_state_dict(
    state_dict: StateDict, pin_memory: bool = False, share_memory: bool = False
) -> StateDict:
    """Return unfilled buffers on the CPU of the same sizes, strides and ties.

    >>> sd.compat.create_cpu_state_dict({"w": torch.ones(2, 3)})["w"].shape
    torch.Size([2, 3])
    """
    tree = shielded(state_dict, type_check=False).checked()
    return bared(empty_like(tree, pin=pin_memory, share=share_memory))


def check_state_dict_similarity(
    state_dict: StateDict, compared_state_dict: StateDict
) -> bool:
    """Return whether two trees have the same paths, and leaves alike but for the data.

    >>> a, b = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    >>> sd.compat.check_state_dict_similarity(a, b)
    True
    """
    (here, spec), (there, other) = (
        take(_without_parameters(wrapped(tree)))
        for tree in (state_dict, compared_state_dict)
    )
    try:
        order = pair(spec, other, "the second")
    except SpecMismatch:
        return False
    return similar(here, [there[k] for k in order])


Visit = Callable[[Any, ProcessGroup | None, torch.device | None, Any], Any]
"""Takes a leaf, ``pg``, ``device`` and the leaf of ``companion_obj``."""


def iterate_state_dict(
    iter_object: Any,
    sharded_tensor_func: Visit,
    dtensor_func: Visit,
    tensor_func: Visit,
    *,
    pg: ProcessGroup | None = None,
    device: torch.device | None = None,
    cpu_offload: bool = False,
    companion_obj: Any = None,
    ranks_only: tuple[int, ...] = (),
    type_check: bool = True,
    non_blocking: bool = True,
) -> Any:
    """Return what the functions make of the tensors, each of those of its kind.

    They may write into what they are given. Then tensors are copied into those of
    ``companion_obj``, or else, if so asked, to the CPU. Ranks that are not chosen have
    ``{}``.

    >>> def double(t, *_):
    ...     return 2 * t
    >>> sd.compat.iterate_state_dict({"w": torch.ones(2)}, double, double, double)
    {'w': tensor([2., 2.])}
    """
    tree = shielded(iter_object, type_check=type_check).checked()
    functions = (sharded_tensor_func, dtensor_func, tensor_func)
    visit = partial(_visited, functions, pg, device)
    made = _visit_each(visit, tree, companion_obj)
    if not is_chosen(ranks_only, pg):
        return nothing_like(iter_object)
    if companion_obj is not None:
        made = _copied_into(made, companion_obj)
    return bared(offload(made) if cpu_offload and companion_obj is None else made)


def _visit_each(visit: Callable[..., Leaf], tree: Tree, companions: Tree) -> Tree:
    """Return what a function makes of each leaf and its companion, if there are any.

    As ``map`` does, but that the function may write into them, as torch has it.
    """
    leaves, spec = take(tree)
    others: list[Leaf] = [None] * len(leaves)
    if companions is not None:
        there, other = take(wrapped(companions))
        try:
            others = [there[k] for k in pair(spec, other, "companion_obj")]
        except SpecMismatch as error:
            raise CompanionMismatch(str(error)) from error
    made: list[Leaf] = []
    for path, leaf, companion in zip(spec.every_path, leaves, others, strict=True):
        try:
            made.append(visit(leaf, companion))
        except Exception as error:
            reraise(error, f"at {where(path)}")
    reject_containers(made, Window(spec, range(len(leaves)), made))
    return spec.make(made)


def _visited(
    functions: tuple[Visit, Visit, Visit],
    pg: ProcessGroup | None,
    device: torch.device | None,
    leaf: Leaf,
    companion: Leaf = None,
) -> Leaf:
    """Return what one of torch's three functions makes of a leaf."""
    for_sharded, for_dtensor, for_tensor = functions
    if isinstance(leaf, ShardedTensor):
        return for_sharded(leaf, pg, device, companion)
    if isinstance(leaf, DTensor):
        return for_dtensor(leaf, pg, device, companion)
    if isinstance(leaf, torch.Tensor):
        return for_tensor(leaf, pg, device, companion)
    return leaf
