"""The rows of torch's own callers: with its functions, and with those of ``compat``.

Ours are put where ``torch.distributed.checkpoint.state_dict`` looks, as ``patch`` does
in every module, which takes some milliseconds, once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from ranks import mesh
from torch import nn
from torch.distributed import _state_dict_utils as incumbent
from torch.distributed.checkpoint import state_dict as callers
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.distributed.fsdp import fully_shard

from benchmarks.exchange import beside_torch, flat_gather, flat_of
from benchmarks.race import Runners, Work
from sdtree import compat
from sdtree.compat.patching import STAND_INS

CPU = torch.device("cpu")
TO_RANK_0 = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_RANK_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
BLOCKS = ((50, 64),)


def sharded(sizes: Any) -> nn.Module:
    """Return blocks of four linear layers under FSDP2, with weights and biases."""
    [(count, side)] = sizes
    blocks = [[nn.Linear(side, side) for _ in range(4)] for _ in range(count)]
    model = nn.Sequential(*(nn.Sequential(*block) for block in blocks))
    fully_shard(model, mesh=mesh((dist.get_world_size(),)))
    return model


def under_patch(call: Callable[[], object]) -> Callable[[], object]:
    """Return a call in which torch's callers find our functions."""
    torchs = {name: x for name, x in vars(callers).items() if name in STAND_INS}
    ours = {name: STAND_INS[name] for name in torchs}

    def run() -> object:
        vars(callers).update(ours)
        try:
            return call()
        finally:
            vars(callers).update(torchs)

    return run


def gets(sizes: Any) -> Runners:
    model = sharded(sizes)
    get = partial(callers.get_model_state_dict, model, options=TO_RANK_0)
    flat = flat_gather(model.state_dict(), to_all=False)
    return {"torch": get, "ours": under_patch(get), "flat": flat}


def loads(sizes: Any) -> Runners:
    model = sharded(sizes)
    full = callers.get_model_state_dict(model, options=TO_RANK_0)

    def put() -> object:
        given = {**full}  # which torch changes
        return callers.set_model_state_dict(model, given, options=FROM_RANK_0)

    return {"torch": put, "ours": under_patch(put), "flat": scatter_to(model)}


def broadcasts(sizes: Any) -> Runners:
    model = sharded(sizes)
    full = callers.get_model_state_dict(model, options=TO_RANK_0)
    local = dict(model.state_dict())
    return {
        "torch": lambda: incumbent._broadcast_state_dict(full, {**local}, CPU),
        "ours": lambda: compat.broadcast_state_dict(full, {**local}, CPU),
        "flat": scatter_to(model),
    }


def scatter_to(model: nn.Module) -> Callable[[], object]:
    """Return one scatter of as many bytes as the shards have."""
    mine = flat_of(model.state_dict())
    slices = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    return lambda: dist.scatter(mine, slices if dist.get_rank() == 0 else None)


WORKS: dict[str, Work] = {
    "get_model_state_dict, 4 ranks": beside_torch(gets, (BLOCKS,), 4, 10),
    "set_model_state_dict, 4 ranks": beside_torch(loads, (BLOCKS,), 4, 4),
    "broadcast_state_dict, 4 ranks": beside_torch(broadcasts, (BLOCKS,), 4, 12),
}
