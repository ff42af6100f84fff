"""What a run of stages will make, before the data is touched.

Leaves pass the stages without their data; only those whose outcome depends on more
than their form, such as ties, pass with it, one group at a time. What comes out is laid
over storage that is reserved and never written: it takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from sdtree.io.leaves.sharing import hollow_storages, remade
from sdtree.kinds.handler import (
    handler_of,
    kind_of,
    stands_for_another,
    tensors_of,
)
from sdtree.tensors.modes import making
from sdtree.tensors.storage import is_lazy
from sdtree.transform.run import Run, stretches_of
from sdtree.transform.stages import TreeStage, touches_no_data
from sdtree.transform.transform import Transform
from sdtree.transform.window import SLICE_BYTES, cut
from sdtree.typing import Leaf, Tree


def foretold(tree: Tree, transform: Transform) -> tuple[Run, Tree | None]:
    """Return the run of a transform, and what it will make if that can be told."""
    stretches = stretches_of(transform.stages)
    while stretches[1:] and all(map(touches_no_data, stretches[0])):
        first, *stretches = stretches
        tree = Transform(tuple(first))(tree)
    run = Run.of(tree, stretches[0])
    if stretches[1:] or any(isinstance(stage, TreeStage) for stage in stretches[0]):
        return run, None
    with making():
        return run, forecast(run)


def forecast(run: Run) -> Tree | None:
    """Return the tree that a run will make, without data, None if only it can tell.

    Its leaves have the forms, kinds, values and ties of those to come. Of a sparse
    tensor data is part of the form: no file is read that has indices out of range. And
    torch writes no quantized tensor without its data.
    """
    if not run.is_foreseeable:
        return None
    groups = _cut(run, run.ids, 0)
    formal = [i for i, *others in groups if not others and _is_formal(run.source[i])]
    made = dict(zip(formal, _made_of(run, formal, _without_data), strict=True))
    rest = [i for i in run.ids if i not in made]
    for group in _cut(run, rest, SLICE_BYTES):
        made.update(zip(group, _made_of(run, group, _itself), strict=True))
    if any(map(_has_no_outline, made.values())):
        return None
    return run.spec.make(made[i] for i in run.ids)


def _cut(run: Run, ids: Sequence[int], limit: int) -> Iterator[list[int]]:
    paths = run.source_spec.paths()
    return cut(ids, run.source, paths.__getitem__, limit)


def _made_of(
    run: Run, ids: Sequence[int], stand_in: Callable[[Leaf], Leaf]
) -> list[Leaf]:
    """Return what the run makes of leaves, without data."""
    _, leaves = run.act(ids, [stand_in(run.source[i]) for i in ids])
    return remade(leaves, hollow_storages)


def _itself(leaf: Leaf) -> Leaf:
    return leaf


def _without_data(leaf: Leaf) -> Leaf:
    if stands_for_another(leaf):
        return tensors_of(leaf)[0]
    (t,), aux = handler_of(leaf).flatten(leaf)
    return handler_of(leaf).unflatten(aux, [torch.empty_like(t, device="meta")])


def _has_no_outline(leaf: Leaf) -> bool:
    if not isinstance(leaf, Tensor):
        return False
    return leaf.layout is not torch.strided or leaf.is_quantized


def _is_formal(leaf: Leaf) -> bool:
    """Return whether the form of a leaf tells what becomes of it.

    One that is yet to be made stands alone for a dense tensor, or with its twins.
    """
    if stands_for_another(leaf):
        return kind_of(leaf) is Tensor and len(handler_of(leaf).flatten(leaf)[0]) == 1
    return (
        type(leaf) in (Tensor, Parameter)
        and leaf.layout is torch.strided
        and not (leaf.is_quantized or leaf.is_nested or is_lazy(leaf))
        and leaf.is_contiguous()
    )
