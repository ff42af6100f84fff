"""Slabs: many tensors in one allocation, which are no ties for it."""

import os
import sys

import oracle
import pytest
import torch
from hypothesis import given

import sdtree as sd
from sdtree.kinds.calls import Call
from sdtree.ops.local import _remade
from sdtree.tensors.remake import SlabAllocator, remake
from sdtree.testing import trees

HOST = torch.device("cpu")


def in_slab(tree, share):
    """Return buffers for a tree in one slab, as those that are shared or pinned are."""
    room = SlabAllocator(HOST, share=share)
    return _remade("slab", Call(remake, room=room, filled=False))(tree)


def local(tree):
    """Return the tensors in a tree that hold anything."""
    every = [t for _, x in oracle.items(tree) for t in oracle.data_of(x)]
    return [t for t in every if isinstance(t, torch.Tensor) and not t.is_meta]


@given(trees(portable=False))
def test_buffers_in_a_slab_are_buffers(tree):
    """They are as those made one by one: forms, strides, ties; each takes its data."""
    expected, made = sd.empty_like()(tree), in_slab(tree, share=False)
    assert sd.similar(made, tree)
    assert [t.stride() for t in local(made)] == [t.stride() for t in local(expected)]
    oracle.assert_same(sd.copy(into=made)(tree), tree, "copy into a slab")


@given(trees(portable=False))
def test_buffers_in_shared_memory_are_buffers(tree):
    """The same, though all lie in one storage: its places are told apart."""
    made = sd.empty_like(share=True)(tree)
    assert sd.similar(made, tree)
    assert sd.ties(made) == sd.ties(tree)
    assert sd.equal(sd.copy(into=made)(tree), sd.copy()(tree))
    again = sd.copy()(made)
    assert sd.ties(again) == sd.ties(tree)
    assert sd.equal(again, made)


def test_shared_tensors_lie_in_one_storage():
    """However many they are, they take one descriptor."""
    tree = {str(i): torch.full((i % 3, 2), float(i)) for i in range(300)}
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    made = sd.empty_like(share=True)(tree)
    full = [t for t in made.values() if t.numel()]
    assert all(t.is_shared() for t in full)
    assert len({t.untyped_storage().data_ptr() for t in full}) == 1
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before + 1


@given(trees(portable=False))
def test_what_is_offloaded_to_shared_memory_is_a_copy(tree):
    """It is as what is copied, though all lie in one storage: ties, bits, strides."""
    made, expected = sd.offload(tree, share=True), sd.copy(tree)
    assert sd.ties(made) == sd.ties(expected)
    assert [t.stride() for t in local(made)] == [t.stride() for t in local(expected)]
    assert sd.equal(made, expected)
    full = [t for t in local(made) if t.numel()]
    assert all(t.is_shared() for t in full)
    assert len({t.untyped_storage().data_ptr() for t in full}) <= 1


def test_a_small_view_does_not_take_its_storage_along():
    row = torch.zeros(1000, 1000)[3]
    made = sd.empty_like({"row": row, "one": torch.tensor(1.0)}, share=True)
    assert made["row"].untyped_storage().nbytes() < 2 * row.nbytes


@pytest.mark.parametrize("share", [False, True])
def test_what_lies_side_by_side_is_no_tie(share):
    w = torch.arange(4.0)
    made = in_slab({"a": w, "b": w[1:], "c": torch.ones(2), "d": torch.ones(2)}, share)
    assert sd.ties(made) == [[("a",), ("b",)]]
    assert all(t.data_ptr() % 64 == 0 for t in (made["a"], made["c"], made["d"]))


def test_a_storage_of_others_has_no_places():
    """What only ends as a slab does, with a table that is none, is one storage."""
    made = sd.empty_like({"a": torch.ones(4)}, share=True)["a"].untyped_storage()
    last = torch.empty(0, dtype=torch.int64).set_(made, made.nbytes() // 8 - 3, (1,))
    last.fill_(2**40)
    pair = [torch.empty(0).set_(made, i, (1,)) for i in (0, 1)]
    assert sd.ties(pair) == [[(0,), (1,)]]
