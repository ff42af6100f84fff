"""Sharded leaves made without a word between ranks, and errors caught on each of them.

What is here runs on every rank of a pool. ``together`` calls a function on all::

    def failing():
        return caught(lambda: sd.gather({"w": shard(whole(8, 3))}))

    errors = together(failing)
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from ranks import mesh, pool
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard as Piece
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import (
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

import sdtree as sd

TIMEOUT = 20.0
"""Seconds after which ranks that do not answer hang."""


def together(function: Callable[..., Any], *args: Any, size: int = 4) -> list[Any]:
    """Return what a function comes to on each rank of a pool."""
    return pool(size).run(function, *args, timeout=TIMEOUT)


@contextmanager
def fake(size: int, rank: int = 0) -> Generator[dist.ProcessGroup]:
    """Let this process be a rank of torch's fake group, which moves nothing."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield dist.distributed_c10d._get_default_group()
    finally:
        dist.destroy_process_group()


def me() -> int:
    """Return the number of this rank."""
    return dist.get_rank()


def over(*ranks: int) -> DeviceMesh:
    """Return the mesh of some ranks, in a line; all ranks of the pool call."""
    key = tuple(ranks)
    if key not in _MESHES:
        _MESHES[key] = DeviceMesh("cpu", torch.tensor(ranks))
    return _MESHES[key]


_MESHES: dict[tuple[int, ...], DeviceMesh] = {}


def whole(*shape: int, start: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the counting numbers in a shape."""
    count = torch.Size(shape).numel()
    return torch.arange(start, start + count, dtype=dtype).view(shape)


def shard(full: Tensor, over: DeviceMesh | None = None, *placements: Any) -> DTensor:
    """Return this rank's part of a tensor: of its rows over all, unless told."""
    where = mesh((dist.get_world_size(),)) if over is None else over
    how = placements or (Shard(0),)
    if where.get_coordinate() is None:
        local = full.new_empty(0)
    else:
        size, at = compute_local_shape_and_global_offset(full.shape, where, how)
        index = tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))
        local = full[index].clone()
    return DTensor.from_local(
        local, where, how, run_check=False, shape=full.shape, stride=full.stride()
    )


Cut = tuple[tuple[int, ...], tuple[int, ...], int]
"""Offsets and sizes of a shard, and its rank."""


def pieces(full: Tensor, cuts: Sequence[Cut]) -> ShardedTensor:
    """Return the ShardedTensor of a tensor that is cut so; nothing is checked."""
    metadata = [
        ShardMetadata(list(at), list(size), f"rank:{rank}/cpu")
        for at, size, rank in cuts
    ]
    local = [
        Piece(full[tuple(map(_stretch, at, size))].contiguous(), metadata[k])
        for k, (at, size, rank) in enumerate(cuts)
        if rank == me()
    ]
    properties = TensorProperties(dtype=full.dtype)
    everything = ShardedTensorMetadata(metadata, full.size(), properties)
    return ShardedTensor._init_from_local_shards_and_global_metadata(local, everything)


def locals_of(leaf: Any) -> list[Tensor]:
    """Return what this rank has of a leaf, none of one that is no tensor."""
    if isinstance(leaf, sd.Shards):
        return [*leaf.tensors]
    if isinstance(leaf, ShardedTensor):
        return [piece.tensor.detach() for piece in leaf.local_shards()]
    is_data = isinstance(leaf, Tensor)
    return [getattr(leaf, "_local_tensor", leaf).detach()] if is_data else []


def _stretch(start: int, size: int) -> slice:
    return slice(start, start + size)


def caught(
    call: Callable[[], Any], kind: type[BaseException] = Exception
) -> BaseException | None:
    """Return what a call raises, once the ranks have seen that they still work.

    Errors of a ``kind``: an interrupt is a BaseException.
    """
    error = None
    try:
        call()
    except kind as found:
        error = found
    assert_works()
    return error


def assert_works() -> None:
    """Assert that all ranks exchange leaves as if nothing had happened."""
    full = whole(6, 2)
    made = sd.gather({"again": shard(full), "step": 3})
    assert torch.equal(made["again"], full)
    assert made["step"] == 3


def said(error: BaseException) -> str:
    """Return the text of an error, with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
