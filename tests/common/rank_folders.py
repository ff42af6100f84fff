"""Trees that ranks write to a folder together: what they have of it, and all of it."""

import torch
from torch.distributed.tensor import distribute_tensor


def full_of(shapes):
    """Return the tree of which ranks are to have parts, and what nobody shards."""
    torch.manual_seed(0)
    ts = [torch.rand(shape) for shape in shapes]
    tree = {f"w{k}": t for k, t in enumerate(ts)}
    nested = {"list": [{3: torch.rand(2)}, None, "text"], "empty": {}, "tied": ts[0]}
    return {"z": torch.tensor(7), "model": tree, "beside": nested, "t": (1, (2,))}


def sharded_over(mesh, shapes, placements):
    """Return the same, sharded over a mesh; ties stay ties."""
    full = full_of(shapes)
    for (name, t), placement in zip(full["model"].items(), placements, strict=True):
        full["model"][name] = distribute_tensor(t, mesh, placement)
    full["beside"]["tied"] = full["model"]["w0"]
    return full
