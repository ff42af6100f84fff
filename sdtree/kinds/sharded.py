"""ShardedTensors: over the tensors of their local shards, with the metadata of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata

from sdtree.kinds.handler import Handler, add_handler
from sdtree.layout.layout import Box, Layout
from sdtree.typing import Aux


@dataclass(frozen=True, slots=True)
class Region:
    """One shard of all: where it lies in the tensor, and which rank has it."""

    offset: tuple[int, ...]
    size: tuple[int, ...]
    rank: int


@dataclass(frozen=True, slots=True)
class Sharding:
    """What a ShardedTensor is beside its local tensors; marks do not compare.

    ``local`` are the places of this rank's shards among ``regions``, in the order in
    which it has them; its local tensors are in that of the regions, which other ranks
    know. Where there is none, an empty tensor stands in, to carry dtype and device.
    """

    shape: tuple[int, ...]
    regions: tuple[Region, ...]
    local: tuple[int, ...]
    devices: tuple[str, ...] = field(compare=False)
    properties: Any = field(compare=False)
    group: Any = field(compare=False)
    spec: Any = field(compare=False)


def _flatten(x: Any) -> tuple[Sequence[Tensor], Aux]:
    metadata = x.metadata()
    shards = metadata.shards_metadata
    regions = tuple(map(_region, shards))
    found: dict[Region, list[int]] = {}
    for k in reversed(range(len(regions))):
        found.setdefault(regions[k], []).append(k)  # empty ones may lie in one place
    local = x.local_shards()
    sharding = Sharding(
        tuple(metadata.size),
        regions,
        tuple(found[_region(shard.metadata)].pop() for shard in local),
        _devices(shards),
        metadata.tensor_properties,
        x._process_group,
        x.sharding_spec(),
    )
    if not local:
        dtype, device = metadata.tensor_properties.dtype, sharding.devices[0]
        return (torch.empty(0, dtype=dtype, device=device),), sharding
    held = dict(zip(sharding.local, local, strict=True))
    return [held[k].tensor.detach() for k in sorted(held)], sharding


def _region(shard: ShardMetadata) -> Region:
    placement: Any = shard.placement
    sizes = tuple(shard.shard_offsets), tuple(shard.shard_sizes)
    return Region(*sizes, placement.rank())


def _unflatten(aux: Sharding, ts: Sequence[Tensor]) -> Any:
    """Return the ShardedTensor over these tensors, of their device and dtype."""
    may_grad = ts[0].is_floating_point() or ts[0].is_complex()
    grad = aux.properties.requires_grad and may_grad
    properties = replace(
        aux.properties,
        dtype=ts[0].dtype,
        requires_grad=grad,
        pin_memory=ts[0].is_pinned(),
    )
    shards = [_metadata(*each, aux, ts[0]) for each in enumerate(aux.regions)]
    held = dict(zip(sorted(aux.local), ts, strict=False))
    local = [Shard(held[k].detach().requires_grad_(grad), shards[k]) for k in aux.local]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        local,
        ShardedTensorMetadata(shards, torch.Size(aux.shape), properties),
        process_group=aux.group,
        sharding_spec=aux.spec if _devices(shards) == aux.devices else None,
    )


def _devices(shards: Sequence[ShardMetadata]) -> tuple[str, ...]:
    placements: Sequence[Any] = [shard.placement for shard in shards]
    return tuple(str(placement.device()) for placement in placements)


def _metadata(k: int, region: Region, aux: Sharding, like: Tensor) -> ShardMetadata:
    """Return the metadata of a shard; where it lies moves as the local ones did."""
    here = aux.devices[aux.local[0] if aux.local else 0]
    device = aux.devices[k] if here == str(like.device) else str(like.device)
    placement = f"rank:{region.rank}/{device}"
    return ShardMetadata(list(region.offset), list(region.size), placement)


def _layout(x: Any) -> Layout:
    """Return the shards of each rank as boxes, one for each of its local tensors.

    A rank of the process group that has none is one of the leaf's ranks, too.
    """
    members = dist.get_process_group_ranks(x._process_group)
    boxes: dict[int, list[Box]] = {rank: [] for rank in members}
    for shard in x.metadata().shards_metadata:
        region = _region(shard)
        held = boxes.setdefault(region.rank, [])
        start = (0,) * len(region.offset)
        held.append(Box(len(held), start, region.offset, region.size))
    return Layout(tuple(x.metadata().size), {r: tuple(b) for r, b in boxes.items()})


def _dtype(x: Any) -> torch.dtype:
    return x.dtype


add_handler(Handler(ShardedTensor, _flatten, _unflatten, _layout, dtype=_dtype))
