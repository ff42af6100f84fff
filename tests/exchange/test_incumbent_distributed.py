"""What torch's own functions get wrong among ranks, and sdtree right.

``theirs`` is ``torch/distributed/_state_dict_utils.py``. What hangs is not shown; the
rest is, as long as torch is of the version that was looked at.
"""

import pytest
import torch
from beside_torch import shows
from layouts_of_torch import COLUMNS, TWO_EACH, UNEVEN, arriving
from ranks import mesh
from shards import caught, me, pieces, shard, together, whole
from torch.distributed import _state_dict_utils as theirs
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import sdtree as sd
from sdtree.errors import RankMismatch, SpecMismatch

CPU = torch.device("cpu")
FULL = whole(8, 4)


# -- broadcast ---------------------------------------------------------------------


def broadcast_a_transposed_one():
    source = {"w": whole(3, 4).t(), "v": whole(6)[::2]} if me() == 0 else {}
    their = {"w": torch.zeros(4, 3)}
    theirs._broadcast_state_dict({k: source[k] for k in source if k == "w"}, their, CPU)
    like = {"w": torch.zeros(4, 3), "v": torch.zeros(3)}
    made = sd.broadcast(source, like=like)
    assert torch.equal(made["w"], whole(3, 4).t())
    assert torch.equal(made["v"], whole(6)[::2])
    sharded = sd.broadcast(source, like={name: shard(t) for name, t in like.items()})
    assert torch.equal(sharded["w"].to_local(), whole(3, 4).t()[me() :][:1])
    return torch.equal(their["w"], whole(3, 4).t())


def test_a_source_need_not_be_contiguous():
    """The incumbent scrambles it everywhere but on the source."""
    shows(together(broadcast_a_transposed_one) == [True, False, False, False])


def broadcast_a_nested_one():
    source = {"model": {"w": FULL, "n": 3}} if me() == 0 else {}
    their = {"model": {"w": shard(FULL * 0), "n": 0}}
    theirs._broadcast_state_dict(source, their, CPU)
    like = {"model": {"w": shard(FULL * 0), "n": 0}}
    made = sd.broadcast(source, like=like)
    assert type(made["model"]["w"]) is DTensor
    assert made["model"]["w"].placements == (Shard(0),)
    assert torch.equal(made["model"]["w"].to_local(), FULL[2 * me() :][:2])
    assert made["model"]["n"] == 3
    return type(their["model"]["w"]) is torch.Tensor


def test_a_nested_target_stays_sharded():
    """The incumbent pickles what is nested, and makes plain tensors of DTensors."""
    shows(together(broadcast_a_nested_one) == [True] * 4)


def broadcast_to_another_form(what):
    source = {"w": FULL} if me() == 0 else {}
    target = torch.zeros(2, 2) if what == "shape" else torch.zeros(8, 4).half()
    their = {"w": target.clone()}
    theirs._broadcast_state_dict(source, their, CPU)
    replaced = their["w"].shape == FULL.shape and their["w"].dtype is FULL.dtype
    error = caught(lambda: sd.broadcast(source, into={"w": target}))
    assert not target.any()
    return replaced, error


@pytest.mark.parametrize("what", ["shape", "dtype"])
def test_a_target_of_another_form_is_refused(what):
    """The incumbent replaces it, without a word."""
    for replaced, error in together(broadcast_to_another_form, what):
        shows(replaced)
        assert type(error) is SpecMismatch
        assert f"w ({what} " in str(error)


# -- ShardedTensors ----------------------------------------------------------------


def gather_pieces(cuts, with_theirs):
    tree = {"w": pieces(FULL, cuts), "n": me()}
    made = sd.gather(tree)
    assert torch.equal(made["w"], FULL)
    assert made["n"] == me()
    to_one = sd.gather(tree, ranks=2)
    assert (type(to_one["w"]) is torch.Tensor) == (me() == 2)
    back = sd.distribute({"w": FULL, "n": 0}, like=tree)["w"]
    for own, there in zip(back.local_shards(), tree["w"].local_shards(), strict=True):
        assert torch.equal(own.tensor, there.tensor)
    if with_theirs:
        their = theirs._gather_state_dict({"w": tree["w"]})
        return torch.equal(their["w"], FULL)
    return False


def test_a_sharded_tensor_split_along_columns():
    """The incumbent lines the pieces up as if they were rows."""
    shows(not any(together(gather_pieces, COLUMNS, True)))


def test_a_sharded_tensor_with_two_shards_on_a_rank():
    """The incumbent sends the first one alone."""
    shows(not any(together(gather_pieces, TWO_EACH, True)))


def test_a_sharded_tensor_with_uneven_rows():
    """With 1, 3, 0 and 4 of them; the incumbent hangs, or fails on one rank."""
    together(gather_pieces, UNEVEN, False)


# -- DTensors ----------------------------------------------------------------------


def gather_over_a_flattened_mesh():
    full = whole(5, 3)
    square = DeviceMesh("cpu", torch.arange(4).view(2, 2), mesh_dim_names=("a", "b"))
    square._flatten("ab")
    tree = {"w": shard(full, square, Shard(0), Shard(0))}
    their = tree["w"].full_tensor()
    assert torch.equal(sd.gather(tree)["w"], full)
    assert sd.equal(sd.distribute({"w": full}, like=tree), tree)
    assert sd.equal(sd.broadcast({"w": full}, like=tree, src=3), tree)
    line = {"w": shard(full, mesh((4,)), Shard(1))}
    assert sd.equal(sd.redistribute(tree, like=line), line)
    return torch.equal(their, full)


def test_rows_split_twice_and_unevenly_over_a_mesh_that_is_also_flattened():
    """The incumbent loses a row, and has a row of padding in its place."""
    shows(not any(together(gather_over_a_flattened_mesh)))


def gather_what_is_on_its_way():
    mine = torch.full((2,), float(me()))
    moving = arriving(mine)
    inside = DTensor.from_local(
        arriving(mine),
        mesh((4,)),
        [Replicate()],
        run_check=False,
    )
    assert type(moving) is AsyncCollectiveTensor
    their = theirs._gather_state_dict({"w": moving})
    made = sd.gather({"w": moving, "d": inside, "s": shard(FULL)})
    assert type(made["w"]) is type(made["d"]) is torch.Tensor
    assert made["w"].tolist() == made["d"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(made["s"], FULL)
    return type(their["w"]) is AsyncCollectiveTensor


def test_what_is_on_its_way_is_waited_for():
    """The incumbent hands it on as it is."""
    shows(all(together(gather_what_is_on_its_way)))


# -- ranks that differ -------------------------------------------------------------


def gather_other_keys():
    tree = {f"own {me() % 2}": shard(FULL), "w": shard(FULL)}
    return caught(lambda: sd.gather(tree))


def broadcast_to_other_keys():
    like = {f"own {me() % 2}": shard(FULL), "w": shard(FULL)}
    source = {"own 0": FULL, "own 1": FULL, "w": FULL}
    return caught(lambda: sd.broadcast(source, like=like))


@pytest.mark.parametrize("function", [gather_other_keys, broadcast_to_other_keys])
def test_ranks_with_other_keys(function):
    """The incumbent hangs; here all ranks say who has what, and go on."""
    for error in together(function):
        assert type(error) is RankMismatch
        assert error.paths == (("own 0",),)
        assert set(error.ranks) == {0, 1, 3}
