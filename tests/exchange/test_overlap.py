"""Buffers in what is yet to be sent: all ranks refuse, or get what they should."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from shards import assert_works, me, over, together
from torch.distributed.tensor import DTensor, Replicate, Shard

import sdtree as sd
from sdtree.errors import SpecMismatch

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
