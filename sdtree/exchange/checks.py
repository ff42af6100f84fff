"""What leaves and their layouts must be like to be exchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from operator import attrgetter
from typing import Final

from torch import Tensor

from sdtree.errors import LayoutError, SpecMismatch, UnknownLeaf
from sdtree.kinds.abstract import Abstract, by_form, has_no_makeup
from sdtree.kinds.hidden import hidden_in
from sdtree.layout.fitting import misplaced
from sdtree.layout.layout import Box
from sdtree.layout.schedule import layouts_of
from sdtree.path import where
from sdtree.tensors.storage import loss
from sdtree.typing import Leaf, Path
from sdtree.wire.collectives import RankGroup


def check_open(
    paths: Sequence[Path], leaves: Sequence[Leaf], forms: Sequence[Abstract]
) -> None:
    """Raise ``LayoutError`` if a leaf is over shards, and has no layout that says so.

    It would be taken for whole, and what other ranks have of it left behind.
    """
    doubtful = by_form(_may_hide, forms)
    for path, leaf, form in compress(zip(paths, leaves, forms, strict=True), doubtful):
        if hidden := hidden_in(leaf):
            name = form.kind.__name__
            raise LayoutError(
                f"{where(path)}: a {name} over a {hidden}, and nothing tells which "
                "part of it lies on which rank; tell that of its kind, with "
                f"sd.register_leaf({name}, flatten=..., unflatten=..., layout=...), or "
                "make leaves of it before that are sharded themselves"
            )


def _may_hide(form: Abstract) -> bool:
    """Return whether a leaf may be over shards of which its form does not tell."""
    return form.layout is None and not has_no_makeup(form)


_is_meta = attrgetter("is_meta")


def check_data(path: Path, ts: Sequence[Tensor]) -> None:
    """Raise ``SpecMismatch`` if there is no data in what is to be exchanged."""
    if any(map(_is_meta, ts)):
        raise SpecMismatch(
            f"{where(path)}: the leaf is meta or abstract, and has no data to give; "
            "nothing of it was moved, give a leaf with data or select others"
        )
    for t in ts:
        if lost := loss(t, t.untyped_storage().nbytes()):
            raise UnknownLeaf(f"{where(path)}: {lost}; nothing of the leaf was moved")


@lru_cache(maxsize=4096)
def fault_in_target(form: Abstract, me: int) -> str:
    """Return what is wrong with a target: also that its terms are yet to be reduced."""
    if form.layout is not None and form.layout.is_partial:
        return PARTIAL
    return fault_in(form, me)


PARTIAL: Final = (
    "the target is partial, terms of a reduction; give a layout of shards or replicas"
)
"""Why nothing can be brought into a leaf of terms."""


def check_is_leaf(path: Path, target: Leaf, form: Abstract) -> None:
    """Raise ``SpecMismatch`` if a target is its own form: nothing can be made of it."""
    if target is form and form.dtype is not None:
        raise SpecMismatch(
            f"{where(path)}: the target is an Abstract, which tells what a leaf is and "
            "is none; nothing was moved, give leaves: those of sd.empty_like(tree) "
            "will do, and of tensors those of sd.to(tree, 'meta')"
        )


def check_members(path: Path, ranks: tuple[int, ...], rank_group: RankGroup) -> None:
    """Raise ``LayoutError`` unless a group has all ranks that a leaf's layout names."""
    outside = {*ranks} - {*rank_group.ranks}
    if outside:
        raise LayoutError(
            f"{where(path)}: its layout names the ranks {sorted(outside)}, which are "
            f"not in the group of {rank_group.ranks}; give another group="
        )


@lru_cache(maxsize=4096)
def fault_in(form: Abstract, me: int) -> str:
    """Return what is wrong with the layout of a leaf, empty if nothing is.

    Its boxes must cover the tensor, and lie in the local tensors of this rank.
    """
    layout = form.layout
    if layout is None:
        return ""
    if layout.doubt:
        return layout.doubt
    try:
        for each in {id(x): x for x in (layout, *layouts_of(layout))}.values():
            each.check_coverage()
    except LayoutError as error:
        return str(error)
    if me not in layout.boxes:
        return ""
    boxes, sizes = layout.boxes[me], [t.shape for t in form.tensors]
    if layout.parts is None:
        return _unnamed(boxes, form) or misplaced(boxes, sizes, form.shape, me)
    for part, size in zip(layout.parts.layouts, sizes, strict=True):
        if fault := misplaced(part.boxes[me], [size], part.shape, me):
            return fault
    return ""


def _unnamed(boxes: Sequence[Box], form: Abstract) -> str:
    """Return which local tensor would be lost or changed, empty if none would."""
    named = {box.tensor for box in boxes} or {0}
    for k, local in enumerate(form.tensors):
        if math.prod(local.shape) and k not in named:
            return (
                f"the layout has no box in local tensor {k}, {local.shape} "
                f"{local.dtype}, which would be lost; name it in a box"
            )
        if k in named and local.dtype != form.dtype:
            return (
                f"the layout has boxes in local tensor {k}, of {local.dtype}, and the "
                f"leaf is of {form.dtype}; a sharded leaf has one dtype, so keep what "
                "has another out of the leaf, or view it as this one"
            )
    return ""
