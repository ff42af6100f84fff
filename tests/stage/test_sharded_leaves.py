"""Leaves of ranks are staged by what this rank holds of them, without a message."""

import pytest
import torch
from shards import fake
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard as Part
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import (
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

import sdtree as sd


@pytest.fixture
def group():
    """Be rank 1 of two, over a group that moves nothing."""
    with fake(2, rank=1):
        yield


def sharded(local):
    """Return a ShardedTensor by rows, of which rank 1 has the second half."""
    rows = local.size(0)
    places = [ShardMetadata([rows * k, 0], [rows, 3], f"rank:{k}/cpu") for k in (0, 1)]
    properties = TensorProperties(dtype=local.dtype)
    whole = ShardedTensorMetadata(places, torch.Size((2 * rows, 3)), properties)
    parts = [Part(local, places[1])]
    return ShardedTensor._init_from_local_shards_and_global_metadata(parts, whole)


@pytest.mark.parametrize("share", [False, True])
def test_sharded_leaves_are_staged_by_their_parts(group, share):
    """Twice, so that the second goes where the first went."""
    local, other = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3)
    mesh = init_device_mesh("cpu", (2,))
    tree = {"d": DTensor.from_local(local, mesh, [Shard(0)]), "s": sharded(other)}
    with sd.Stager(share=share, buffers=1) as stager:
        places = set()
        for _ in range(2):
            expected = sd.copy(tree)
            staged = stager.stage(tree)
            local.add_(1)
            other.add_(1)
            snapshot = staged.wait()
            assert type(snapshot["d"]) is DTensor
            assert type(snapshot["s"]) is ShardedTensor
            assert sd.similar(snapshot, tree)
            for here, there in (
                (snapshot["d"].to_local(), expected["d"].to_local()),
                (snapshot["s"].local_tensor(), expected["s"].local_tensor()),
            ):
                assert torch.equal(here, there)
                places.add(here.data_ptr())
            staged.release()
        assert len(places) == 2
