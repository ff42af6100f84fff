"""Fresh tensors: parts come in any order, and all that they belong to is made."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdtree as sd
from sdtree.tensors.bits import same_bits
from sdtree.testing.sketches import SHARED_DTYPES
from sdtree.testing.strategies import dense
from sdtree.wire import columns as making
from sdtree.wire.columns import Fresh
from sdtree.wire.messages import Chunk, Column


@st.composite
def regions(draw, shape):
    """Return regions that a tensor of a shape is cut into, in any order."""
    found = [((0,) * len(shape), shape)]
    for dim, side in enumerate(shape):
        cut = draw(st.integers(0, side))
        found = [
            (_set(at, dim, start), _set(size, dim, stop - start))
            for at, size in found
            for start, stop in ((0, cut), (cut, side))
            if stop > start
        ]
    return draw(st.permutations(found))


def _set(sizes, dim, value):
    return (*sizes[:dim], value, *sizes[dim + 1 :])


shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    shapes.flatmap(lambda shape: st.tuples(st.just(shape), regions(shape))),
    st.sampled_from(SHARED_DTYPES),
    st.integers(1, 7),
    st.sampled_from([1, 64, 2**20]),
)
def test_what_has_come_in_parts_is_made_whole(cut, dtype, count, block):
    """Each has all of its bits and a storage of its own, whatever came how and when."""
    shape, parts = cut
    wholes = [dense(shape, dtype, number) for number in range(count)]
    fresh = Fresh((), shape, count=count, dtype=dtype)
    for k, (at, size) in enumerate(parts):
        slices = tuple(slice(i, i + n) for i, n in zip(at, size, strict=True))
        own, chunk = [t[slices] for t in wholes], Chunk(size, dtype, count, fresh, at)
        if k % 2:
            chunk.receive(torch.stack(own))
        else:
            fresh.take(chunk, own)
    with patch.object(making, "BLOCK", block):
        made = fresh.made()
    assert all(map(same_bits, made, wholes))
    assert not sd.ties(made)
    assert all(
        t.is_contiguous() and t.untyped_storage().nbytes() == t.nbytes for t in made
    )


@pytest.mark.parametrize("lazily", [torch.conj, torch._neg_view])
def test_lazy_bits_are_resolved(lazily):
    ts = [torch.randn(2, dtype=torch.complex64) for _ in range(3)]
    fresh = Fresh((), (2,), count=3, dtype=torch.complex64)
    fresh.take(Chunk((2,), torch.complex64, 3, fresh, (0,)), [*map(lazily, ts)])
    assert all(map(torch.equal, fresh.made(), map(lazily, ts)))


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(SHARED_DTYPES),
)
def test_a_column_that_lasts_gives_the_same(size, times, gap, dtype):
    """Each region, as often as it stands there, and of the data at each call."""
    rows, width = size
    step = rows + gap
    ts = [dense((step * times, width), dtype, number) for number in range(3)]
    part = Chunk(size, dtype, len(ts), None, (0, 0), times, (step, 0))
    part = part if times > 1 else part._replace(times=1, step=())
    lasting, found = Column(ts, lasts=True), []
    for t in ts * 2:
        for column in (Column(ts), lasting):
            room = torch.zeros(2048, dtype=torch.uint8)
            column.give(part, part.places(room, 0, part.room * len(ts)))
            found.append(room)
        t.view(torch.uint8).add_(1)
    assert all(map(torch.equal, found[::2], found[1::2]))
