"""The same transformer on several ranks: what the lines of the demo call there."""

from __future__ import annotations

import sys
from io import StringIO
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import AdamW

from sdtree.demo.training import RATE, Transformer, go_on, untrained


def join() -> int:
    """Meet the other ranks, unless that is done, and return which one this is.

    From then on only rank 0 prints.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    torch.set_num_threads(1)
    if dist.get_rank():
        sys.stdout = StringIO()
    return dist.get_rank()


def in_line() -> DeviceMesh:
    """Return the mesh of all ranks in one dimension, over which FSDP shards."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


def in_rows() -> DeviceMesh:
    """Return a mesh of all ranks in two dimensions, replicas and shards, for HSDP."""
    size = dist.get_world_size()
    rows = next((n for n in range(2, size) if size % n == 0), size)
    names = ("replicas", "shards")
    return init_device_mesh("cpu", (rows, size // rows), mesh_dim_names=names)


def sharded(mesh: DeviceMesh, seed: int = 0) -> tuple[Transformer, AdamW]:
    """Return an untrained model over a mesh, and its optimizer.

    Gradients are summed in float64, so that the order of the ranks does not show, and
    no weights are kept whole after a forward, so that what is loaded then is seen.
    """
    model = untrained(seed)
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float64)
    for part in (*model.encoder.layers, model):
        fully_shard(part, mesh=mesh, mp_policy=exact, reshard_after_forward=True)
    return model, AdamW(model.parameters(), lr=RATE)


def go_on_together(model: nn.Module, optimizer: AdamW, steps: range) -> None:
    """Train a model for some steps, on each rank on sequences of its own."""
    size, rank = dist.get_world_size(), dist.get_rank()
    go_on(model, optimizer, (step * size + rank for step in steps))


def state_of(model: nn.Module, optimizer: AdamW) -> dict[str, Any]:
    """Return what a checkpoint holds: of each rank, its shards."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
