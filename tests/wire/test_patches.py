"""Patchworks: a part of one is that of the tensor that it will be."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_columns import regions, shapes

from sdtree.wire.messages import Bucket, Chunk, Column, Message
from sdtree.wire.patches import PatchedColumn, Patchwork


@st.composite
def patchworks(draw):
    """Draw a tensor of numbers, cut up, and a region of it."""
    shape, at, size = draw(shapes), [], []
    for side in shape:
        at.append(draw(st.integers(0, side - 1)))
        size.append(draw(st.integers(1, side - at[-1])))
    start = tuple(draw(st.integers(0, 3)) for _ in shape)
    return shape, draw(regions(shape)), start, (tuple(at), tuple(size))


def patched(whole, cuts, start):
    """Return a tensor as patches, oddly strided, of a larger tensor."""
    return Patchwork(
        start,
        [
            (tuple(map(int.__add__, start, at)), cut(whole, at, size).mT.clone().mT)
            if whole.dim() > 1
            else (tuple(map(int.__add__, start, at)), cut(whole, at, size).clone())
            for at, size in cuts
        ],
    )


def cut(t, at, size):
    return t[tuple(slice(i, i + n) for i, n in zip(at, size, strict=True))]


@settings(max_examples=100, deadline=None)
@given(patchworks(), st.integers(1, 3), st.booleans())
def test_a_part_is_that_of_the_whole(drawn, count, mixed):
    """By a message, straight, and handed on to targets; with tensors among them."""
    shape, cuts, start, (at, size) = drawn
    numbers = torch.arange(float(torch.Size(shape).numel())).view(shape)
    wholes = [numbers + 100 * k for k in range(count)]
    sent = [patched(t, cuts, start) for t in wholes]
    if mixed:
        sent[0] = wholes[0]
    part = Chunk(size, torch.float32, count, PatchedColumn.of(sent), at)
    wanted = [cut(t, at, size) for t in wholes]
    packed = packed_of(part)
    assert all(map(torch.equal, packed, wanted))
    there = [torch.full(size, torch.nan) for _ in wholes]
    zeros = (0,) * len(size)
    goal = Chunk(size, torch.float32, count, Column(there), zeros)
    part.column.write(part, goal.views())
    assert all(map(torch.equal, there, wanted))
    for column, t in zip(part.column.each(), wanted, strict=True):
        direct = Message([part._replace(leaves=1, column=column)]).direct(t.device)
        if direct is not None:
            assert torch.equal(direct.view(torch.float32), t.flatten())


def packed_of(part):
    """Return what a bucket holds of a part, as it comes to another."""
    bucket = Bucket.of([Message([part])])
    buffer = bucket.pack(torch.device("cpu"), 0)
    return part.places(buffer, 0, 0).unbind()


@pytest.mark.parametrize("in_patches", [True, False])
@pytest.mark.parametrize("rows", [*permutations((0, 2, 4))])
def test_regions_at_even_gaps_are_packed_at_once(rows, in_patches):
    """Two messages, one some rows further, are a part of two times; none goes back."""
    whole = torch.arange(12.0).view(6, 2)
    sent = Patchwork((0, 0), [((0, 0), whole[:1]), ((1, 0), whole[1:])])
    column = PatchedColumn.of([sent]) if in_patches else Column([whole])
    parts = [Chunk((2, 2), torch.float32, 1, column, (k, 0)) for k in rows]
    bucket = Bucket.of([Message([part]) for part in parts])
    bucket.pack(torch.device("cpu"), 0)
    for k, part in enumerate(parts):
        slot = bucket.slot(k, torch.device("cpu")).view(torch.float32)
        assert torch.equal(slot.view(2, 2), whole[part.offset[0] :][:2])
