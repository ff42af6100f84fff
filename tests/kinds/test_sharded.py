"""ShardedTensors under the transforms that do not communicate."""

import pytest
import torch
from shards import fake
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import (
    ShardedTensorMetadata,
    TensorProperties,
)

import sdtree as sd
from sdtree.kinds.handler import handler_of
from sdtree.testing import check_one_leaf

ROWS = ((0, 1), (1, 3), (4, 0), (4, 2))
"""Uneven rows over four ranks: first row and count, as (1, 3, 0, 2)."""


@pytest.fixture(params=range(4))
def rank(request):
    """Each rank of four in its turn, over a group that moves nothing."""
    with fake(4, request.param):
        yield request.param


def sharded(rank, regions, size, dtype=torch.float32):
    """Return this rank's part of a tensor of counting numbers."""
    full = torch.arange(size[0] * size[1]).to(dtype).view(size)
    metadata = [
        ShardMetadata(list(offset), list(sizes), f"rank:{owner}/cpu")
        for offset, sizes, owner in regions
    ]
    local = [
        Shard(full[r : r + m, c : c + n].contiguous(), metadata[k])
        for k, ((r, c), (m, n), owner) in enumerate(regions)
        if owner == rank
    ]
    everything = ShardedTensorMetadata(
        metadata, torch.Size(size), TensorProperties(dtype=dtype)
    )
    return ShardedTensor._init_from_local_shards_and_global_metadata(local, everything)


def by_rows(rank, **options):
    regions = [((r, 0), (n, 3), owner) for owner, (r, n) in enumerate(ROWS) if n]
    return sharded(rank, regions, (6, 3), **options)


def by_columns(rank):
    """Four blocks, two of them on rank 1 and none on rank 3."""
    owners = (0, 1, 1, 2)
    regions = [((0, 2 * k), (4, 2), owner) for k, owner in enumerate(owners)]
    return sharded(rank, regions, (4, 8))


@pytest.mark.parametrize("make", [by_rows, by_columns])
def test_they_keep_kind_shards_and_global_shape(rank, make):
    """The leaf law and every local transform, with one shard, several or none."""
    x = make(rank)
    check_one_leaf(x)
    tree = {"w": x, "step": 1}
    for f in (sd.copy(), sd.offload(), sd.empty_like(), sd.cast(dtype=torch.half)):
        made = f(tree)["w"]
        assert type(made) is ShardedTensor
        assert made.size() == x.size()
        assert made.metadata().shards_metadata == x.metadata().shards_metadata
        assert len(made.local_shards()) == len(x.local_shards())
    low = sd.cast(tree, dtype=torch.half)["w"]
    assert low.dtype is torch.half
    assert all(shard.tensor.dtype is torch.half for shard in low.local_shards())
    assert sd.spec(tree)["w"].shape == tuple(x.size())
    assert sd.nbytes(tree) == sum(s.tensor.nbytes for s in x.local_shards())
    away = sd.to(tree, "meta")["w"]
    assert {str(s.placement.device()) for s in away.metadata().shards_metadata} == {
        "meta"
    }


@pytest.mark.parametrize("make", [by_rows, by_columns])
def test_their_boxes(rank, make):
    """Each shard is a box of its rank's local tensors, and they cover the tensor."""
    x = make(rank)
    layout = handler_of(x).layout(x)
    layout.check_coverage()
    held = layout.boxes.get(rank, ())
    assert [box.size for box in held] == [
        tuple(s.tensor.shape) for s in x.local_shards()
    ]


def test_what_tells_two_of_them_apart(rank):
    """Another shape, dtype, or cut is a difference of that name."""
    a, tree = by_rows(rank), {"w": by_rows(rank)}
    assert sd.equal({"w": a}, tree)
    for other, what in (
        (by_columns(rank), "shape"),
        (by_rows(rank, dtype=torch.float64), "dtype"),
    ):
        found = [d.what for d in sd.diff({"w": a}, {"w": other})]
        assert what in found
    cut = sharded(rank, [((0, 0), (3, 3), 0), ((3, 0), (3, 3), 1)], (6, 3))
    assert [d.what for d in sd.diff({"w": a}, {"w": cut})] == ["layout"]


def test_complex_ones_keep_that_they_require_a_gradient(rank):
    x = by_rows(rank, dtype=torch.complex64).requires_grad_()
    made = sd.copy({"w": x})["w"]
    assert made.requires_grad
    assert all(shard.tensor.requires_grad for shard in made.local_shards())


def test_empty_shards_in_one_place(rank):
    """Each is a local tensor, with a box."""
    regions = [((0, 0), (4, 2), 0), ((4, 0), (0, 2), 1), ((4, 0), (0, 2), 1)]
    x = sharded(rank, regions, (4, 2))
    check_one_leaf(x)
    handler = handler_of(x)
    held = [tuple(t.shape) for t in handler.flatten(x)[0] if rank < 2]
    assert held == [box.size for box in handler.layout(x).boxes[rank]]
