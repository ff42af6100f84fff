"""Checkpoints of real trainings: gathered, saved, loaded, and taken over elsewhere.

What comes out of the detour goes on as if there had been none. On the same mesh that is
so bit for bit; on another one gradients are summed in another order, so that losses
agree up to rounding.
"""


import pytest
import torch
from models import (
    EMPTY_SHARDS,
    FSDP,
    FSDP_TP,
    HSDP,
    TP,
    TRAININGS,
    build,
    fresh,
    loss_of,
    state_of,
    train,
)
from ranks import pool
from shards import me
from torch.distributed.tensor import DTensor

import sdtree as sd
from sdtree.wire import record

every_training = pytest.mark.parametrize(
    "training", TRAININGS.values(), ids=TRAININGS.keys()
)
ELSEWHERE = {
    FSDP: FSDP.on((2, 2), ("replicas", "dp")),
    EMPTY_SHARDS: EMPTY_SHARDS.on((2, 2), ("replicas", "dp")),
    HSDP: HSDP.on((4,), ("dp",)),
    TP: TP.on((2, 2), ("dp", "tp")),
    FSDP_TP: FSDP_TP.on((4,), ("dp",)),
}
TRANSFORMERS = {"fsdp": FSDP, "empty_shards": EMPTY_SHARDS, "hsdp": HSDP}
TIE = [("model", "embedding.weight"), ("model", "head.weight")]

to_rank_0 = sd.gather(ranks=0) | sd.offload()


def whole(x):
    """Return what torch makes of a leaf. Collective."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def whole_state(training):
    """Return what torch gathers of a training. Collective."""
    return sd.map(whole, state_of(*build(training)))


# -- gather ------------------------------------------------------------------------


def check_gathered(training):
    state = state_of(*build(training))
    found, expected = to_rank_0(state), sd.map(whole, state)
    assert sd.similar(found, expected)
    if me() == 0:
        assert sd.equal(found, expected)
        assert sd.ties(found) == sd.ties(state)
    else:
        tensors = [x for _, x in sd.items(expected) if isinstance(x, torch.Tensor)]
        abstract = [x for _, x in sd.items(found) if isinstance(x, sd.Abstract)]
        assert len(abstract) == len(tensors)
        assert sd.nbytes(sd.drop(found, "**", missing_ok=True)) == 0


@every_training
def test_rank_0_gathers_what_torch_gathers(training):
    """Bit for bit, optimizer included; elsewhere each tensor is an Abstract like it."""
    pool(4).run(check_gathered, training)


def check_everywhere(training):
    state = state_of(*build(training))
    assert sd.equal(sd.gather(state), sd.map(whole, state))


@every_training
def test_all_ranks_gather_what_torch_gathers(training):
    pool(4).run(check_everywhere, training)


# -- ties --------------------------------------------------------------------------


def ties_and_traffic(training):
    """Return the ties of a model's state, and what gathering it to rank 0 receives."""
    state = {"model": build(training)[0].state_dict()}
    with record() as traffic:
        found = sd.gather(state, ranks=0)
    if me() == 0:
        weights = [found["model"][name] for _, name in TIE]
        assert weights[0].data_ptr() == weights[1].data_ptr()
        assert sd.ties(found) == [TIE]
    moved = sd.drop(state, "model.head.weight")
    local, all_of_it = sd.nbytes(moved), sd.nbytes(moved, whole=True)
    return sd.ties(state), traffic.nbytes["receive"], all_of_it - local


@pytest.mark.parametrize("training", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_a_tied_weight_is_one_on_every_rank_and_travels_once(training):
    """Also where a rank holds no row of it; rank 0 takes in what it lacks, once.

    What is more than that pays for the words at the ends of parcels, and for aligning.
    """
    every = pool(4).run(ties_and_traffic, training)
    assert [ties for ties, *_ in every] == [[TIE]] * 4
    _, taken, lacking = every[0]
    assert [taken for _, taken, _ in every[1:]] == [0, 0, 0]
    assert lacking <= taken < 1.2 * lacking


# -- through a file ----------------------------------------------------------------


def leave_in_file(training, path):
    """Write what a training has gathered to rank 0, and return the training."""
    model, optimizer = build(training)
    state = to_rank_0(state_of(model, optimizer))
    if me() == 0:
        sd.save(state, path)
        saved = sd.load(path)
        assert sd.equal(saved, state)
        assert sd.ties(saved) == sd.ties(state)
    return model, optimizer


def take_from_file(path, other, how):
    """Return a fresh training that has what rank 0 reads in a file."""
    model, optimizer = fresh(other)
    state = state_of(model, optimizer)
    source = sd.load(path) if me() == 0 else None
    if how == "into":
        assert sd.similar(sd.broadcast(source, into=state), state)
        return model, optimizer
    made = sd.broadcast(source, like=state)
    assert sd.ties(made) == sd.ties(state)
    model.load_state_dict(made["model"])
    optimizer.load_state_dict(made["optimizer"])
    return model, optimizer


def go_on(training, other, how, path):
    """Return the losses of a training that goes on, and of one that takes over."""
    model, optimizer = leave_in_file(training, path)
    other_model, other_optimizer = take_from_file(path, other, how)
    losses = [loss_of(model), *train(model, optimizer, 3, seed=2)]
    others = [loss_of(other_model), *train(other_model, other_optimizer, 3, seed=2)]
    return losses, others


@pytest.mark.parametrize("how", ["like", "into"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@every_training
def test_another_mesh_goes_on_from_a_file(training, suffix, how, tmp_path):
    """Losses agree up to the order in which gradients are summed."""
    path = tmp_path / f"state.{suffix}"
    for losses, others in pool(4).run(go_on, training, ELSEWHERE[training], how, path):
        assert others == pytest.approx(losses, rel=1e-5)


@every_training
def test_the_same_mesh_goes_on_from_a_file_bit_for_bit(training, tmp_path):
    for losses, others in pool(4).run(
        go_on, training, training, "like", tmp_path / "state.safetensors"
    ):
        assert others == losses


# -- values that are no tensors ----------------------------------------------------


def test_none_is_a_value_as_any_other():
    """Groups of parameters have many; broadcast still sees the ties beside them."""
    w = torch.ones(2)
    tree = {"w": w, "tied": w, "foreach": None}
    assert sd.equal((sd.gather(ranks=0) | sd.offload())(tree), tree)
    made = sd.broadcast(tree, like=tree)
    assert made["foreach"] is None
    assert sd.ties(made) == [[("w",), ("tied",)]]
    assert sd.ties(sd.broadcast({**tree, "tied": w.clone()}, like=tree)) == []
