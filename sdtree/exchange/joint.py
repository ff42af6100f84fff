"""What transfers have in common: ties of leaves, and what a leaf must be like."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from sdtree.errors import LayoutError, SpecMismatch, UnknownLeaf
from sdtree.kinds.abstract import Abstract
from sdtree.layout.fitting import misplaced
from sdtree.layout.layout import Box, Layout, Parts
from sdtree.layout.schedule import summary
from sdtree.path import where
from sdtree.tensors.storage import identity_of, loss, storage_of
from sdtree.typing import Leaf, Path
from sdtree.wire.collectives import RankGroup

T = TypeVar("T")


def checked_layout(path: Path, form: Abstract, me: int) -> Layout | None:
    """Return the layout of a leaf, if it has one; raise if that cannot be right.

    Its boxes must cover the tensor, and lie in the local tensors of this rank.
    """
    fault = "" if form.layout is None else _fault_in(form.layout, form, me)
    if fault:
        raise LayoutError(f"{where(path)}: {fault}")
    return form.layout


def checked_layouts(
    paths: Sequence[Path], forms: Sequence[Abstract], me: int
) -> list[Layout | None]:
    """Return the layout of each leaf, checked once for those that are alike."""
    return once(lambda i: checked_layout(paths[i], forms[i], me), forms)


def refuse_partial(paths: Sequence[Path], layouts: Sequence[Layout | None]) -> None:
    """Raise ``LayoutError`` if a target is of terms that are yet to be reduced."""
    for path, layout in zip(paths, layouts, strict=True):
        if layout is not None and layout.is_partial:
            raise LayoutError(
                f"{where(path)}: the target is partial, terms of a reduction; give a "
                "layout of shards or replicas"
            )


def check_data(path: Path, ts: Sequence[Tensor]) -> None:
    """Raise ``SpecMismatch`` if there is no data in what is to be exchanged."""
    if any(t.is_meta for t in ts):
        raise SpecMismatch(
            f"{where(path)}: the leaf is meta or abstract, and has no data to give; "
            "nothing of it was moved, give a leaf with data or select others"
        )
    for t in ts:
        if lost := loss(t, t.untyped_storage().nbytes()):
            raise UnknownLeaf(f"{where(path)}: {lost}; nothing of the leaf was moved")


def check_is_leaf(path: Path, target: Leaf, form: Abstract) -> None:
    """Raise ``SpecMismatch`` if a target is its own form: nothing can be made of it."""
    if target is form and form.dtype is not None:
        raise SpecMismatch(
            f"{where(path)}: the target is an Abstract, which tells what a leaf is and "
            "is none; nothing was moved, give leaves: of tensors, those of "
            "sd.to(tree, 'meta') will do"
        )


def check_members(path: Path, ranks: tuple[int, ...], rank_group: RankGroup) -> None:
    """Raise ``LayoutError`` unless a group has all ranks that a leaf's layout names."""
    if ranks == rank_group.ranks:
        return
    outside = {*ranks} - {*rank_group.ranks}
    if outside:
        raise LayoutError(
            f"{where(path)}: its layout names the ranks {sorted(outside)}, which are "
            f"not in the group of {rank_group.ranks}; give another group="
        )


@lru_cache(maxsize=4096)
def _fault_in(layout: Layout, form: Abstract, me: int) -> str:
    """Return what is wrong with the layout of a leaf, empty if nothing is."""
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
    named = {box.tensor for box in boxes}
    for k, local in enumerate(form.tensors):
        if named and math.prod(local.shape) and k not in named:
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


def kinds_of_wire(leaves: Sequence[Leaf], rank_group: RankGroup) -> list[str]:
    """Return from what kind of device each leaf is to travel, of those that may be."""
    first, *others = rank_group.kinds
    if not others:
        return [first] * len(leaves)
    own = (getattr(getattr(leaf, "device", None), "type", first) for leaf in leaves)
    return [kind if kind in others else first for kind in own]


def once(act: Callable[[int], T], *columns: Sequence[object]) -> list[T]:
    """Return what a function makes of each position, asked once for those alike.

    They are if every column has one and the same object there.
    """
    known: dict[tuple[int, ...], T] = {}
    found: list[T] = []
    ids = zip(*(map(id, column) for column in columns), strict=True)
    for i, key in enumerate(ids):
        if key not in known:
            known[key] = act(i)
        found.append(known[key])
    return found


def by_form(act: Callable[[Abstract], T], forms: Sequence[Abstract]) -> list[T]:
    """Return what a function makes of each form, asked once for one and the same."""
    return once(lambda i: act(forms[i]), forms)


def described(form: Abstract) -> str:
    """Return what a leaf is, as ranks compare it."""
    layout = "" if form.layout is None else f" {summary(form.layout)}"
    return f"{form.kind.__name__} {form.shape} {form.dtype}{layout}"


def told_by(form: Abstract) -> str:
    """Return what a source is, as ranks compare it: also what each has whole."""
    parts = None if form.layout is None else form.layout.parts
    return described(form) if parts is None else f"{described(form)}{alike_in(parts)}"


def alike_in(parts: Parts | None) -> str:
    """Return what ranks must have in common of a leaf over several local tensors."""
    if parts is None or not parts.alike:
        return ""
    return f" over {parts.kind.__name__} that has, besides parts, [{parts.alike}]"


@lru_cache(maxsize=4096)
def nbytes_of(form: Abstract) -> int:
    """Return the bytes of a leaf, all ranks together, each part once."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in wholes_of(form))


def wholes_of(form: Abstract) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of each local tensor that a leaf has when it is whole."""
    if form.layout is None or form.dtype is None:
        return form.forms()
    if form.layout.parts is None:
        return [(form.shape, form.dtype)]
    dtypes = [t.dtype for t in form.tensors]
    return [*zip((x.shape for x in layouts_of(form.layout)), dtypes, strict=True)]


def parts_of(
    form: Abstract, layout: Layout
) -> Iterator[tuple[Layout, tuple[int, ...], torch.dtype]]:
    """Yield how each local tensor lies in a layout, with its shape and dtype whole."""
    for part, (shape, dtype) in zip(layouts_of(layout), wholes_of(form), strict=True):
        yield part, shape, dtype


def layouts_of(layout: Layout) -> Sequence[Layout]:
    """Return the layouts of the local tensors of a leaf that are parts of a whole."""
    return [layout] if layout.parts is None else layout.parts.layouts


@lru_cache(maxsize=4096)
def is_blind(layout: Layout | None, me: int) -> bool:
    """Return whether a rank holds nothing of a leaf that others hold."""
    if layout is None:
        return False
    return not any(box.numel for box in layout.boxes.get(me, ()))


def ties_of(
    held: Mapping[int, Sequence[Tensor]], mark: Callable[[int], Hashable]
) -> list[list[int]]:
    """Return the positions whose data is one and the same, and so is their mark."""
    found = groups_of({i: storage_of(ts[0]) for i, ts in held.items()})
    keys = {i: (identity_of(held[i]), mark(i)) for group in found for i in group}
    return groups_of(keys)


def groups_of(keys: Mapping[int, Hashable]) -> list[list[int]]:
    """Return the positions that have one key, where there are several."""
    if len({*keys.values()}) == len(keys):
        return []
    found: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, key in keys.items():
        found[key].append(i)
    return [group for group in found.values() if len(group) > 1]


def leaders_of(ties: Iterable[Sequence[int]]) -> dict[int, int]:
    """Return for each member of a tie but the first that first one."""
    return {i: group[0] for group in ties for i in group[1:]}
