"""Strategies for layouts, as data, of leaves that ranks make alike.

What is drawn is data and goes to other processes. There each rank cuts its part out of
the whole by plain chunking, so that nothing is taken from the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from sdtree.kinds.shards import Shards, this_rank
from sdtree.layout.layout import Box, Layout, Region


@dataclass(frozen=True, slots=True)
class Meshed:
    """The layout of a DTensor: ``ranks`` stand in a ``mesh``, row by row.

    ``splits`` are (axis of the mesh, dimension of the tensor), in the order in which
    they are made; ``terms`` are (axis, reduction) where ranks hold terms.
    >>> rows = Meshed((5,), (2,), (0, 1), ((0, 0),))
    >>> rows.placements, rows.local(torch.arange(5), 1)
    ((Shard(dim=0),), tensor([3, 4]))
    """

    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    ranks: tuple[int, ...]
    splits: tuple[tuple[int, int], ...] = ()
    terms: tuple[tuple[int, str], ...] = ()

    @property
    def placements(self) -> tuple[Any, ...]:
        """Return the placements; a split made after one of a later axis is strided."""
        from torch.distributed.tensor import Partial, Replicate, Shard
        from torch.distributed.tensor.placement_types import _StridedShard

        found: list[Any] = [Replicate() for _ in self.mesh]
        for k, (axis, dim) in enumerate(self.splits):
            before = [a for a, d in self.splits[:k] if d == dim and a > axis]
            factor = math.prod(self.mesh[a] for a in before)
            strided = _StridedShard(dim, split_factor=factor)
            found[axis] = Shard(dim) if factor == 1 else strided
        for axis, reduction in self.terms:
            found[axis] = Partial(reduction)
        return tuple(found)

    def local(self, full: Tensor, rank: int) -> Tensor:
        """Return what a rank holds of a tensor, by chunks; off the mesh nothing.

        The terms of a reduction are multiples of it.
        """
        if rank not in self.ranks:
            return full.new_empty(0)
        at = list(product(*map(range, self.mesh)))[self.ranks.index(rank)]
        for axis, dim in self.splits:
            full = _chunk(full, self.mesh[axis], at[axis], dim)
        for axis, _ in self.terms:
            full = full * (1 + at[axis])
        return full.clone(memory_format=torch.contiguous_format)

    def layout(self) -> Layout:
        """Return which boxes each rank holds, found by cutting the places themselves.

        >>> rows = Meshed((5,), (2,), (0, 1), ((0, 0),))
        >>> [box.size for box in rows.layout().boxes[1]]
        [(2,)]
        """
        places = torch.arange(math.prod(self.shape)).view(self.shape)
        plain = replace(self, terms=())
        held = {r: (plain.local(places, r),) for r in self.ranks}
        boxes = {r: boxes_in(ts, self.shape) for r, ts in held.items()}
        return Layout(self.shape, boxes, is_partial=bool(self.terms))

    def distribute(self, full: Tensor) -> Tensor:
        """Return this rank's DTensor. The ranks make new meshes together.

        >>> import torch.distributed as dist
        >>> dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
        >>> Meshed((3,), (1,), (0,), ((0, 0),)).distribute(torch.ones(3)).placements
        (Shard(dim=0),)
        >>> dist.destroy_process_group()
        """
        import torch.distributed as dist
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

        mesh = _mesh(self.mesh, self.ranks, dist.group.WORLD)
        meta = TensorMeta(full.shape, full.stride(), full.dtype)
        found: Any = DTensorSpec(mesh, self.placements, tensor_meta=meta)
        local: Any = self.local(full, dist.get_rank())
        return DTensor(local, found, requires_grad=False)


def _chunk(t: Tensor, count: int, index: int, dim: int) -> Tensor:
    """Return one of ``count`` chunks, empty where torch makes fewer."""
    found = t.chunk(count, dim)
    return found[index] if index < len(found) else t.narrow(dim, 0, 0)


@lru_cache(maxsize=256)
def _mesh(sizes: tuple[int, ...], ranks: tuple[int, ...], world: Any) -> Any:
    """Return the mesh of some ranks of the world, always the same."""
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh("cpu", torch.tensor(ranks).view(sizes))


def boxes_in(places: Sequence[Tensor], shape: tuple[int, ...]) -> tuple[Box, ...]:
    """Return the boxes of local tensors that hold the places of their elements.

    Each is a product of what it holds of each dimension, in stretches.

    >>> boxes_in([torch.tensor([0, 1, 3])], (4,))[1]
    Box(tensor=0, local=(2,), offset=(3,), size=(1,))
    """
    found: list[Box] = []
    for k, t in enumerate(places):
        if not t.numel():
            continue
        held = [_stretches(t, dim, shape) for dim in range(len(shape))]
        for parts in product(*held):
            local, offset, size = zip(*parts, strict=True) if parts else ((), (), ())
            found.append(Box(k, local, offset, size))
    return tuple(found)


def _stretches(
    t: Tensor, dim: int, shape: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """Return the stretches along a dimension: where each begins, here and there."""
    step = math.prod(shape[dim + 1 :])
    column = t.movedim(dim, 0).flatten(1)[:, 0] if t.ndim > 1 else t
    found: list[tuple[int, int, int]] = []
    for here, place in enumerate(column.tolist()):
        there = place // step % shape[dim]
        start, offset, size = found[-1] if found else (0, -1, 0)
        if there == offset + size:
            found[-1] = start, offset, size + 1
        else:
            found.append((here, there, 1))
    return found


@dataclass(frozen=True, slots=True)
class Blocked:
    """The layout of a ShardedTensor: regions, and the rank that has each.

    >>> Blocked((4,), ((((0,), (3,)), 0), (((3,), (1,)), 1))).shape
    (4,)
    """

    shape: tuple[int, ...]
    blocks: tuple[tuple[Region, int], ...]

    def layout(self, world: int = 4) -> Layout:
        """Return which boxes each of so many ranks holds, each in its own tensor.

        >>> Blocked((3,), ((((0,), (3,)), 1),)).layout(2).boxes[1]
        (Box(tensor=0, local=(0,), offset=(0,), size=(3,)),)
        """
        held: dict[int, list[Box]] = {rank: [] for rank in range(world)}
        for (offset, size), rank in self.blocks:
            box = Box(len(held[rank]), (0,) * len(size), offset, size)
            held[rank].append(box)
        return Layout(self.shape, {rank: tuple(found) for rank, found in held.items()})

    def distribute(self, full: Tensor) -> Tensor:
        """Return this rank's ShardedTensor over all ranks.

        >>> import torch.distributed as dist
        >>> dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
        >>> Blocked((3,), ((((0,), (3,)), 0),)).distribute(torch.ones(3)).size()
        torch.Size([3])
        >>> dist.destroy_process_group()
        """
        import torch.distributed as dist
        from torch.distributed._shard.metadata import ShardMetadata
        from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
        from torch.distributed._shard.sharded_tensor.metadata import (
            ShardedTensorMetadata,
            TensorProperties,
        )

        shards = [
            ShardMetadata(list(offset), list(size), f"rank:{rank}/cpu")
            for (offset, size), rank in self.blocks
        ]
        local = [
            Shard(full[_slices(region)].clone(), shard)
            for (region, rank), shard in zip(self.blocks, shards, strict=True)
            if rank == dist.get_rank()
        ]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            local,
            ShardedTensorMetadata(
                shards, torch.Size(self.shape), TensorProperties(dtype=full.dtype)
            ),
        )


def _slices(region: Region) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(*region, strict=True))


@dataclass(frozen=True, slots=True)
class Boxed:
    """The layout of ``Shards`` that lie on some of so many ranks as another leaf does.

    >>> rows = Boxed(Meshed((5,), (2,), (0, 1), ((0, 0),)))
    >>> rows.shape, rows.ranks, rows.layout().boxes[1][0].offset
    ((5,), (0, 1), (3,))
    """

    way: Meshed | Blocked
    world: int = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the whole."""
        return self.way.shape

    @property
    def ranks(self) -> tuple[int, ...]:
        """Return the ranks that hold a part, or an empty one."""
        return self.layout().ranks

    def layout(self) -> Layout:
        """Return which boxes each rank holds."""
        if isinstance(self.way, Meshed):
            return self.way.layout()
        return self.way.layout(self.world)

    def distribute(self, full: Tensor) -> Shards:
        """Return this rank's ``Shards``.

        >>> Boxed(Meshed((3,), (1,), (0,))).distribute(torch.ones(3)).shape
        torch.Size([3])
        """
        me = this_rank()
        if isinstance(self.way, Meshed):
            return Shards(self.way.local(full, me), self.layout())
        mine = [region for region, rank in self.way.blocks if rank == me]
        held = [full[_slices(region)].clone() for region in mine]
        return Shards(held or [full.new_empty(0)], self.layout())


