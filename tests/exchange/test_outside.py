"""What people do who have read the documentation alone."""

import pytest
import torch
from shards import caught, me, said, shard, together, whole
from torch.overrides import TorchFunctionMode

import sdtree as sd
from sdtree.errors import NameCollision, RankFailed
from sdtree.wire.collectives import count


class Same:
    """A key that is itself, and has the text of another."""

    def __repr__(self):
        return "same"


def gather_keys_alike(verb):
    """Two keys of one text, the other way round on rank 1: who is who is not told."""
    keys = [Same(), Same()]
    leaves = {0: shard(whole(4)), 1: shard(whole(4, start=9))}
    order = reversed([*leaves]) if me() == 1 else [*leaves]
    tree = {keys[i]: leaves[i] for i in order}
    return caught(lambda: sd.gather(tree) if verb == "gather" else sd.diff(tree, tree))


@pytest.mark.parametrize("verb", ["gather", "diff"])
def test_keys_that_ranks_cannot_tell_apart_are_refused(verb):
    for error in together(gather_keys_alike, verb):
        assert type(error) in (NameCollision, RankFailed)
        assert "are one path between ranks" in said(error)


def send_over_nothing():
    """What is no process group, no rank, or no place for data is told as that."""
    tree = {"w": shard(whole(4))}
    wrong = (
        (
            TypeError,
            "'world' is no process group",
            lambda: sd.gather(tree, group="world"),
        ),
        (TypeError, "give a rank", lambda: sd.gather(tree, ranks=torch.tensor(1))),
        (
            ValueError,
            "holds no data to receive",
            lambda: sd.broadcast(tree, like=tree, device="meta"),
        ),
    )
    for kind, text, call in wrong:
        error = caught(call)
        assert type(error) is kind
        assert text in said(error)


def test_what_is_no_group_no_rank_or_no_place_is_told():
    together(send_over_nothing)


def redistribute_less():
    tree = {"w": shard(whole(4))}
    error = caught(lambda: sd.redistribute(tree, like={**tree, "v": shard(whole(4))}))
    assert "select or drop" in said(error)
    assert "strict" not in said(error)


def test_what_redistribute_advises_can_be_done():
    together(redistribute_less)


@pytest.mark.parametrize("before", [0, 1])
def test_a_record_in_a_record_ends_by_itself(before):
    """Each counts all that happens in it, also where both have counted as much."""
    with sd.record() as outer:
        for _ in range(before):
            count("send", 8)
        with sd.record() as inner:
            count("send", 8)
        count("send", 8)
    assert inner.messages == {"send": 1}
    assert outer.messages == {"send": 2 + before}


class Refusing(TorchFunctionMode):
    """A mode in which nothing of torch's can be called."""

    def __torch_function__(self, called, *_):
        raise RuntimeError(f"{called} was called in the mode")


MODES = {
    "refusing": Refusing,
    "meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
}

VERBS = {
    "gather": lambda tree, full: sd.gather(tree),
    "stream": lambda tree, full: dict(sd.gather(bucket_bytes=8).stream(tree)),
    "distribute": lambda tree, full: sd.distribute(full, like=tree),
    "broadcast": lambda tree, full: sd.broadcast(full, like=tree),
    "redistribute": lambda tree, full: sd.redistribute(tree, like=tree),
}


def exchange_in(verb, mode):
    full = {"w": whole(6, 2), "n": 3}
    tree = {"w": shard(full["w"]), "n": 3}
    with MODES[mode]():
        made = VERBS[verb](tree, full)
    [w] = [x for x in made.values() if isinstance(x, torch.Tensor)]
    assert not w.is_inference()
    assert sd.equal(sd.gather({"w": w})["w"], full["w"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", VERBS)
def test_ranks_exchange_leaves_in_any_mode(verb, mode):
    """What holds around a call is for what the user calls, not for what moves data."""
    together(exchange_in, verb, mode)
