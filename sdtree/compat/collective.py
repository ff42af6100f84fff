"""Torch's functions by which ranks exchange leaves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.distributed import ProcessGroup, get_global_rank

from sdtree.compat.local import StateDict, is_chosen, nothing_like
from sdtree.compat.sets import at, on_each_set
from sdtree.compat.targets import (
    buffers_for,
    in_dtypes_of,
    packed,
    placed,
    put,
    without,
)
from sdtree.compat.values import Whole, bared, shielded
from sdtree.errors import Mismatch, SpecMismatch
from sdtree.exchange.exchange import heard
from sdtree.exchange.source import LeafMetadata, difference
from sdtree.kinds.abstract import Abstract
from sdtree.ops.collective import broadcast, distribute, gather
from sdtree.ops.local import offload, to, wait
from sdtree.ops.mapping import map_with_path, whole
from sdtree.transform.transform import Transform, identity
from sdtree.tree.flattening import items, leaves, structure
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire.collectives import RankGroup


def gather_state_dict(
    state_dict: StateDict,
    *,
    pg: ProcessGroup | None = None,
    device: torch.device | None = None,
    cpu_offload: bool = False,
    ranks_only: tuple[int, ...] = (),
    type_check: bool = True,
) -> StateDict:
    """Return the tree with sharded leaves whole on the chosen ranks, ``{}`` on others.

    The ranks that a leaf lies on exchange it, whatever ``pg`` is, which only says which
    ranks the numbers mean. It ends on the device of its shards, whatever ``device`` is.

    >>> sd.compat.gather_state_dict({"w": torch.ones(2), "step": 3})
    {'w': tensor([1., 1.]), 'step': 3}
    """
    tree, fault = shielded(state_dict, type_check=type_check)
    chosen, is_here = _in_the_world(ranks_only, pg), is_chosen(ranks_only, pg)
    check, last = _raising(fault), offload() if cpu_offload else identity

    def act(part: Tree, ranks: Sequence[int], group: Any) -> Tree:
        receivers = [rank for rank in chosen if rank in ranks]
        if not (ranks or is_here) or (ranks and chosen and not receivers):
            return check(part)
        if not ranks:
            return (check | wait() | last)(part)
        return (check | gather(ranks=receivers or None, group=group) | last)(part)

    made = on_each_set(tree, act)
    return bared(made) if is_here else nothing_like(state_dict)


def _raising(fault: Exception | None) -> Transform:
    """Return the step that raises an error where other ranks hear of it, if any."""

    def check(tree: Tree) -> Tree:
        if fault is not None:
            raise fault
        return tree

    return identity if fault is None else whole(check)


def _in_the_world(ranks: Iterable[int], pg: ProcessGroup | None) -> list[int]:
    """Return the numbers that ranks of a group have in the world."""
    return [*ranks] if pg is None else [get_global_rank(pg, rank) for rank in ranks]


def all_gather_sharded_tensor(
    sharded_tensor: Any,
    pg: ProcessGroup | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return the whole of a ShardedTensor, on ``device`` if one is given. Collective.

    >>> sd.compat.all_gather_sharded_tensor(torch.ones(2))
    tensor([1., 1.])
    """
    found = gather_state_dict({"": sharded_tensor})[""]
    return found if device is None else found.to(device)


# -- from one rank to all ----------------------------------------------------------


def broadcast_state_dict(
    full_state_dict: StateDict,
    local_state_dict: StateDict,
    device: torch.device,
    pg: ProcessGroup | None = None,
    strict: bool = False,
    cpu_offload: bool = False,
) -> None:
    """Write what rank 0 has into ``local_state_dict``, its own parts on each rank.

    Shards are written where they lie; other tensors are replaced by new ones on
    ``device``, of the same shape and dtype, and what has no dimensions by what rank 0
    has. With ``strict`` names that rank 0 lacks are taken out, and those that no rank
    has a place for raise ``SpecMismatch`` on all, before data moves. Collective.

    >>> local = {"w": torch.zeros(2), "step": 0}
    >>> sd.compat.broadcast_state_dict({"w": torch.ones(2), "step": 3}, local, "cpu")
    >>> local
    {'w': tensor([1., 1.]), 'step': 3}
    """
    place = torch.device("cpu" if cpu_offload else device)
    is_first = RankGroup.of().me == 0
    with heard(pg, local_state_dict):
        targets = packed(local_state_dict)
        source = packed(full_state_dict, targets) if is_first else {}
        send = in_dtypes_of(targets, source) | broadcast(
            into=buffers_for(targets, place),
            strict=False,
            on_mismatch=_refuse_unexpected if strict else None,
            report=True,
            group=pg,
        )
    made, misfit = send(source)
    made = placed(to(made, place) if cpu_offload else made, place)
    if misfit.missing:
        made = without({*misfit.missing}, made, None if strict else targets)
    put(local_state_dict, made)


