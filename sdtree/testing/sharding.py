"""Strategies for leaves over plain local tensors that ranks share: ``Shards``."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from sdtree.kinds.shards import Shards
from sdtree.layout.layout import Box, Layout


@st.composite
def shards_of(draw: DrawFn, tensors: SearchStrategy[Tensor]) -> Shards:
    """Return leaves that lie on rank 0 alone, each a drawn tensor in several pieces.

    The pieces are views of it, in any order.

    >>> import hypothesis
    >>> found = hypothesis.find(shards_of(st.just(torch.ones(2))), lambda x: True)
    >>> found, len(found.tensors)
    (Shards((2,), float32, whole on rank 0), 1)
    """
    whole = draw(tensors).detach()
    pieces = [((0,) * whole.ndim, whole)]
    for _ in range(draw(st.integers(0, 2)) if whole.ndim else 0):
        offset, t = pieces.pop(0)
        dim = draw(st.integers(0, t.ndim - 1))
        low = draw(st.integers(0, t.shape[dim]))
        start = (*offset[:dim], offset[dim] + low, *offset[dim + 1 :])
        pieces += [(offset, t.narrow(dim, 0, low))]
        pieces += [(start, t.narrow(dim, low, t.shape[dim] - low))]
    order = draw(st.permutations(pieces))
    boxes = (
        Box(k, (0,) * t.ndim, offset, tuple(t.shape))
        for k, (offset, t) in enumerate(order)
    )
    return Shards([t for _, t in order], Layout(tuple(whole.shape), {0: tuple(boxes)}))
