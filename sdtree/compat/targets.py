"""What torch's functions bring to a state dict, and how it comes there.

Tensors with dimensions travel as leaves. What has none of these in it, a number, a
text, a list of such, takes the place of what stood there, whatever that was.
"""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from operator import is_
from typing import Any

import torch

from sdtree.compat.values import Whole, bared, with_wholes, wrapped
from sdtree.kinds.handler import handler_of, tensors_of
from sdtree.ops import mapping
from sdtree.ops.choosing import drop
from sdtree.ops.local import cast
from sdtree.tensors.modes import making
from sdtree.transform.transform import Transform, identity
from sdtree.tree.containers import container_of
from sdtree.tree.flattening import items, structure
from sdtree.typing import Key, Leaf, Path, Tree

StateDict = dict[str, Any]


def packed(state_dict: StateDict, targets: StateDict | None = None) -> StateDict:
    """Return a tree of tensors with dimensions, all between them made ``Whole``.

    If there are targets, also what is to take the place of something ``Whole``.
    """
    there: StateDict = {} if targets is None else targets
    every = wrapped(dict(state_dict)).items()
    # A parameter that has no memory yet is told of where other ranks hear of it.
    with torch._C.DisableTorchFunctionSubclass():
        return {key: _packed(x, there.get(key)) for key, x in every}


def _packed(x: Tree, target: Tree) -> Tree:
    if type(target) is Whole or type(x) is Whole:
        return Whole(bared(x))
    if torch.is_tensor(x):
        return x if x.dim() else Whole(x)
    container = container_of(type(x))
    if container is None:
        return Whole(x)
    keys, children, aux = container.apart(x)
    below = _children(target)
    made = [_packed(x, below.get(key)) for key, x in zip(keys, children, strict=True)]
    if all(type(child) is Whole for child in made):
        return Whole(bared(x))
    return container.together(keys, made, aux)


def _children(x: Tree) -> dict[Key, Tree]:
    container = container_of(type(x))
    if container is None:
        return {}
    keys, children, _ = container.apart(x)
    return dict(zip(keys, children, strict=True))


def in_dtypes_of(targets: Tree, source: Tree) -> Transform:
    """Return the step that gives tensors of a source the dtypes that targets have."""
    given = dict(items(source))
    if not given:
        return identity
    there = dict(items(targets))
    wanted = [_like(x, there.get(path)) for path, x in given.items()]
    if all(map(is_, wanted, given.values())):
        return identity
    return cast(like=structure(source).make(wanted))


def _like(x: Leaf, target: Leaf) -> Leaf:
    """Return a leaf, or what tells of another dtype if its target has that."""
    dtype = getattr(target, "dtype", None)
    is_other = dtype is not None and dtype != getattr(x, "dtype", dtype)
    return x.new_empty((), dtype=dtype) if is_other else x


def buffers_for(targets: Tree, device: torch.device) -> Tree:
    """Return what is written into: shards that have data, else new tensors."""
    with making():
        return mapping.map(partial(_buffer, device), targets)


def _buffer(device: torch.device, x: Leaf) -> Leaf:
    if type(x) is Whole:
        return x
    handler = handler_of(x)
    if handler.layout is None:
        x = x.detach()
        handler = handler_of(x)
    elif not any(t.is_meta for t in tensors_of(x)):
        return x
    ts, aux = handler.flatten(x)
    return handler.unflatten(aux, [torch.empty_like(t, device=device) for t in ts])


def without(missing: Container[Path], made: Tree, targets: Tree | None) -> Tree:
    """Return the tree with its targets where something is missing, or without it."""

    def is_missing(path: Path, _: Leaf) -> bool:
        return path in missing

    def chosen(path: Path, new: Leaf, old: Leaf) -> Leaf:
        return old if path in missing else new

    if targets is None:
        return drop(made, is_missing, missing_ok=True)
    return mapping.map_with_path(chosen, made, targets)


def put(local_state_dict: StateDict, made: StateDict) -> None:
    """Write into a state dict what was made for it; take out what is not there."""
    found = bared(made)
    for key in [*local_state_dict]:
        if key in found:
            local_state_dict[key] = found[key]
        else:
            del local_state_dict[key]


def placed(tree: Tree, device: torch.device) -> Tree:
    """Return the tree with tensors that are ``Whole`` where torch has them.

    Those without dimensions are on the CPU, others on a device.
    """

    def place(value: Any) -> Whole:
        if not torch.is_tensor(value):
            return Whole(value)
        return Whole(value.to(device) if value.dim() else value.cpu())

    return with_wholes(tree, place)
