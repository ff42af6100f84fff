"""Checkpoints of real trainings: gathered, saved, loaded, and taken over elsewhere.

What comes out of the detour goes on as if there had been none. On the same mesh that is
so bit for bit; on another one gradients are summed in another order, so that losses
agree up to rounding.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from models import (
    EMPTY_SHARDS,
    FSDP,
    FSDP_PARTLY_TP,
    FSDP_TP,
    HSDP,
    TP,
    Transformer,
    build,
    every_training,
    fresh,
    loss_of,
    state_of,
    train,
)
from ranks import pool
from shards import me
from torch.distributed.tensor import DTensor

import sdtree as sd
from sdtree.errors import SpecMismatch
from sdtree.wire.collectives import record

ELSEWHERE = {
    FSDP: FSDP.on((2, 2), ("replicas", "dp")),
    EMPTY_SHARDS: EMPTY_SHARDS.on((2, 2), ("replicas", "dp")),
    HSDP: HSDP.on((4,), ("dp",)),
    TP: TP.on((2, 2), ("dp", "tp")),
    FSDP_TP: FSDP_TP.on((4,), ("dp",)),
    FSDP_PARTLY_TP: FSDP_PARTLY_TP.on((4,), ("dp",)),
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


def gathered_bytes(state):
    """Return what goes from rank to rank as rank 0 gathers a state."""
    with record() as traffic:
        sd.gather(state, ranks=0)
    return traffic.nbytes["send"], traffic.nbytes["receive"]


def check_ties(training):
    state = {"model": build(training)[0].state_dict()}
    assert sd.ties(state) == [TIE]
    found = to_rank_0(state)
    if me() == 0:
        assert sd.ties(found) == [TIE]
    once = sd.drop(state, "model.head.weight")
    assert gathered_bytes(state) == gathered_bytes(once)
    made = sd.broadcast(found, like=state)
    assert sd.ties(made) == [TIE]
    assert sd.equal(made, state)


@pytest.mark.parametrize("training", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_a_tied_weight_is_one_on_every_rank_and_travels_once(training):
    """Also where a rank holds no row of it: its part is told by the storage."""
    pool(4).run(check_ties, training)


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


@pytest.mark.parametrize(("suffix", "how"), [("safetensors", "into"), ("pt", "like")])
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


def load_in_one(path, training, other):
    """Return the losses of a training, and of one made by a single pipeline."""
    model, optimizer = build(training)
    state = sd.gather(state_of(model, optimizer), ranks=0)
    if me() == 0:
        sd.save(sd.prefix(state, "module"), path)
    other_model, other_optimizer = fresh(other)
    target = state_of(other_model, other_optimizer)
    load = sd.strip_prefix("module") | sd.broadcast(into=target)
    load(sd.load(path) if me() == 0 else None)
    return loss_of(model), loss_of(other_model)


@every_training
def test_rank_0_renames_what_all_receive_in_one_pipeline(training, tmp_path):
    """The other ranks pass None, and their stages before the broadcast do not run."""
    path = tmp_path / "state.safetensors"
    for loss, other in pool(4).run(load_in_one, path, training, ELSEWHERE[training]):
        assert other == pytest.approx(loss, rel=1e-5)


def load_a_part(path):
    """Assert that what the file lacks stays, and what only it has is passed over."""
    model, _ = build(FSDP)
    whole_model = sd.gather(model.state_dict(), ranks=0)
    if me() == 0:
        encoder = sd.select(whole_model, "encoder.layers.0.**")
        sd.save({**encoder, "pooler.weight": torch.ones(2)}, path)
    other, _ = fresh(FSDP)
    state = other.state_dict()
    before = sd.copy(state)
    source = sd.load(path) if me() == 0 else None
    with pytest.raises(SpecMismatch) as caught:
        sd.broadcast(source, into=state)
    assert "pooler.weight" in str(caught.value)
    assert "embedding.weight" in str(caught.value)
    assert sd.equal(state, before)
    sd.broadcast(source, into=state, strict=False)
    loaded = sd.selector("encoder.layers.0.**")
    expected = sd.combine(
        sd.select(model.state_dict(), loaded), sd.drop(before, loaded)
    )
    assert sd.equal(other.state_dict(), expected)
    made = sd.broadcast(source, like=state, strict=False)
    assert made["head.weight"] is state["head.weight"]


def test_a_part_of_a_file_goes_into_a_model(tmp_path):
    """Strictly, it is refused on every rank and nothing is written."""
    pool(4).run(load_a_part, tmp_path / "part.pt")


def in_bfloat16():
    return Transformer().bfloat16()


def load_in_bfloat16(path, other):
    """Assert that a file in float32 ends in a model in bfloat16, in one chain."""
    state = sd.gather(state_of(*build(FSDP)))
    if me() == 0:
        sd.save(state, path)
    model, optimizer = fresh(other)
    target = state_of(model, optimizer)
    assert {x.dtype for x in target["model"].values()} == {torch.bfloat16}
    load = sd.cast(like=target) | sd.broadcast(into=target)
    source = sd.load(path) if me() == 0 else None
    with record() as traffic:
        load(source)
    rounded = sd.cast(state, like=target)
    assert sd.equal(sd.gather(state_of(model, optimizer)), rounded)
    assert rounded["optimizer"]["state"][0]["step"].dtype == torch.float32
    assert sd.ties(target) == sd.ties(state)
    assert traffic.nbytes["send"] < 1.1 * sd.nbytes(rounded)
    train(model, optimizer, 1, seed=2)


def test_a_file_in_float32_goes_into_a_model_in_bfloat16(tmp_path):
    """Each tensor is cast on rank 0, so that half of the bytes travel."""
    path = tmp_path / "state.safetensors"
    pool(4).run(load_in_bfloat16, path, replace(FSDP, make=in_bfloat16))


# -- from layout to layout, without a file -----------------------------------------


def check_redistributed(training, other):
    model, optimizer = build(training)
    other_model, other_optimizer = fresh(other)
    state, target = state_of(model, optimizer), state_of(other_model, other_optimizer)
    moved = sd.redistribute(state, like=target)
    assert sd.similar(moved, target)
    assert sd.equal(moved, sd.distribute(sd.gather(state), like=target))
    assert sd.equal(sd.gather(moved), sd.gather(state))
    assert sd.ties(moved) == sd.ties(state)
    assert sd.equal(sd.redistribute(moved, like=state), state)
    other_model.load_state_dict(moved["model"])
    assert loss_of(other_model) == pytest.approx(loss_of(model), rel=1e-5)


@every_training
def test_redistributing_is_gathering_and_distributing(training):
    """Between two meshes of the same ranks, there and back again, ties and all."""
    pool(4).run(check_redistributed, training, ELSEWHERE[training])


def on_meta(make):
    with torch.device("meta"):
        return make()


def fill_a_meta_model(training, other):
    """Assert that a model without data receives all of it."""
    model, _ = build(training)
    empty, _ = build(replace(other, make=partial(on_meta, other.make)), steps=0)
    target = empty.state_dict()
    assert all(x.is_meta for x in target.values())
    made = sd.broadcast(sd.gather(model.state_dict(), ranks=0), like=target)
    assert all(x.device.type == "cpu" for x in made.values())
    assert sd.equal(sd.gather(made), sd.gather(model.state_dict()))
    assert sd.ties(made) == sd.ties(model.state_dict())
    empty.load_state_dict(made, assign=True)
    assert loss_of(empty) == pytest.approx(loss_of(model), rel=1e-5)


@every_training
def test_a_model_on_meta_is_made_where_its_mesh_is(training):
    pool(4).run(fill_a_meta_model, training, ELSEWHERE[training])


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