# -- strategies --------------------------------------------------------------------


@st.composite
def layouts(
    draw: DrawFn,
    world: int = 4,
    *,
    shape: tuple[int, ...] | None = None,
    ranks: Sequence[int] | None = None,
    partial: Sequence[str] = (),
    max_side: int = 9,
) -> Meshed:
    """Return layouts of DTensors over ``ranks``, or some of a world.

    Meshes of one to three dimensions, with sides of one, in other orders of ranks;
    shards even, uneven, empty, of one dimension by several axes in any order, as FSDP
    makes them over tensor parallelism; replicas; terms, by the reductions ``partial``.

    >>> import hypothesis
    >>> hypothesis.find(layouts(2), lambda x: x.mesh == (2,) and x.splits).ranks
    (0, 1)
    """
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(0, max_side), max_size=3)))
    if ranks is None:
        count = draw(st.integers(1, world))
        first = draw(st.sampled_from([0, world - count]))
        ranks = range(first, first + count)
    mesh = draw(st.sampled_from(meshes(len(ranks))))
    axes = range(len(mesh))
    ways: list[Any] = [None, *range(len(shape)), *range(len(shape)), *partial]
    chosen = [draw(st.sampled_from(ways)) for _ in axes]
    order = draw(st.sampled_from([axes, axes, axes[::-1]]) | st.permutations(axes))
    return Meshed(
        shape,
        mesh,
        tuple(draw(st.sampled_from([ranks, ranks, _across(mesh, ranks)]))),
        tuple((k, chosen[k]) for k in order if isinstance(chosen[k], int)),
        tuple((k, way) for k, way in enumerate(chosen) if isinstance(way, str)),
    )


