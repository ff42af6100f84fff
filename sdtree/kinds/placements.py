"""Which placements on a mesh say a layout, if any do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from sdtree.errors import LayoutError
from sdtree.kinds.dtensor import doubt_on
from sdtree.layout.layout import Box, Layout, Split, mesh_boxes, mesh_sizes
from sdtree.tensors.storage import dense_strides

Splits = tuple[Split, ...]


def dtensor_of(tensors: Sequence[Tensor], layout: Layout, mesh: DeviceMesh) -> DTensor:
    """Return the DTensor over the one local tensor of this rank, in a layout.

    Raise ``LayoutError`` if no placements on the mesh say it.
    """
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"to_dtensor takes a DeviceMesh, not a {type(mesh).__name__}")
    sizes = tuple(mesh.mesh.shape)
    splits = _splits_of(layout, mesh)
    local = tensors[0]  # what others there are hold nothing
    coordinate = mesh.get_coordinate()
    if coordinate is not None and not local.numel():
        held = mesh_sizes(layout.shape, sizes, splits, tuple(coordinate))
        local = local.new_empty(held)
    meta = TensorMeta(
        torch.Size(layout.shape), dense_strides(layout.shape), local.dtype
    )
    spec: Any = DTensorSpec(mesh, _placements(splits, sizes), tensor_meta=meta)
    new: Any = DTensor(local, spec, requires_grad=False)
    return new


def _splits_of(layout: Layout, mesh: DeviceMesh) -> Splits:
    """Return the splits, in the order in which they are made, that come to a layout."""
    sizes, ranks = tuple(mesh.mesh.shape), mesh.mesh.flatten().tolist()
    at = dict(zip(ranks, product(*map(range, sizes)), strict=True))
    if at.keys() != layout.boxes.keys():
        raise LayoutError(
            f"the layout is of the ranks {layout.ranks}, and the mesh has "
            f"{tuple(sorted(at))}; give a mesh of the very ranks"
        )
    for splits in _ways(len(layout.shape), len(sizes)):
        if _says(splits, layout, sizes, at):
            if doubt := doubt_on(mesh.mesh, {split.axis for split in splits}):
                raise LayoutError(f"as a DTensor {doubt}")
            return splits
    raise LayoutError(
        f"no placements on a mesh of {sizes} say the layout {layout}; a DTensor has on "
        "each rank one local tensor, of chunks as torch cuts them: "
        "sd.redistribute(tree, like=...) brings it to the layout of one"
    )


def _ways(dims: int, axes: int) -> Iterator[Splits]:
    """Yield the splits that there may be, those first that are the fewest."""
    chosen = product([None, *range(dims)], repeat=axes)
    for ways in sorted(chosen, key=lambda way: axes - way.count(None)):
        splits = [Split(axis, d) for axis, d in enumerate(ways) if d is not None]
        yield from permutations(splits)


def _says(
    splits: Splits,
    layout: Layout,
    sizes: tuple[int, ...],
    at: Mapping[int, tuple[int, ...]],
) -> bool:
    """Return whether splits come to the boxes that each rank holds."""
    return all(
        _real(mesh_boxes(layout.shape, sizes, splits, place))
        == _real(layout.boxes[rank])
        for rank, place in at.items()
    )


def _real(boxes: Sequence[Box]) -> set[Box]:
    return {box for box in boxes if box.numel}


def _placements(splits: Splits, sizes: Sequence[int]) -> tuple[Any, ...]:
    """Return the placements; a split made after one of a later axis is strided."""
    found: list[Any] = [Replicate() for _ in sizes]
    for k, (axis, dim, _) in enumerate(splits):
        before = [a for a, d, _ in splits[:k] if d == dim and a > axis]
        factor = math.prod(sizes[a] for a in before)
        strided = _StridedShard(dim, split_factor=factor)
        found[axis] = Shard(dim) if factor == 1 else strided
    return tuple(found)
