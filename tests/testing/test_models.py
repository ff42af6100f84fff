"""The trainings that other tests shard and gather: they are what they claim to be."""

import pytest
import torch
from models import (
    EMPTY_SHARDS,
    FSDP,
    FSDP_PARTLY_TP,
    FSDP_TP,
    HSDP,
    TP,
    build,
    every_training,
    fresh,
    loss_of,
    state_of,
    train,
)
from ranks import pool
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import sdtree as sd

PLACEMENTS = {
    FSDP: {(Shard(0),)},
    EMPTY_SHARDS: {(Shard(0),)},
    HSDP: {(Replicate(), Shard(0))},
    TP: {(Shard(0),), (Shard(1),), (Replicate(),)},
    FSDP_TP: {
        (_StridedShard(0, split_factor=2), Shard(0)),
        (Shard(0), Shard(1)),
        (Shard(0), Replicate()),
    },
    FSDP_PARTLY_TP: {
        (_StridedShard(0, split_factor=2), Shard(0)),
        (Shard(0), Shard(1)),
        (Shard(0), Replicate()),
        (Shard(0),),
    },
}


def check_kinds(training):
    """Assert that all is sharded but the steps, and return the placements."""
    model, optimizer = build(training)
    state = state_of(model, optimizer)
    parameters = list(model.parameters())
    assert all(type(x) is DTensor for x in state["model"].values())
    for i, moments in state["optimizer"]["state"].items():
        step = moments.pop("step")
        assert type(step) is torch.Tensor
        assert (step.ndim, step.item()) == (0, 2)
        for x in moments.values():
            assert type(x) is DTensor
            assert x.placements == parameters[i].placements
    return {p.placements for p in parameters}


@every_training
def test_all_is_a_dtensor_but_the_steps(training):
    assert pool(4).run(check_kinds, training) == [PLACEMENTS[training]] * 4


def tied_rows(training):
    """Assert that embedding and head share memory, and return how many rows of it."""
    state = build(training)[0].state_dict()
    embedding, head = (state[f"{x}.weight"].to_local() for x in ("embedding", "head"))
    assert embedding.untyped_storage()._cdata == head.untyped_storage()._cdata
    return len(head)


@pytest.mark.parametrize(
    ("training", "rows"), [(FSDP, [3, 3, 3, 1]), (EMPTY_SHARDS, [1, 1, 1, 0])]
)
def test_embedding_and_head_are_one_weight_on_every_rank(training, rows):
    assert pool(4).run(tied_rows, training) == rows


def check_values(training):
    """Assert that the training comes to the same as it does without sharding."""
    model, _ = build(training)
    plain, _ = build(training.on((), ()))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.full_tensor(), q.data)
    assert loss_of(model) == pytest.approx(loss_of(plain), rel=1e-5)
    assert loss_of(model) < loss_of(build(training, steps=0)[0])


@every_training
def test_sharding_changes_nothing(training):
    pool(4).run(check_values, training)


def take_over(training, other):
    """Assert that a fresh training on another mesh can go on where this one is."""
    model, optimizer = build(training)
    other_model, other_optimizer = fresh(other)
    assert loss_of(other_model) != pytest.approx(loss_of(model), rel=1e-3)
    targets = dict(sd.items(state_of(other_model, other_optimizer)))
    for path, x in sd.items(state_of(model, optimizer)):
        if isinstance(x, DTensor):
            y = targets[path]
            layout = (y.device_mesh, y.placements)
            moved = distribute_tensor(x.full_tensor(), *layout, src_data_rank=None)
            y.to_local().copy_(moved.to_local())
        elif isinstance(x, torch.Tensor):
            targets[path].copy_(x)
    assert loss_of(other_model) == pytest.approx(loss_of(model), rel=1e-5)
    losses = train(model, optimizer, 3, seed=2)
    others = train(other_model, other_optimizer, 3, seed=2)
    assert others == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    ("training", "sizes", "names"),
    [
        (FSDP, (2, 2), ("replicas", "dp")),
        (HSDP, (4,), ("dp",)),
        (EMPTY_SHARDS, (2, 2), ("replicas", "dp")),
        (TP, (2, 2), ("dp", "tp")),
        (FSDP_TP, (4,), ("dp",)),
    ],
)
def test_a_fresh_training_takes_over_on_another_mesh(training, sizes, names):
    pool(4).run(take_over, training, training.on(sizes, names))
