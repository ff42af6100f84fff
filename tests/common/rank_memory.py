"""What an exchange holds at its peak, as the kernel counts it."""

import ctypes
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import Pool, mesh
from shards import shard
from torch.distributed.tensor import Replicate, Shard

MIB = 2**20


WINDOW = 4 * MIB


SLACK = 2 * MIB
"""What Python, malloc and the words at the ends of messages take beside."""


LARGEST = 24 * MIB


SMALL = {f"small{k}": 64 * 1024 for k in range(160)}


MIDDLE = {f"middle{k}": 5 * MIB // 2 for k in range(24)}


SIZES = {**SMALL, **MIDDLE, "largest": LARGEST}


LAYOUTS = {
    "fsdp": ((4,), [Shard(0)], [Shard(1)]),
    "hsdp": ((2, 2), [Replicate(), Shard(0)], [Replicate(), Shard(1)]),
    "ddp": ((4,), [Replicate()]),
}


measured = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc"
)


def full(nbytes):
    return torch.arange(nbytes // 4.0).view(-1, 256)


def whole_tree():
    return {name: full(nbytes) for name, nbytes in SIZES.items()}


def sharded(layout):
    """Return the tree sharded by rows and by columns in turn, or in the given way."""
    sizes, *hows = LAYOUTS[layout]
    return {
        name: shard(full(nbytes), mesh(sizes), *hows[k % len(hows)])
        for k, (name, nbytes) in enumerate(SIZES.items())
    }


def frugal_ranks():
    """Yield ranks in which ``malloc`` gives back at once what is let go of."""
    found = Pool(4)
    found.run(keep_no_memory)
    yield found
    found.stop()


def keep_no_memory():
    mmap_threshold = -3
    ctypes.CDLL(None).mallopt(mmap_threshold, 32 * 1024)


def status(key):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024


def peak(call):
    """Return by how much memory grows at most, and what the call returns."""
    dist.barrier()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    result = call()
    return status("VmHWM") - before, result


def warm(tree, f):
    """Have all code read and all connections made."""
    f({"small": tree["small0"], "largest": tree["middle0"]})
