"""DTensors as operations of torch leave them, and in which order they lie."""

from itertools import product

import pytest
import torch
from ranks import mesh
from shards import fake, shard, together, whole
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import _dtensor_spec as specs
from torch.nn.functional import embedding

import sdtree as sd

VIEWS = {
    "none": lambda t: t,
    "flatten": lambda t: t.flatten(0, 1),
    "transpose": lambda t: t.transpose(0, 1),
    "unflatten": lambda t: t.unflatten(0, (2, -1)),
    "both": lambda t: t.flatten(0, 1).unflatten(0, t.shape[:2]),
}


@pytest.mark.parametrize(
    ("sizes", "shape", "rank"),
    [((2, 2), (2, 8), r) for r in range(4)] + [((2, 2, 2), (8, 4), r) for r in (3, 5)],
)
def test_a_layout_tells_what_a_view_holds(sizes, shape, rank):
    """By whatever placements, of which torch reads the strided ones in two ways."""
    full, count = whole(*shape), torch.Size(sizes).numel()
    views = 0
    with fake(count, rank):
        over = init_device_mesh("cpu", sizes)
        for placements in product([Replicate(), Shard(0), Shard(1)], repeat=len(sizes)):
            x = shard(full, over, *placements)
            for view in VIEWS.values():
                try:
                    made, seen = view(x), view(full)
                except Exception:  # which torch does not make of these
                    continue
                boxes = sd.spec({"w": made})["w"].layout.boxes[rank]
                local = made._local_tensor
                assert sum(box.numel for box in boxes) == local.numel()
                for box in boxes:
                    here, there = cut(box.local, box.size), cut(box.offset, box.size)
                    assert torch.equal(local[here], seen[there]), made
                views += 1
    assert views > 30


def cut(start, size):
    return tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))


def ordered(full):
    """Return a tensor whose rows the last of two mesh dimensions cuts first."""
    over, where = mesh((2, 2)), (Shard(0), Shard(0))
    order = (specs.ShardOrderEntry(tensor_dim=0, mesh_dims=(1, 0)),)
    meta = specs.TensorMeta(full.size(), full.stride(), full.dtype)
    spec = specs.DTensorSpec(over, where, tensor_meta=meta, shard_order=order)
    i, j = over.get_coordinate()
    local = full.chunk(2)[j].chunk(2)[i].clone()
    return DTensor(local, spec, requires_grad=False)


def gathered():
    """Return what is gathered of views, and of what is in an order, and what it is."""
    full = whole(4, 8)
    halves = distribute_tensor(full, mesh((2, 2)), [Shard(1), Shard(1)])
    view, other = halves.flatten(0, 1), ordered(full)
    tree = {"view": view, "ordered": other, "cast": sd.cast(view, dtype=torch.half)}
    tree["again"] = sd.redistribute({"w": other}, like={"w": halves})["w"]
    assert not sd.similar(
        {"w": other}, {"w": shard(full, mesh((2, 2)), *[Shard(0)] * 2)}
    )
    return sd.gather(tree), {
        "view": view.full_tensor(),
        "ordered": full,
        "cast": view.full_tensor().half(),
        "again": full,
    }


def test_views_and_orders_are_gathered_as_torch_gathers_them():
    for found, wanted in together(gathered):
        assert sd.equal(found, wanted)


def masked():
    """Return what terms are gathered to, twice, and whether they stay as they are."""
    weight = distribute_tensor(whole(8, 1) + 1, mesh((4,)), [Shard(0)])
    ids = distribute_tensor(torch.tensor([0, 5, 7, 2]), mesh((4,)), [Replicate()])
    x = embedding(ids, weight)
    before, made = x._local_tensor.clone(), [sd.gather({"w": x})["w"] for _ in "ab"]
    return torch.equal(x._local_tensor, before), made, x.full_tensor()


def test_terms_that_are_masked_stay_as_they_are():
    """What an embedding of rows comes to is masked as it is reduced, and only then."""
    for is_same, made, wanted in together(masked):
        assert is_same
        assert all(torch.equal(t, wanted) for t in made)
