"""Buffers in what is yet to be sent: all ranks refuse, or get what they should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shards import assert_works, me, over, together
from torch.distributed.tensor import DTensor, Replicate, Shard

import sdtree as sd
from sdtree.errors import RankFailed, SpecMismatch

NAMES = "abc"

WAYS = {
    "after": lambda into: sd.gather(bucket_bytes=1) | sd.copy(into=into),
    "changed after": lambda into: (
        sd.gather(bucket_bytes=1) | sd.map(torch.neg) | sd.copy(into=into)
    ),
    "renamed": lambda into: (
        sd.gather(bucket_bytes=1)
        | sd.rename(dict(zip(NAMES, "bca", strict=True)))
        | sd.copy(into=into)
    ),
    "within": lambda into: sd.map(torch.neg) | sd.gather(into=into, bucket_bytes=1),
}


def outcome(way, slots, placement, tied, how):
    """Return what a rank gets, or which error, where buffers lie in its memory."""
    memory = torch.arange(48.0).view(6, 8) + 100 * me()
    size = 4 if placement == Shard(0) else 8

    def tree():
        locals_ = {k: memory[i, :size] for i, k in enumerate(NAMES)}
        locals_["b"] = locals_["a"] if tied else locals_["b"]
        return {
            k: DTensor.from_local(t, over(0, 1), [placement], run_check=False)
            for k, t in locals_.items()
        }

    def fresh():
        return {k: torch.empty(8) for k in NAMES}

    wanted = WAYS[way](fresh())(sd.copy(tree()))
    into = {k: memory[i] for k, i in zip(NAMES, slots, strict=True)}

    act = {
        "call": lambda f: f(tree()),
        "stream": lambda f: {p[0]: t for p, t in f.stream(tree())},
        "prepared": lambda f: f.prepare(tree())(tree()),
    }
    try:
        made = act[how](WAYS[way](into))
    except SpecMismatch:
        return assert_works()
    return sd.equal(made, wanted)


@given(
    st.sampled_from([*WAYS]),
    st.lists(st.integers(0, 5), min_size=3, max_size=3, unique=True),
    st.sampled_from([Shard(0), Replicate()]),
    st.booleans(),
    st.sampled_from(["call", "stream", "prepared"]),
)
def test_nothing_is_written_that_is_yet_to_be_sent(way, slots, placement, tied, how):
    found = together(outcome, way, slots, placement, tied, how, size=2)
    assert found in ([True] * 2, [None] * 2)
    assert all(found) or min(slots) < len(NAMES)


# -- one memory, read for leaves that travel each for itself ---------------------------


def on_both(t, placement):
    """Return a tensor, or what it is a part of if that is placed on both ranks."""
    if placement is None:
        return t
    return DTensor.from_local(t, over(0, 1), [placement], run_check=False)


def refuses(way, tied_on, other):
    """Return whether a rank refuses to write where a leaf lies that shares memory."""
    memory = torch.arange(32, dtype=torch.float64) + 100 * me()
    held = memory[:4].view(2, 2)
    beside = held if me() in tied_on else held + 1000
    tree = {"a": on_both(held, Shard(0)), "b": on_both(beside, other)}
    room = memory.view(torch.float32)[:8].view(4, 2)
    into = {"a": room, "b": torch.empty(tree["b"].size())}
    cast = sd.cast(dtype=torch.float32)
    steps = {
        "within": cast | sd.gather(into=into, bucket_bytes=1),
        "after": sd.gather(bucket_bytes=1) | cast | sd.copy(into=into),
    }
    before = memory.clone()
    try:
        steps[way](tree)
    except (SpecMismatch, RankFailed):
        return torch.equal(memory, before)
    return False


@pytest.mark.parametrize("way", ["within", "after"])
@pytest.mark.parametrize(
    ("tied_on", "other"),
    [((0, 1), Shard(0)), ((0, 1), Shard(1)), ((0, 1), None), ((1,), Shard(0))],
    ids=["other buffers", "other layouts", "one is plain", "one rank sees it"],
)
def test_a_tie_whose_members_come_in_turn_is_not_written_into(way, tied_on, other):
    """What one of them is written into, another is yet to be read from."""
    assert all(together(refuses, way, tied_on, other, size=2))


# -- memory that no rank sends --------------------------------------------------------


def chains(a, b):
    """Return chains in which x goes to where y lies, before that moves."""
    return {
        "gathered into": sd.gather(into=a, bucket_bytes=1) | sd.copy(into=b),
        "distributed into": sd.distribute(into=a, bucket_bytes=1) | sd.copy(into=b),
        "copied before": sd.copy(into=a) | sd.distribute(into=b, bucket_bytes=1),
        "copied on both sides": (
            sd.copy(into=a) | sd.distribute(like=b, bucket_bytes=1) | sd.copy(into=b)
        ),
        "kept": (
            sd.drop("y")
            | sd.distribute(like=a, strict=False, bucket_bytes=1)
            | sd.copy(into=b)
        ),
    }


@pytest.mark.parametrize("name", [*chains({}, {})])
def test_what_a_step_before_writes_or_keeps_is_not_written_into(name):
    a, b = ({k: torch.zeros(4) for k in "xy"} for _ in range(2))
    b["x"] = a["y"]
    tree = {"x": torch.ones(4), "y": torch.full((4,), 2.0)}
    with pytest.raises(SpecMismatch, match="nothing was written"):
        chains(a, b)[name](tree)
    assert not any(t.any() for t in (*a.values(), *b.values()))


# -- what a conversion makes a leaf of, under another name -----------------------------


def converted(way, first, second):
    """Return what a rank gets where a leaf is written in the memory of the first."""
    memory = torch.arange(32, dtype=torch.float64) + 100 * me()
    tree = {"a": memory[:4], "b": memory[8:12]}
    wanted = {first: tree["a"].float(), second: tree["b"].float()}
    x, y = sorted(wanted)
    place = Shard(0)
    into = {x: memory.view(torch.float32)[:4], y: torch.empty(4)}
    into = {k: on_both(t, place) for k, t in into.items()}
    rules = [sd.rule("a [n]", f"{first} [n]"), sd.rule("b [n]", f"{second} [n]")]
    cast = sd.cast(dtype=torch.float32)
    like = {k: on_both(torch.empty(4), place) for k in wanted}
    steps = {
        "within": cast | sd.convert(rules, into=into, bucket_bytes=1),
        "after": (
            cast | sd.convert(rules, like=like, bucket_bytes=1) | sd.copy(into=into)
        ),
    }
    try:
        made = steps[way]({k: on_both(t, place) for k, t in tree.items()})
    except SpecMismatch:
        return assert_works()
    return all(torch.equal(made[k].to_local(), t) for k, t in wanted.items())


@pytest.mark.parametrize("way", ["within", "after"])
@pytest.mark.parametrize(("names", "fits"), [("ba", None), ("yx", None), ("xy", True)])
def test_what_another_leaf_is_made_of_is_not_written_into(way, names, fits):
    assert together(converted, way, *names, size=2) == [fits] * 2


def test_what_lies_in_its_own_buffer_alone_is_written():
    """That others share memory where nothing is written is of no matter."""
    one = torch.arange(4.0)
    buffers = {k: torch.zeros(4) for k in "xy"}
    steps = sd.gather(into=buffers, bucket_bytes=1) | sd.map(torch.neg)
    made = (steps | sd.copy(into=buffers))({"x": one, "y": one})
    assert sd.equal(made, {"x": -one, "y": -one})
    assert made["x"] is buffers["x"]


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        (sd.gather, "that overlap where the source does not"),
        (sd.distribute, "that overlap and are not one and the same leaf"),
        (sd.broadcast, "that overlap and are not one and the same leaf"),
        (sd.redistribute, "that overlap and are not one and the same leaf"),
    ],
)
def test_it_is_told_what_buffers_may_overlap(verb, told):
    """Of a gather those may that do in the source, of others those that are one."""
    room = torch.empty(3)
    source = {"a": torch.ones(2), "b": torch.zeros(2)}
    with pytest.raises(SpecMismatch, match=f"into= has buffers {told}.*a and b share"):
        verb(source, into={"a": room[:2], "b": room[1:]})