@lru_cache
def meshes(count: int) -> list[tuple[int, ...]]:
    """Return the sizes of meshes of so many ranks, of one to three dimensions.

    >>> meshes(2)
    [(2,), (1, 2), (2, 1)]
    """
    sides = range(1, count + 1)
    few = range(1, 3 if count > 1 else 2)
    found = [sizes for n in few for sizes in product(sides, repeat=n)]
    found += [sizes for sizes in product(sides, repeat=3) if sizes.count(1) < 2]
    return [sizes for sizes in found if math.prod(sizes) == count]


def _across(mesh: tuple[int, ...], ranks: Sequence[int]) -> Sequence[int]:
    """Return ranks that stand column by column."""
    order = torch.arange(len(ranks)).view(mesh[::-1])
    return [ranks[i] for i in order.permute(*range(len(mesh))[::-1]).flatten().tolist()]


@st.composite
def blocks(
    draw: DrawFn, world: int = 4, *, shape: tuple[int, ...] | None = None
) -> Blocked:
    """Return layouts of ShardedTensors: uneven blocks, several, one or none a rank.

    >>> import hypothesis
    >>> hypothesis.find(blocks(), lambda x: x.shape == (2,) and x.blocks[1:]).shape
    (2,)
    """
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=2)))
    regions = draw(regions_of(shape, 5))
    return Blocked(shape, tuple((r, draw(st.integers(0, world - 1))) for r in regions))


@st.composite
def regions_of(draw: DrawFn, shape: tuple[int, ...], most: int) -> list[Region]:
    """Return at most so many regions that a tensor is cut into, in any order.

    >>> import hypothesis
    >>> sorted(hypothesis.find(regions_of((2,), 2), lambda found: len(found) == 2))
    [((0,), (1,)), ((1,), (1,))]
    """
    found: list[Region] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, most - 1)) if shape else 0):
        offset, size = found.pop(draw(st.integers(0, len(found) - 1)))
        dim = draw(st.integers(0, len(shape) - 1))
        low = draw(st.integers(1, max(1, size[dim] - 1)))
        high = max(0, size[dim] - low)
        found.append((offset, _put(size, dim, min(low, size[dim]))))
        if high:
            start = _put(offset, dim, offset[dim] + low)
            found.append((start, _put(size, dim, high)))
    return draw(st.permutations(found))


def _put(where: tuple[int, ...], dim: int, value: int) -> tuple[int, ...]:
    return (*where[:dim], value, *where[dim + 1 :])
