"""The rows of planning: a gather over 1024 ranks up to its first byte, on one of them.

The group is torch's fake one, the leaves are meta, and nothing is known yet: each plan
is made in a process of its own. The raw limit reads of each leaf what a plan must know;
beside it stands what torch takes to work out where the parts of one rank lie. Ranks do
not agree here; what that takes is told by the rows of exchange.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

import sdtree as sd
from benchmarks.race import Figure, Row, Work, seconds
from benchmarks.world import apart
from sdtree.exchange.exchange import Exchange

RANKS, LEAVES, TARGET = 1024, 10_000, 2.0
SHAPES = [(4096, 4096), (4096, 11008), (11008, 4096), (4096, 2048), (32000, 4096)]
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[Placement, ...]]] = {
    "rows": ((RANKS,), (Shard(0),)),
    "columns": ((RANKS,), (Shard(1),)),
    "blocks": ((RANKS // 8, 8), (Shard(0), Shard(1))),
}
"""The sizes of a mesh, and how each leaf lies on it."""


def times_to_plan(layout: str, leaves: int) -> tuple[float, ...]:
    """Return how long the destination takes to plan, and what stands beside."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    sizes, placements = LAYOUTS[layout]
    mesh = DeviceMesh("cpu", torch.arange(RANKS).view(sizes), _init_backend=False)
    names = [f"layers.{i}" for i in range(leaves)]
    tree = {
        name: sharded(SHAPES[i % len(SHAPES)], mesh, placements)
        for i, name in enumerate(names)
    }
    stages = sd.gather(ranks=0, verify=False).stages
    runs = (
        lambda: Exchange.start(tree, stages, *stages),
        lambda: [(type(x), x.shape, x.dtype, x.placements) for x in tree.values()],
        lambda: [_box_by_torch(x) for x in tree.values()],
    )
    return tuple(seconds(run) for run in runs)


def _box_by_torch(x: DTensor) -> object:
    """Return by torch's own function where the part of this rank lies."""
    return compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)


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
    runs = [
        apart(times_to_plan, layout, 10 if tiny else LEAVES)
        for _ in range(1 if tiny else 5)
    ]
    ours, read, boxes = map(Figure.of, zip(*runs, strict=True))
    raw = {"read the leaves": read, "torch's boxes of one rank": boxes}
    return Row(ours, raw, ratio=ours.median, target=TARGET, at_least=False)


WORKS = {
    f"plan for 1024 ranks, {layout}": Work(partial(planning, layout), "start")
    for layout in LAYOUTS
}
