"""Meshes whose ranks do not ascend: one placement stands for two layouts there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import pool
from shards import caught, said, together, whole
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import sdtree as sd
from sdtree.errors import LayoutError

FULL = whole(6, 2)
_MESHES = {}


def mesh(rows):
    """Return the mesh of these ranks, always the same; all ranks of the pool call."""
    key = str(rows)
    if key not in _MESHES:
        ranks = torch.tensor(rows)
        names = ("replicas", "shards")[-ranks.ndim :]
        _MESHES[key] = DeviceMesh("cpu", ranks, mesh_dim_names=names)
    return _MESHES[key]


def leaf_by(how, rows):
    """Return a leaf of the rows of ``FULL``, sharded over the last dimension."""
    over = mesh(rows)
    if how == "fully_shard":
        model = torch.nn.Linear(2, 6, bias=False)
        model.weight = torch.nn.Parameter(FULL.clone())
        fully_shard(model, mesh=over)
        return model.state_dict()["weight"]
    placements = [Replicate()] * (over.ndim - 1) + [Shard(0)]
    return distribute_tensor(FULL.clone(), over, placements, src_data_rank=None)


def refused(how, rows):
    """Return what each operation raises, and whether what is local goes on."""
    tree = {"w": leaf_by(how, rows)}
    copied = sd.copy(tree)
    errors = [
        said(caught(call))
        for call in (
            lambda: sd.gather(tree),
            lambda: sd.gather(tree, ranks=0),
            lambda: sd.distribute({"w": FULL}, like=tree),
            lambda: sd.broadcast({"w": FULL}, like=tree),
            lambda: sd.broadcast({"w": FULL}, into=tree),
            lambda: sd.redistribute(tree, like=tree),
            lambda: sd.explain(sd.gather(), tree),
        )
    ]
    return errors, sd.equal(copied, tree) and not sd.diff(copied, tree)


@pytest.mark.parametrize("how", ["fully_shard", "distribute_tensor"])
@pytest.mark.parametrize("rows", [[2, 0, 3, 1], [[3, 1], [0, 2]]])
def test_nothing_is_guessed(how, rows):
    """What moves data says why, on every rank; what is local goes on."""
    for errors, is_equal in together(refused, how, rows):
        assert all("w: it is sharded over" in text for text in errors), errors
        assert is_equal


def whole_again(rows, placements):
    over = mesh(rows)
    leaf = distribute_tensor(FULL.clone(), over, placements, src_data_rank=None)
    try:
        found = sd.gather({"w": leaf})["w"]
    except LayoutError:
        return None
    return torch.equal(found, FULL)


PLACEMENTS = st.sampled_from([Replicate(), Shard(0), Shard(1)])


@settings(max_examples=8)
@given(st.permutations(range(4)), st.lists(PLACEMENTS, min_size=2, max_size=2))
def test_what_is_not_refused_is_right(ranks, placements):
    """Any order of ranks, any placements: whole again, or an error on every rank."""
    rows = [ranks[:2], ranks[2:]]
    found = pool(4).run(whole_again, rows, placements)
    assert found in ([True] * 4, [None] * 4)
    ascending = [rows[0][0] < rows[1][0] and rows[0][1] < rows[1][1]]
    ascending += [all(a < b for a, b in rows)]
    doubtful = [
        p.is_shard() and not up for p, up in zip(placements, ascending, strict=True)
    ]
    assert found[0] is (None if any(doubtful) else True)
