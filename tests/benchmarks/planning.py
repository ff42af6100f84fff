"""The rows of planning: a gather over 1024 ranks up to its first byte, on one of them.

And a convert over 64, of experts that are stacked.

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
from benchmarks.race import Figure, Row, Runners, Work, seconds
from benchmarks.world import apart
from sdtree.exchange.exchange import Exchange
from sdtree.layout import whole

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
    shape: tuple[int, ...], mesh: DeviceMesh, placements: tuple[Placement, ...]
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
        stride=torch.empty(shape, device="meta").stride(),
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


# -- a convert ---------------------------------------------------------------------

MEMBERS, EXPERTS, SOON = 64, 128, 0.05
STACK = [
    sd.rule(["e.{e}.w1 [f c]", "e.{e}.w3 [g c]"], "gate_up [e (f + g) c]"),
    sd.rule("e.{e}.w2 [c f]", "down [e c f]"),
]


def times_to_convert(lies: str, experts: int) -> tuple[float, float]:
    """Return how long a rank takes to plan, and to read the leaves."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=MEMBERS)
    mesh = DeviceMesh("cpu", torch.arange(MEMBERS), _init_backend=False)

    def planned(experts: int) -> Runners:
        sizes = {"w1": (256, 192), "w3": (256, 192), "w2": (192, 256)}
        tree = {
            f"e.{e}.{name}": LIES[lies](shape, mesh, e * MEMBERS // experts)
            for e in range(experts)
            for name, shape in sizes.items()
        }
        like = {
            "gate_up": sharded((experts, 512, 192), mesh, (Shard(0),)),
            "down": sharded((experts, 192, 256), mesh, (Shard(0),)),
        }
        stages = sd.convert(STACK, like=like, verify=False).stages
        return {
            "ours": lambda: Exchange.start(tree, stages, *stages),
            "read": lambda: [(type(x), x.shape, x.dtype) for x in tree.values()],
        }

    planned(2)["ours"]()  # what is imported late is there
    runs = planned(experts)
    return seconds(runs["ours"]), seconds(runs["read"])


def _rows(shape: tuple[int, int], mesh: DeviceMesh, _: int) -> DTensor:
    return sharded(shape, mesh, (Shard(0),))


def _on_one(shape: tuple[int, int], _: DeviceMesh, rank: int) -> sd.Shards:
    held = torch.empty(0 if rank else shape, device="meta")
    return sd.Shards(held, whole(shape, (rank,)))


LIES = {"by rows": _rows, "each on one": _on_one}
"""How an expert lies on ranks."""


def converting(lies: str, tiny: bool) -> Row:
    """Return the row of the time to plan a convert, in seconds."""
    runs = [
        apart(times_to_convert, lies, 4 if tiny else EXPERTS)
        for _ in range(1 if tiny else 5)
    ]
    ours, read = map(Figure.of, zip(*runs, strict=True))
    raw = {"read the leaves": read}
    return Row(ours, raw, ratio=ours.median, target=SOON, at_least=False)


WORKS = {
    f"plan for 1024 ranks, {layout}": Work(partial(planning, layout), "start")
    for layout in LAYOUTS
} | {
    f"plan a convert for 64 ranks, experts {lies}": Work(
        partial(converting, lies), "start"
    )
    for lies in LIES
}
