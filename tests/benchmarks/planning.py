"""The rows of planning: a gather over 1024 ranks up to its first byte, on one of them.

The group is torch's fake one, the leaves are meta, and nothing is known yet: each plan
is made in a process of its own. Ranks do not agree here; what that takes is told by the
rows of exchange.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from race import Row
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

import sdtree as sd
from sdtree.crossing import Crossing

RANKS, LEAVES, TARGET = 1024, 10_000, 2.0
SHAPES = [(4096, 4096), (4096, 11008), (11008, 4096), (4096, 2048), (32000, 4096)]
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[Placement, ...]]] = {
    "rows": ((RANKS,), (Shard(0),)),
    "columns": ((RANKS,), (Shard(1),)),
    "blocks": ((RANKS // 8, 8), (Shard(0), Shard(1))),
}
"""The sizes of a mesh, and how each leaf lies on it."""


def seconds(layout: str, leaves: int) -> float:
    """Return how long the destination takes to plan."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    sizes, placements = LAYOUTS[layout]
    mesh = DeviceMesh("cpu", torch.arange(RANKS).view(sizes), _init_backend=False)
    names = [f"layers.{i}" for i in range(leaves)]
    tree = {
        name: sharded(SHAPES[i % len(SHAPES)], mesh, placements)
        for i, name in enumerate(names)
    }
    stages = sd.gather(ranks=0, verify=False).stages
    start = time.perf_counter()
    Crossing.start(tree, stages)
    return time.perf_counter() - start


def sharded(
    shape: tuple[int, int], mesh: DeviceMesh, placements: tuple[Placement, ...]
) -> DTensor:
    """Return a leaf whose data is nowhere."""
    local, _ = compute_local_shape_and_global_offset(shape, mesh, placements)
    part = torch.empty(local, device="meta")
    return DTensor.from_local(
        part,
        mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=(shape[1], 1),
    )


def planning(layout: str, tiny: bool) -> Row:
    """Return the row of the time to plan, in seconds."""
    command = [sys.executable, __file__, layout, str(10 if tiny else LEAVES)]
    runs = [
        subprocess.run(command, check=True, capture_output=True, text=True)
        for _ in range(1 if tiny else 3)
    ]
    found = statistics.median(float(run.stdout) for run in runs)
    return Row("-", f"{found:.2f} s", found, TARGET, at_least=False)


WORKS: dict[str, Callable[[bool], Row]] = {
    f"plan for 1024 ranks, {layout}": partial(planning, layout) for layout in LAYOUTS
}

if __name__ == "__main__":
    print(seconds(sys.argv[1], int(sys.argv[2])))
