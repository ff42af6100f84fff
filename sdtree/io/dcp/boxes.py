"""Sharded leaves as DCP writes them: each rank its boxes, of whatever kind they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdtree.errors import LayoutError
from sdtree.exchange.checks import fault_in
from sdtree.io.leaves.sharing import overlapping
from sdtree.kinds.abstract import Abstract, check_layouts, look_at
from sdtree.layout.layout import Box, Layout
from sdtree.path import where
from sdtree.tensors.storage import tie_groups
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf, Path


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """What this rank has of a sharded leaf, by where it lies in the whole.

    It tells torch's planner what there is to write, by the protocol that DTensor has.
    """

    form: Abstract
    layout: Layout
    boxes: Mapping[tuple[int, ...], Box]
    tensors: Sequence[Tensor]

    @property
    def stand_in(self) -> Tensor:
        """Return a tensor of the whole, without data."""
        return torch.empty(self.form.shape, dtype=self._dtype, device="meta")

    @property
    def _dtype(self) -> torch.dtype:
        return self.form.tensors[0].dtype

    def piece(self, offset: Sequence[int]) -> Tensor:
        """Return the data of the box that begins there in the whole."""
        box = self.boxes[tuple(offset)]
        t = self.tensors[box.tensor]
        for dim, (start, size) in enumerate(zip(box.local, box.size, strict=True)):
            t = t.narrow(dim, start, size)
        return t

    def __create_write_items__(self, name: str, _: Any) -> list[Any]:
        """Return what torch's writer is to write."""
        from torch.distributed.checkpoint import metadata, planner

        properties = metadata.TensorProperties(dtype=self._dtype)
        size = torch.Size(self.form.shape)
        return [
            planner.WriteItem(
                index=metadata.MetadataIndex(name, offset),
                type=planner.WriteItemType.SHARD,
                tensor_data=planner.TensorWriteData(
                    chunk=metadata.ChunkStorageMetadata(
                        torch.Size(offset), torch.Size(box.size)
                    ),
                    properties=properties,
                    size=size,
                ),
            )
            for offset, box in self.boxes.items()
        ]

    def is_same(self, other: Boxes) -> bool:
        """Return whether two leaves are the same here, in the same layout."""
        places = [
            [(t.data_ptr(), t.size(), t.stride(), t.dtype) for t in ts]
            for ts in (self.tensors, other.tensors)
        ]
        return places[0] == places[1] and self.layout == other.layout


def boxes_in(leaves: Sequence[Leaf], spec: TreeSpec) -> dict[int, Boxes]:
    """Return the sharded leaves, by their positions; raise for what is not written."""
    from sdtree.wire.collectives import RankGroup

    me = RankGroup.of().me
    forms, tensors = look_at(leaves, spec.every_path.__getitem__)
    found: dict[int, Boxes] = {}
    check_layouts(forms, partial(fault_in, me=me), spec.every_path)
    for i, form in enumerate(forms):
        layout = form.layout
        if layout is not None:
            _check_dense(spec.every_path[i], layout)
            held = layout.boxes.get(me, ())
            boxes = {box.offset: box for box in held if _counts(box, layout)}
            found[i] = Boxes(forms[i], layout, boxes, tensors[i])
    return found


def _check_dense(path: Path, layout: Layout) -> None:
    if layout.is_partial:
        raise LayoutError(
            f"{where(path)}: it is partial, terms of a reduction; gather or "
            "redistribute it first"
        )
    if layout.parts is not None:
        raise LayoutError(
            f"{where(path)}: its local tensors are parts of several wholes, for which "
            "DCP has no room; gather it first"
        )


def _counts(box: Box, layout: Layout) -> bool:
    """Return whether a box is written: none that is empty, unless all of it is."""
    return box.numel > 0 or not math.prod(layout.shape)


def aliases_among(sharded: Mapping[str, Boxes]) -> dict[str, str]:
    """Return which sharded entries are the same as another that comes before.

    Raise if some share bytes here otherwise. Those that share a storage alone, as parts
    do that a leaf was cut into, are entries of their own.
    """
    names = [name for name, each in sharded.items() for _ in each.tensors]
    ts = [t for each in sharded.values() for t in each.tensors]
    tied = {k: ts[k] for group in tie_groups(ts) for k in group}
    found: dict[str, str] = {}
    for group in overlapping(tied):
        first, *others = dict.fromkeys(names[k] for k in group)
        for name in others:
            if not sharded[first].is_same(sharded[name]):
                raise LayoutError(
                    f"{name}: it shares bytes with {first}, and is not the same, for "
                    "which DCP has no room where they are sharded; sd.copy(leaf) of "
                    "one of them has memory of its own"
                )
            found[name] = first
    return found