def _refuse_unexpected(misfit: Mismatch) -> None:
    if misfit.unexpected:
        told = Mismatch((), misfit.unexpected, misfit.mismatched)
        raise SpecMismatch(
            f"broadcast_state_dict: {told}; nothing was moved, and strict=False passes "
            "over what has no place"
        )


def broadcast_tensors(
    full_state_dict: StateDict,
    local_state_dict: StateDict,
    keys: list[str],
    device: torch.device,
    pg: ProcessGroup | None = None,
) -> None:
    """Write the tensors of rank 0 at some keys into ``local_state_dict``. Collective.

    >>> local = {"v": torch.zeros(1), "w": torch.zeros(2)}
    >>> sd.compat.broadcast_tensors({"w": torch.ones(2)}, local, ["w"], "cpu")
    >>> local["w"]
    tensor([1., 1.])
    """
    is_first = RankGroup.of().me == 0
    full = {key: full_state_dict[key] for key in keys} if is_first else {}
    part = {k: local_state_dict[k] for k in keys if local_state_dict.get(k) is not None}
    broadcast_state_dict(full, part, device, pg)
    local_state_dict.update(part)


# -- each rank has the whole -------------------------------------------------------


def distribute_state_dict(
    full_state_dict: StateDict,
    local_state_dict: StateDict,
    device: torch.device,
    pg: ProcessGroup | None = None,
) -> None:
    """Write into ``local_state_dict`` the parts of what each rank has whole.

    There are new DTensors like those that stand there; other tensors are the very ones,
    on ``device``. What has no dimensions is written in any case. The ranks that a leaf
    is to lie on agree before.

    >>> local = {"w": torch.zeros(2)}
    >>> sd.compat.distribute_state_dict({"w": torch.ones(2), "step": 3}, local, "cpu")
    >>> local
    {'w': tensor([1., 1.]), 'step': 3}
    """
    targets, place = packed(local_state_dict), torch.device(device)
    source = packed(full_state_dict, targets)
    more = {k: x for k, x in source.items() if type(x) is Whole and k not in targets}
    given = dict(items(source))

    def act(like: Tree, ranks: Sequence[int], group: Any) -> Tree:
        spec = structure(like)
        part = spec.make([given[path] for path in spec.every_path])
        if not ranks:
            return to(_fitting(in_dtypes_of(like, part)(part), like), place)
        with heard(group, part):
            step = in_dtypes_of(like, part) | distribute(like=like, group=group)
        return step(part)

    made = dict(items(placed(on_each_set(at(targets, given), act), place)))
    put(local_state_dict, map_with_path(made.get, targets))
    local_state_dict.update(bared(placed(more, place)))


def _fitting(tree: Tree, like: Tree) -> Tree:
    """Return the tree; raise ``SpecMismatch`` if leaves are unlike those of another."""
    found: list[tuple[Path, str]] = []
    for (path, leaf), target in zip(items(tree), leaves(like), strict=True):
        if _form(leaf) != _form(target):
            given = LeafMetadata.of(Abstract.of(leaf))
            found.append((path, difference(given, Abstract.of(target))))
    if found:
        told = Mismatch(mismatched=tuple(found))
        raise SpecMismatch(f"distribute_state_dict: {told}; nothing was written")
    return tree


def _form(leaf: Leaf) -> tuple[object, ...] | None:
    """Return shape and dtype of a tensor; the very leaf takes the place of a target."""
    return (leaf.shape, leaf.dtype) if torch.is_tensor(leaf) else None


def distribute_tensors(
    local_state_dict: StateDict,
    keys: list[str],
    device: torch.device,
    pg: ProcessGroup | None = None,
) -> None:
    """Write into shards the parts of the wholes that stand beside them.

    Some keys have a tuple of a sharded leaf and the whole, and have that leaf then, or
    for one without data a new one on ``device``.

    >>> local = {"w": torch.ones(2)}
    >>> sd.compat.distribute_tensors(local, ["w"], "cpu")
    >>> local
    {'w': tensor([1., 1.])}
    """
    pairs = {k: x for k in keys if isinstance(x := local_state_dict.get(k), tuple)}

    def act(targets: StateDict, ranks: Sequence[int], group: Any) -> Tree:
        source = {key: pairs[key][1] for key in targets}
        with heard(group, targets):
            into = buffers_for(targets, torch.device(device))
            step = in_dtypes_of(targets, source) | distribute(into=into, group=group)
        return step(source)

    local_state_dict.update(on_each_set({k: x[0] for k, x in pairs.items()}, act))
